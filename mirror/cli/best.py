"""`mirror best`: the best runs of a sweep or a project."""

from __future__ import annotations

from pathlib import Path

import click

from mirror.cli.complete import complete_path
from mirror.cli.console import safe
from mirror.cli.options import columns_options, filter_option, limit_option, output_options, root_option, source_option
from mirror.errors import UsageError


@click.command("best")
@click.argument("path", metavar="SWEEP|PATH", shell_complete=complete_path)
@click.option("--metric", metavar="KEY", help="Key of the summary  [default: the sweep's metric]")
@click.option("--goal", type=click.Choice(["minimize", "maximize", "min", "max"]),
              help="Which end is better  [default: the sweep's goal, else minimize]")  # fmt: skip
@click.option("--group", metavar="NAME", help="Only runs of this group.")
@filter_option
@limit_option("Show at most so many runs.", type=click.IntRange(min=1), default=5, show_default=True)
@columns_options("the sweep's parameters, or the config keys in which these runs differ")
@source_option
@root_option
@output_options
def command(
    path: str,
    metric: str | None,
    goal: str | None,
    group: str | None,
    filter_: str | None,
    limit: int,
    columns: str | None,
    more: tuple[str, ...],
    source: str | None,
    root: Path,
    format_: str | None,
    output: Path | None,
) -> None:
    """Show the best runs of a SWEEP, or of the runs of a PATH, the best one first.

    A sweep is entity/project/sweeps/ID, entity/project/ID, project/ID, ID or a URL; its configuration says which
    metric counts and which end is better. As in W&B's sweep.best_run(), the value is that of the summary, a goal that
    is not said is minimize, and NaN and missing values come last.

    \b
    Examples:
      mirror best my-team/my-project/sweeps/a1b2c3d4
      mirror best my-team/my-project --metric val/acc --goal maximize -n 10
      mirror best my-team/my-project --group baseline --metric loss -c config.lr -c config.seed
      mirror best a1b2c3d4 -n 1 --format json
    """
    from mirror.cli.output import emit
    from mirror.cli.runs import names_in, selected
    from mirror.query.best import best, contest
    from mirror.store import Reader

    with Reader(root) as reader:
        among = contest(reader, path, source)
        wanted = metric if metric is not None else among.metric
        if wanted is None:
            what = f"the configuration of sweep `{path}`" if among.is_sweep else f"`{path}`"
            raise UsageError(f"{what} names no metric: say which with --metric KEY")
        direction = goal or (among.goal if wanted == among.metric else None)
        if direction not in ("minimize", "maximize", "min", "max"):
            direction = "minimize"
            click.echo(f"The lowest {safe(wanted)} is best; --goal maximize turns that around.", err=True)
        filter = selected((), filter_, group=group).filter
        found = best(reader, among, wanted, direction, limit=limit, filter=filter, columns=names_in(columns, more))
        if found.fetchone() is None:
            click.echo("No runs.", err=True)
        emit(found, format_, output, root=root)
