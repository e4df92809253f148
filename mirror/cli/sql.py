"""`mirror sql`: ask the mirror in SQL."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mirror.cli.options import output_options, root_option
from mirror.errors import UsageError


@click.command("sql")
@click.argument("query", required=False)
@click.option(
    "-f",
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Read the query from a file; - is stdin.",
)
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="Bind $NAME in the query, as text.")
@click.option("--explain", is_flag=True, help="Show the SQL that would run, with wide views replaced; run nothing.")
@root_option
@output_options
def command(
    query: str | None,
    file: Path | None,
    params: tuple[str, ...],
    explain: bool,
    root: Path,
    format_: str | None,
    output: Path | None,
) -> None:
    """Ask the mirror in SQL: one SELECT in DuckDB's dialect, over the views of docs/data-model.md.

    The main views are runs, config, summary, metrics (the key catalogue), history, system_metrics, files, logs,
    projects, sync_log and quarantine; `mirror sql "show tables"` lists them, `mirror sql "describe history"`
    their columns. history_wide, system_wide and runs_wide have a column for every metric, config and summary
    value that a query mentions (docs/sql.md). A query can only read the mirror: no other files, no settings,
    nothing written.

    \b
    Examples:
      mirror sql "select project, state, count(*) from runs group by all"
      mirror sql "select name, summary->>'loss' as loss from runs order by loss::double limit 10"
      mirror sql "select run_id, _step, loss from history_wide where loss < 0.1 and project = 'digits'"
      mirror sql 'select name, config.lr, "summary.val/acc" from runs_wide order by 3 desc'
      mirror sql "select row, step, value from history where key = 'loss' and run_id = '1a2b3c4d'" -o loss.csv
      mirror sql "select * from runs where name = $name" --param "name=it's"
      mirror sql -f question.sql --format jsonl
    """
    from mirror.cli.console import safe
    from mirror.cli.output import emit
    from mirror.query.sql import execute
    from mirror.store import Reader

    if (query is None) == (file is None):
        raise UsageError("give one query: as an argument, or with -f FILE")
    text = query if query is not None else _read(file)
    with Reader(root) as reader:
        result = execute(reader, text, bound(params) or None)
        if explain:
            terminal = sys.stdout.isatty()
            click.echo("\n".join(map(safe, result.sql.split("\n"))) if terminal else result.sql)
        else:
            emit(result, format_, output, root=root)


def _read(file: Path | None) -> str:
    if file is None or str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(f"`{file}` is no text in UTF-8 ({e.reason} at byte {e.start})") from e


def bound(params: tuple[str, ...]) -> dict[str, str]:
    """`name=value` pairs of a command line."""
    found: dict[str, str] = {}
    for text in params:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"`{text}` is no parameter: write --param name=value")
        if name in found:
            raise UsageError(f"parameter `{name}` is given twice")
        found[name] = value
    return found
