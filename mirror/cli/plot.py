"""`mirror plot`: curves of a metric over runs, or groups of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.complete import complete_path
from mirror.cli.console import colored, safe
from mirror.cli.options import filter_option, limit_option, root_option, source_option
from mirror.errors import UsageError

if TYPE_CHECKING:
    from mirror.cli.figures import Plot
    from mirror.store import Reader

_SUFFIXES = (".png", ".svg")


@click.command("plot")
@click.argument("paths", nargs=-1, metavar="[PATH]...", shell_complete=complete_path)
@click.option("--metric", "metrics", required=True, multiple=True, metavar="KEY",
              help="Key of the history or of the system metrics; may be repeated, for a plot each.")  # fmt: skip
@click.option("--by", metavar="COLUMN", help="One curve for all runs with the same value: config.lr, group, tags, ... "
              "(columns as in `mirror runs`); it is their mean, with a band from least to greatest.")  # fmt: skip
@click.option("--x", default="_step", show_default=True, metavar="KEY",
              help="What to plot against: _step, _runtime (seconds), _timestamp, or another key.")  # fmt: skip
@click.option("--smooth", type=click.FloatRange(0, 1, max_open=True), default=0.0, metavar="WEIGHT",
              help="Smooth exponentially, as W&B does: 0 is not at all, 0.99 is much.")  # fmt: skip
@click.option("--log-y", is_flag=True, help="A logarithmic y axis; values up to 0 are left out.")
@filter_option
@click.option("--order", metavar="KEYS", help="Which runs come first; see `mirror runs`  [default: +created_at]")
@limit_option("Draw at most so many curves.", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.png|FILE.svg",
              help="Draw a picture (needs `pip install 'wandb-mirror[plot]'`), not on the terminal.")  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@source_option
@root_option
def command(
    paths: tuple[str, ...],
    metrics: tuple[str, ...],
    by: str | None,
    x: str,
    smooth: float,
    log_y: bool,
    filter_: str | None,
    order: str | None,
    limit: int,
    output: Path | None,
    force: bool,
    source: str | None,
    root: Path,
) -> None:
    """Plot a metric of the runs of a PATH (entity, entity/project, a run or a URL), or of all.

    Long histories are cut into a thousand stretches of the x axis and drawn by their means; NaN and infinities leave
    gaps, and are counted. Without -o the plot is drawn on the terminal.

    \b
    Examples:
      mirror plot my-team/my-project --metric loss
      mirror plot my-team/my-project --metric val/acc --by config.lr -o accuracy.png
      mirror plot 1a2b3c4d 5e6f7a8b --metric loss --x _runtime --log-y --smooth 0.9 -o loss.svg
      mirror plot my-team/my-project --metric loss --filter '{"state": "finished"}' --order=+summary_metrics.loss --limit 5
      mirror plot 1a2b3c4d --metric system.gpu.0.gpu --x _runtime
    """  # noqa: E501
    from mirror.cli.runs import selected
    from mirror.query.runs import rids
    from mirror.store import Reader

    if output is not None:
        _check(output, root, force, len(metrics))
    with Reader(root) as reader:
        chosen = rids(reader, selected(paths, filter_, order=order, source=source, reader=reader))
        if not chosen:
            click.echo("No runs.", err=True)
            return
        for metric in dict.fromkeys(metrics):
            plot = _plot(reader, chosen, metric, by, x, smooth, log_y, limit)
            if output is None:
                _show(plot)
            else:
                _save(plot, output)


def _check(output: Path, root: Path, force: bool, plots: int) -> None:
    if output.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"`{output.name}` says neither .png nor .svg: name the picture with one of them")
    if plots > 1:
        raise UsageError(f"`{output}` is one picture: give --metric once, or leave -o out")
    if output.absolute().parent.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"`{output}` lies inside the mirror: choose a place outside `{root}` for -o")
    if output.exists() and not force:
        raise UsageError(f"`{output}` would be written over: add --force, or choose another name with -o")


def _plot(
    reader: Reader, chosen: Sequence[int], metric: str, by: str | None, x: str, smooth: float, log_y: bool, limit: int
) -> Plot:
    from mirror.cli.figures import Plot
    from mirror.query.curves import curves, grouped
    from mirror.query.keys import stream_of

    stream = stream_of(reader, chosen, metric)
    labels, groups = _groups(reader, chosen, by)
    if by is None:
        names = dict(zip(chosen, labels, strict=True))
        drawn = {names[rid]: curve for rid, curve in _first(curves, reader, chosen, metric, x, stream, limit).items()}
    else:
        found = grouped(reader, groups, metric, x=x, stream=stream)
        drawn = {labels[group]: curve for group, curve in found.items()}
    if not drawn:
        raise UsageError(f"no row has both `{metric}` and a number under `{x}`: choose another --x")
    what = "runs" if by is None else "groups"
    there = len(drawn)
    if there > limit:
        drawn = dict(list(drawn.items())[:limit])
        others = "--limit, --filter or --order choose others" + (", --by groups them" if by is None else "")
        click.echo(f"Only the first {limit} {what} are drawn: {others}.", err=True)
    nonfinite, values = (sum(getattr(c, name) for c in drawn.values()) for name in ("nonfinite", "values"))
    if nonfinite:
        click.echo(f"{nonfinite:,} of {values:,} values of {safe(metric)} are NaN or infinite: gaps.", err=True)
    return Plot(metric, x, {label: c.smooth(smooth) for label, c in drawn.items()}, by, log_y)


def _first(curves: Any, reader: Reader, chosen: Sequence[int], metric: str, x: str, stream: Any, limit: int) -> Any:
    """Curves of the first runs that have one, and of one more if there is one."""
    found: dict[int, Any] = {}
    for start in range(0, len(chosen), 100):
        found |= curves(reader, chosen[start : start + 100], metric, x=x, stream=stream)
        if len(found) > limit:
            break
    return dict(list(found.items())[: limit + 1])


def _groups(reader: Reader, chosen: Sequence[int], by: str | None) -> tuple[list[str], Mapping[int, int]]:
    """A label for each curve, and which of them each run belongs to, by rid."""
    from mirror.query.columns import columns_of
    from mirror.query.runs import Chosen
    from mirror.query.text import plain

    if by is None:
        names = columns_of(reader, Chosen(chosen), ["name", "run_id", "path", "source"]).fetchall()
        return _distinct(names), {}
    values = [row[0] for row in columns_of(reader, Chosen(chosen), [by])]
    texts = [f"{by}: none" if value is None else plain(value) for value in values]
    first = list(dict.fromkeys(texts))
    if all(isinstance(v, (int, float)) for v in values if v is not None):  # numbers in their order
        order = dict(zip(texts, values, strict=True))
        first.sort(key=lambda text: (order[text] is None or order[text] != order[text], order[text] or 0))
    return first, {rid: first.index(text) for rid, text in zip(chosen, texts, strict=True)}


def _distinct(names: Sequence[tuple[str | None, str, str, str]]) -> list[str]:
    """Names where they tell runs apart, else names with run ids, else paths with sources."""
    labels = [name or run_id for name, run_id, _, _ in names]
    if len({*labels}) < len(labels):
        labels = [f"{label} ({run_id})" for label, (_, run_id, _, _) in zip(labels, names, strict=True)]
    if len({*labels}) < len(labels):
        labels = [f"{path} ({source})" for _, _, path, source in names]
    return labels


def _show(plot: Plot) -> None:
    from mirror.cli.figures import on_terminal

    size = shutil.get_terminal_size()
    width = max(min(size.columns - 16, 120), 30)
    click.echo(on_terminal(plot, width=width, height=18, color=colored()))


def _save(plot: Plot, output: Path) -> None:
    from mirror.cli.figures import picture
    from mirror.query.export import replacing

    with replacing(output) as out:
        picture(plot, out, output.suffix.lower().removeprefix("."))
    click.echo(f"{len(plot.curves)} curves drawn to {safe(str(output))}", err=True)
