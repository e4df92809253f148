"""Small pieces of SQL as sqlglot expressions. Values become literals here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlglot import exp
from sqlglot.expressions import Expression as Expr

FALSE = exp.false()
TRUE = exp.true()


def column(name: str, table: str | None = None) -> Expr:
    """One of our own columns; `group` is the only name among them that needs quotes."""
    return exp.column(exp.to_identifier(name, quoted=name == "group"), table=table)


def call(name: str, *arguments: Expr) -> Expr:
    """A function of DuckDB, under the name given: sqlglot shall not translate it."""
    return exp.Anonymous(this=name, expressions=list(arguments))


def text(value: str) -> Expr:
    """A string literal. DuckDB before 2.0 cannot read NUL in SQL text, so it goes in by its number."""
    parts: list[Expr] = [exp.Literal.string(part) for part in value.split("\0")]
    found = parts[0]
    for part in parts[1:]:
        nul = exp.DPipe(this=found, expression=call("chr", exp.Literal.number(0)))
        found = exp.DPipe(this=nul, expression=part)
    return exp.paren(found) if len(parts) > 1 else found


def double(value: float) -> Expr:
    """A DOUBLE literal: a bare 0.001 would be a DECIMAL, and e0 makes it exact to the last bit."""
    spelled = repr(value)
    return exp.Literal(this=spelled if "e" in spelled else f"{spelled}e0", is_string=False)


def integer(value: int) -> Expr:
    """An integer of any size, as DuckDB's BIGNUM."""
    return cast(exp.Literal.string(str(value)), "BIGNUM")


def cast(value: Expr, kind: str) -> Expr:
    return exp.Cast(this=value, to=exp.DataType.build(kind, dialect="duckdb", udt=True))


def array(values: Iterable[Expr]) -> Expr:
    return exp.Array(expressions=list(values))


def case(*branches: tuple[Expr, Expr], default: Expr) -> Expr:
    """CASE WHEN ... ELSE default END. DuckDB evaluates a branch for the rows that reach it only."""
    found = exp.Case()
    for condition, result in branches:
        found = found.when(condition, result, copy=False)
    return found.else_(default, copy=False)


def lambda_(name: str, body: Expr) -> Expr:
    return exp.Lambda(this=body, expressions=[exp.to_identifier(name)], colon=True)


def any_of(values: Expr, name: str, body: Expr) -> Expr:
    """Whether `body` holds for an element `name` of a list."""
    return exp.GT(this=call("len", call("list_filter", values, lambda_(name, body))), expression=exp.Literal.number(0))


def both(parts: Iterable[Expr]) -> Expr:
    """All of them; true without any."""
    return _combined(list(parts), exp.And, TRUE)


def either(parts: Iterable[Expr]) -> Expr:
    """One of them; false without any."""
    return _combined(list(parts), exp.Or, FALSE)


def _combined(parts: list[Expr], kind: type[exp.Connector], empty: Expr) -> Expr:
    if len(parts) < 2:
        return parts[0] if parts else empty.copy()
    # Balanced, so that a list of thousands nests a dozen levels deep and no recursion overflows.
    middle = len(parts) // 2
    left, right = (_combined(half, kind, empty) for half in (parts[:middle], parts[middle:]))
    return exp.paren(kind(this=left, expression=right), copy=False)


def compared(left: Expr, operator: str, right: Expr) -> Expr:
    kinds: dict[str, type[exp.Binary]] = {
        "$eq": exp.EQ, "$gt": exp.GT, "$gte": exp.GTE, "$lt": exp.LT, "$lte": exp.LTE,
    }  # fmt: skip
    return kinds[operator](this=left, expression=right)


def member(value: Expr, members: Iterable[Expr]) -> Expr:
    return exp.In(this=value, expressions=list(members))


def written(expression: Expr) -> str:
    return str(expression.sql(dialect="duckdb"))


def is_null(value: Expr) -> Expr:
    return exp.Is(this=value, expression=exp.null())


def equal(left: Expr, right: Any) -> Expr:
    """`left` equals a string, a small integer or an expression."""
    if isinstance(right, str):
        right = text(right)
    elif isinstance(right, int):
        right = exp.Literal.number(right)
    return exp.EQ(this=left, expression=right)
