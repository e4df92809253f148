"""`mirror query`: saved queries."""

from __future__ import annotations

from pathlib import Path

import click

from mirror.cli.complete import complete_query
from mirror.cli.options import output_options, root_option, source_option
from mirror.errors import UsageError


@click.command("query")
@click.argument("name", required=False, shell_complete=complete_query)
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the query.")
@click.option("--list", "list_", is_flag=True, help="List the saved queries with their parameters.")
@source_option
@root_option
@output_options
def command(
    name: str | None,
    params: tuple[str, ...],
    list_: bool,
    source: str | None,
    root: Path,
    format_: str | None,
    output: Path | None,
) -> None:
    """Run a saved query, by its NAME in queries/.

    Parameters are bound, never pasted into the SQL; `mirror query --list` shows which queries there are and what
    they want to know.

    \b
    Examples:
      mirror query --list
      mirror query leaderboard --param metric=val/acc --param limit=5
      mirror query learning_curves -p key=loss -p buckets=20 -o curves.parquet
      mirror query config_diff -p a=my-team/my-project/1a2b3c4d -p b=my-team/my-project/5e6f7a8b
    """
    from mirror.cli.output import emit
    from mirror.query import saved

    if list_ or name is None:
        if name is not None or params:
            raise UsageError("--list takes no query and no parameters")
        emit(saved.listing(), format_, output)
        return
    saved.load(name)
    from mirror.cli.sql import bound
    from mirror.store import Reader

    with Reader(root) as reader:
        emit(saved.run(reader, name, bound(params), source), format_, output, root=root)
