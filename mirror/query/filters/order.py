"""`+created_at,-summary_metrics.loss` -> an ORDER BY list over the view `runs`."""

from __future__ import annotations

from sqlglot import exp
from sqlglot.expressions import Expression as Expr

from mirror.errors import UsageError
from mirror.query.filters.compile import RUNS, attribute_sql, pointer, readings
from mirror.query.filters.fields import resolve
from mirror.query.filters.sql import call, column, equal, member, text, word
from mirror.query.filters.tree import Document

DEFAULT_ORDER = "+created_at"
MAX_KEYS = 20


def ordered(order: str | None) -> tuple[list[Expr], tuple[str, ...]]:
    """The list of terms and notices. No sign means ascending, nothing at all `+created_at`.

    Numbers come first, then strings, then everything else and runs without the key, in both directions; runs
    that are equal so far follow by run id. Raises UsageError for a key that is no field."""
    terms: list[Expr] = []
    notices: list[str] = []
    keys = [key.strip() for key in (order or DEFAULT_ORDER).split(",")]
    if len(keys) > MAX_KEYS:
        raise UsageError(f"order: {len(keys)} keys, at most {MAX_KEYS} are taken")
    for key in keys:
        descending = key.startswith("-")
        name = key.removeprefix("-" if descending else "+")
        if not name:
            raise UsageError(f"order: empty key in `{order}`; write +created_at or -summary_metrics.loss")
        field, notice = resolve(name)
        if notice is not None:
            notices.append(notice)
        if isinstance(field, Document):
            values = _document(field)
        elif field.kind == "tags":
            raise UsageError(f"order: runs cannot be ordered by `{name}`, which is a list")
        else:
            values = [attribute_sql(field)]
        terms += [exp.Ordered(this=value, desc=descending, nulls_first=False) for value in values]
    terms += [exp.Ordered(this=column(name, RUNS), nulls_first=False) for name in ("run_id", "rid")]
    return terms, tuple(notices)


def _document(field: Document) -> list[Expr]:
    """The run's number at the field and its string there, each NULL where it is something else."""
    places = [text(pointer(reading)) for reading in readings(field.parts)]

    def one(kind: str, value: Expr) -> Expr:
        here = exp.select(call("max", value)).from_(
            exp.alias_(exp.table_(f"{field.table}_live", db="raw"), "n", table=True)
        )
        same_run = exp.EQ(this=column("rid", "n"), expression=column("rid", RUNS))
        conditions = [same_run, member(column("path", "n"), places), equal(column("type", "n"), word(kind))]
        return exp.Subquery(this=here.where(*conditions, copy=False))

    digits = exp.TryCast(this=column("str", "n"), to=exp.DataType.build("DOUBLE"))
    return [one("number", call("coalesce", column("num", "n"), digits)), one("string", column("str", "n"))]
