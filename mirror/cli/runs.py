"""`mirror runs`: list runs, filtered and ordered as in `wandb.Api().runs`."""

from __future__ import annotations

from pathlib import Path

import click

from mirror.cli.console import safe
from mirror.cli.options import output_options, root_option, source_option
from mirror.errors import UsageError


@click.command("runs")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--filter",
    "filter_",
    metavar="JSON|@FILE",
    help='Conditions as in wandb.Api().runs, e.g. {"state": "finished", "config.lr": {"$gt": 0.01}}.',
)
@click.option(
    "--order",
    metavar="KEYS",
    help="Keys to sort by, separated by commas, + for ascending, - for descending  [default: +created_at]",
)
@click.option(
    "--columns",
    metavar="NAMES",
    help="Columns to show, separated by commas: those of the view `runs`, path, duration (seconds), config.KEY, "
    "summary_metrics.KEY  [default: path,name,state,created_at,history_rows,tags]",
)
@click.option("--limit", type=click.IntRange(min=0), help="Show at most so many runs.")
@source_option
@root_option
@output_options
def command(
    paths: tuple[str, ...],
    filter_: str | None,
    order: str | None,
    columns: str | None,
    limit: int | None,
    source: str | None,
    root: Path,
    format_: str | None,
    output: Path | None,
) -> None:
    """List runs of the mirror: of a PATH (entity, entity/project, entity/project/run or a URL), or all.

    Filters are those of wandb.Api().runs, in its names (`name` is the run id, `display_name` the name); what they
    mean is in docs/filters.md. Supported for now: equality, $gt $gte $lt $lte, $in, $regex, $and, $or.

    \b
    Examples:
      mirror runs my-team/my-project
      mirror runs --filter '{"state": "finished", "config.lr": {"$gt": 0.01}}' --order=-summary_metrics.acc
      mirror runs --filter @best.json --columns path,config.lr,summary_metrics.loss -o runs.csv
      mirror runs --filter '{"tags": "baseline", "created_at": {"$gte": "2025-06"}}' --format jsonl
    """
    from mirror.cli.output import emit
    from mirror.paths import parse
    from mirror.query.filters import parse as parse_filter
    from mirror.query.runs import DEFAULT_COLUMNS, Selection, listing
    from mirror.store import Reader

    parsed = parse_filter(_text(filter_)) if filter_ is not None else None
    for notice in parsed.notices if parsed else ():
        click.echo(safe(f"Note: {notice}"), err=True)
    selection = Selection([parse(path) for path in paths], source, parsed, order, limit)
    names = [name for name in columns.split(",") if name] if columns else DEFAULT_COLUMNS
    with Reader(root) as reader:
        emit(listing(reader, selection, names), format_, output, root=root)


def _text(filter_: str) -> str:
    if not filter_.startswith("@"):
        return filter_
    try:
        return Path(filter_[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read the filter `{filter_}`: {e}") from e
