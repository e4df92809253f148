"""Filters as `wandb.Api().runs` takes them, as SQL: `select run_id from runs where ` + to_sql(filter).

    import mirror
    from mirror.filters import to_sql

    m = mirror.open("wandb-mirror")
    m.sql("select run_id from runs where " + to_sql({"config.lr": {"$gt": 0.001}}))

docs/filters.md says what filters and orders mean.
"""

from __future__ import annotations

from mirror.query.filters import Filter, FilterError, order_sql, parse, to_sql

__all__ = ["Filter", "FilterError", "order_sql", "parse", "to_sql"]
