"""Run filters: MongoDB-style conditions, as `wandb.Api().runs` takes them, to SQL over the view `runs`.

    >>> print(to_sql({"state": "finished", "tags": "best"}))
    (runs.state = 'finished' AND LIST_CONTAINS(runs.tags, 'best'))

Filter text or dict -> tree (`parse`) -> sqlglot expression (`compile`) -> SQL. Values only ever become
literals of sqlglot's, and the expression reads nothing but `runs` and its config and summary nodes.
docs/filters.md says what a filter means; what is not supported is refused, never ignored.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, overload

from mirror.errors import UsageError
from mirror.query.filters.parse import Filter, FilterError, parse

__all__ = ["Filter", "FilterError", "order_sql", "parse", "to_sql"]

Source: TypeAlias = "Filter | Mapping[str, Any] | str | None"


@overload
def to_sql(
    filter: Source, dialect: str = "duckdb", params: Literal[False] = False, *, server_compat: bool = False
) -> str: ...


@overload
def to_sql(
    filter: Source, dialect: str = "duckdb", *, params: Literal[True], server_compat: bool = False
) -> tuple[str, list[str | float]]: ...


def to_sql(
    filter: Source, dialect: str = "duckdb", params: bool = False, *, server_compat: bool = False
) -> str | tuple[str, list[str | float]]:
    """A boolean SQL expression for `select ... from runs where <it>`; the FROM item must be named `runs`.

    `filter` is JSON text, a dict, or None for no filter. `params` gives (sql, values) with $1, $2, ... where values
    stand. Other dialects (spark, trino, postgres, bigquery) read the tables `runs`, `config` and `summary` of a copy.
    `server_compat` refuses what W&B's server does not take.
    Raises FilterError, which names the field, the operator and what is wrong; a `UserWarning` tells of names that
    W&B's own server would refuse.
    """
    from mirror.query.filters.sql import parametrised, written

    parsed = filter if isinstance(filter, Filter) else _warned(parse(filter, server_compat=server_compat))
    if dialect != "duckdb":
        from mirror.query.filters.portable import NOTICE, asks_documents, portable

        if params:
            raise UsageError(f"parameters are for the dialect duckdb, not for `{dialect}`: leave out params")
        found = portable(parsed.node, dialect)
        if asks_documents(parsed.node):
            warnings.warn(NOTICE.format(dialect), stacklevel=2)
        return written(found, dialect)
    from mirror.query.filters.compile import compiled

    if not params:
        return written(compiled(parsed.node))
    expression, values = parametrised(compiled(parsed.node))
    return written(expression), values


def order_sql(order: str | None = None) -> str:
    """An ORDER BY list over `runs`, e.g. for `+created_at` (the default) or `-summary_metrics.loss,+name`.

    Numbers first, runs without the key last, run id as the tie-break. Raises UsageError for an unknown key.
    """
    from mirror.query.filters.order import ordered
    from mirror.query.filters.sql import written

    terms, notices = ordered(order)
    for notice in notices:
        warnings.warn(notice, stacklevel=2)
    return ", ".join(written(term) for term in terms)


def _warned(found: Filter) -> Filter:
    for notice in found.notices:
        warnings.warn(notice, stacklevel=3)
    return found
