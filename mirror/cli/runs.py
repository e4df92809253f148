"""`mirror runs`: list runs, filtered and ordered as in `wandb.Api().runs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.complete import complete_path
from mirror.cli.console import safe
from mirror.cli.options import columns_options, filter_text, limit_option, output_options, root_option, source_option
from mirror.errors import UsageError

if TYPE_CHECKING:
    from mirror.query.runs import Selection
    from mirror.store import Reader


@click.command("runs")
@click.argument("paths", nargs=-1, metavar="[PATH]...", shell_complete=complete_path)
@click.option(
    "--filter",
    "filter_",
    metavar="JSON|@FILE|-",
    help='Conditions as in wandb.Api().runs, e.g. {"state": "finished", "config.lr": {"$gt": 0.01}}; @FILE reads '
    "them from a file, - from stdin.",
)
@click.option(
    "--order",
    metavar="KEYS",
    help="Keys to sort by, separated by commas, + for ascending, - for descending  [default: +created_at]",
)
@columns_options("path,name,state,created_at,history_rows,tags")
@limit_option("Show at most so many runs.")
@click.option("--deleted", is_flag=True, help="Show runs, too, that were found deleted at their source.")
@source_option
@root_option
@output_options
def command(
    paths: tuple[str, ...],
    filter_: str | None,
    order: str | None,
    columns: str | None,
    more: tuple[str, ...],
    limit: int | None,
    deleted: bool,
    source: str | None,
    root: Path,
    format_: str | None,
    output: Path | None,
) -> None:
    """List runs of the mirror: of a PATH (entity, entity/project, entity/project/run or a URL), or all.

    Filters are those of wandb.Api().runs, in its names (`name` is the run id, `display_name` the name); what they
    mean is in docs/filters.md. Runs found deleted at their source are left out, unless a PATH names one.

    \b
    Examples:
      mirror runs my-team/my-project
      mirror runs --filter '{"state": "finished", "config.lr": {"$gt": 0.01}}' --order=-summary_metrics.acc
      mirror runs --filter @best.json --columns path,config.lr,summary_metrics.loss -o runs.csv
      mirror runs --filter '{"tags": "baseline", "created_at": {"$gte": "2025-06"}}' --format jsonl
      mirror runs my-team/my-project -c path -c 'config.a name, with a comma' --limit 10
      echo '{"state": "crashed"}' | mirror runs my-team --filter - --deleted
    """
    from mirror.cli.output import emit
    from mirror.query.columns import listing
    from mirror.store import Reader

    selection = selected(paths, filter_, order=order, limit=limit, source=source, deleted=deleted)
    with Reader(root) as reader:
        emit(listing(reader, selection, column_names(columns, more, deleted)), format_, output, root=root)


def selected(
    paths: Sequence[str],
    filter_: str | None,
    *,
    order: str | None = None,
    limit: int | None = None,
    source: str | None = None,
    deleted: bool = False,
    group: str | None = None,
    reader: Reader | None = None,
) -> Selection:
    """The runs that arguments and options name; with a `reader`, a path may be the id of a run that it holds, and one
    that it does not hold is an error. What a filter's author should know goes to stderr."""
    from mirror.paths import parse
    from mirror.query.filters import Filter
    from mirror.query.filters import parse as parse_filter
    from mirror.query.filters.tree import And
    from mirror.query.runs import Selection, find_path

    parsed = parse_filter(filter_text(filter_)) if filter_ is not None else None
    if group is not None:
        within = parse_filter({"group": group})
        parsed = within if parsed is None else Filter(And((parsed.node, within.node)), parsed.notices)
    for notice in parsed.notices if parsed else ():
        click.echo(safe(f"Note: {notice}"), err=True)
    found = [parse(path) if reader is None else find_path(reader, path, source) for path in paths]
    return Selection(found, source, parsed, order, limit, deleted)


def column_names(listed: str | None, more: Sequence[str], deleted: bool) -> list[str]:
    from mirror.query.columns import DEFAULT_COLUMNS

    return names_in(listed, more) or [*DEFAULT_COLUMNS, *(["deleted_at"] if deleted else [])]


def names_in(listed: str | None, more: Sequence[str]) -> list[str]:
    """Names of an option that takes a line of CSV, and of one that is repeated."""
    import csv

    try:
        return [*(name for row in csv.reader([listed or ""], strict=True) for name in row if name), *more]
    except csv.Error as e:
        raise UsageError(f"`{listed}` is no line of names ({e}): use the option that takes one name, repeated") from e
