"""Small pieces of SQL as sqlglot expressions. Values become literals here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlglot import exp
from sqlglot.expressions import Expression as Expr

FALSE = exp.false()
TRUE = exp.true()
_GIVEN = "given"


def column(name: str, table: str | None = None) -> Expr:
    """One of our own columns; `group` is the only name among them that needs quotes."""
    return exp.column(exp.to_identifier(name, quoted=name == "group"), table=table)


def call(name: str, *arguments: Expr) -> Expr:
    """A function of DuckDB, under the name given: sqlglot shall not translate it."""
    return exp.Anonymous(this=name, expressions=list(arguments))


def word(value: str) -> Expr:
    """A string literal of our own, such as the name of a type."""
    return exp.Literal.string(value)


def text(value: str) -> Expr:
    """A string literal out of a filter. DuckDB before 2.0 cannot read NUL in SQL text, so it goes in by its number."""
    parts: list[Expr] = [exp.Literal.string(part) for part in value.split("\0")]
    found = parts[0]
    for part in parts[1:]:
        nul = exp.DPipe(this=found, expression=call("chr", exp.Literal.number(0)))
        found = exp.DPipe(this=nul, expression=part)
    return _given(exp.paren(found) if len(parts) > 1 else found, value)


def double(value: float) -> Expr:
    """A DOUBLE literal: a bare 0.001 would be a DECIMAL, and e0 makes it exact to the last bit."""
    spelled = repr(value)
    return _given(exp.Literal(this=spelled if "e" in spelled else f"{spelled}e0", is_string=False), value)


def whole(value: int) -> Expr:
    """An integer of at most 64 bits."""
    return exp.Literal.number(value)


def integer(value: int) -> Expr:
    """An integer of any size, as DuckDB's BIGNUM."""
    return cast(_given(exp.Literal.string(str(value)), str(value)), "BIGNUM")


def _given(literal: Expr, value: str | float) -> Expr:
    """Remember which value a literal stands for, so that a parameter can take its place."""
    literal.meta[_GIVEN] = value
    return literal


def parametrised(expression: Expr) -> tuple[Expr, list[str | float]]:
    """The expression with $1, $2, ... where values stood, and the values."""
    values: list[str | float] = []
    numbers: dict[tuple[type, str | float], int] = {}

    def replaced(node: Expr) -> Expr:
        if _GIVEN not in node.meta:
            return node
        value = node.meta[_GIVEN]
        number = numbers.setdefault((type(value), value), len(values) + 1)
        if number > len(values):
            values.append(value)
        return exp.Parameter(this=exp.Literal.number(number))

    return expression.transform(replaced), values


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


def negated(part: Expr) -> Expr:
    """Whether something does not hold; what is NULL does not."""
    return exp.Not(this=call("coalesce", part, FALSE.copy()))


def written(expression: Expr, dialect: str = "duckdb") -> str:
    """SQL text; the expression is used up, some dialects rewrite it."""
    return str(expression.sql(dialect=dialect, copy=False))


def is_null(value: Expr) -> Expr:
    return exp.Is(this=value, expression=exp.null())


def equal(left: Expr, right: Any) -> Expr:
    """`left` equals a string, a small integer or an expression."""
    if isinstance(right, str):
        right = text(right)
    elif isinstance(right, int):
        right = whole(right)
    return exp.EQ(this=left, expression=right)
