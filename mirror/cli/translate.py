"""`mirror translate`: what a filter is in SQL."""

from __future__ import annotations

import json

import click

from mirror.cli.console import safe
from mirror.cli.options import filter_text


@click.command("translate")
@click.argument("filter_", metavar="FILTER")
@click.option(
    "--dialect",
    type=click.Choice(["duckdb", "spark", "trino", "postgres", "bigquery"]),
    default="duckdb",
    show_default=True,
    help="Whose SQL; those but duckdb read the tables runs, config and summary of a copy of the mirror.",
)
@click.option("--params", is_flag=True, help='Print {"sql": ..., "params": [...]} with $1, $2, ... where values stand.')
@click.option("--server-compat", is_flag=True, help="Refuse what W&B's own server refuses or never matches.")
def command(filter_: str, dialect: str, params: bool, server_compat: bool) -> None:
    """Print a filter of wandb.Api().runs as SQL: a condition for `select ... from runs where ...`.

    FILTER is JSON, @FILE or - for stdin; docs/filters.md says what it may hold and what it means.

    \b
    Examples:
      mirror translate '{"config.lr": {"$gt": 0.001}, "state": {"$ne": "crashed"}}'
      mirror sql "select run_id from runs where $(mirror translate @best.json)"
      mirror translate '{"tags": {"$in": ["a", "b"]}}' --dialect spark
      mirror translate @best.json --server-compat --params
    """
    import warnings

    from mirror.query.filters import to_sql

    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        text = filter_text(filter_)
        if params:
            sql, values = to_sql(text, dialect, params=True, server_compat=server_compat)
            click.echo(json.dumps({"sql": sql, "params": values}, ensure_ascii=False))
        else:
            click.echo(to_sql(text, dialect, server_compat=server_compat))
    for notice in notices:
        click.echo(safe(f"Note: {notice.message}"), err=True)
