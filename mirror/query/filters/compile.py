"""Tree -> SQL: a boolean expression over one row of the view `runs`.

Config and summary are asked through their node tables (`raw.config_live`, `raw.summary_live`: one row per
value, `path` a JSON pointer): which rids have a node that meets the condition. A dotted name is read as nested names
and, since people log literal dots too, as literal names: `config.a.b` finds {"a": {"b": ..}} and {"a.b": ..}. Where an
array stands on the way its JSON text is walked, one array level at a time, as MongoDB does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlglot import exp
from sqlglot.expressions import Expression as Expr

from mirror.query.filters.dates import period
from mirror.query.filters.lists import INDEX, element, pointer, walked
from mirror.query.filters.sql import (
    FALSE,
    TRUE,
    any_of,
    array,
    both,
    call,
    case,
    cast,
    column,
    compared,
    double,
    either,
    equal,
    is_null,
    member,
    negated,
    text,
    word,
)
from mirror.query.filters.tree import (
    And,
    Attribute,
    Compare,
    Condition,
    Contains,
    Document,
    ElemMatch,
    Exists,
    In,
    Matches,
    Node,
    Not,
    OfType,
    Or,
    Size,
)
from mirror.query.filters.values import ARRAY, Value, allows_missing, branches, holds, on_text
from mirror.query.filters.values import Node as StoredNode

__all__ = ["RUNS", "attribute_sql", "compiled", "period_of", "pointer", "readings"]

RUNS = "runs"
_MOST_PARTS = 6  # of a dotted name of which every dot may belong to a name


def compiled(node: Node) -> Expr:
    """The expression for a tree."""
    if isinstance(node, And):
        return both(_joined(node.parts, both))
    if isinstance(node, Or):
        return either(_joined(node.parts, either))
    if isinstance(node, Not):
        part = compiled(node.part)
        return exp.Not(this=exp.paren(part)) if _is_sure(node.part) else negated(part)
    if isinstance(node.field, Document):
        return _document(node.field, node)
    assert isinstance(node.field, Attribute)
    return _attribute(node.field, node)


def _is_sure(node: Node) -> bool:
    """Whether the expression is never NULL: attributes can be."""
    if isinstance(node, (And, Or)):
        return all(_is_sure(part) for part in node.parts)
    return isinstance(node, Not) or isinstance(node.field, Document)


def _joined(parts: Sequence[Node], join: Any) -> Iterator[Expr]:
    """The parts as expressions; conditions on one value are asked in one look at it."""
    groups: dict[Any, list[Condition]] = {}
    for i, part in enumerate(parts):
        alone = isinstance(part, (And, Or, Not)) or not _is_one_node(part)
        groups.setdefault(i if alone else part.field, []).append(part)  # type: ignore[union-attr, arg-type]
    for group in groups.values():
        if len(group) == 1:
            yield compiled(group[0])
        else:
            field = group[0].field
            assert isinstance(field, Document)
            yield _exists(field.table, [_at([field.parts]), join(holds(c, StoredNode()) for c in group)])


def _is_one_node(condition: Condition) -> bool:
    """Whether a single node answers: a name without dots, and a condition that nothing missing meets."""
    field = condition.field
    return isinstance(field, Document) and len(field.parts) < 2 and not allows_missing(condition)


# -- attributes -------------------------------------------------------------------------------------------


def _attribute(field: Attribute, condition: Condition) -> Expr:
    value = attribute_sql(field)
    if isinstance(condition, Exists):
        return exp.Not(this=is_null(value))
    parts = [_ATTRIBUTE_SQL[field.kind](value, condition)]
    if allows_missing(condition):
        parts.append(is_null(value.copy()))
    return either(p for p in parts if p != FALSE)


def attribute_sql(field: Attribute) -> Expr:
    """The attribute's value as a column or from columns of `runs`; `duration` in seconds."""
    if field.kind != "duration":
        return column(field.column, RUNS)
    passed = call("date_diff", text("microsecond"), column("created_at", RUNS), column("heartbeat_at", RUNS))
    return exp.paren(exp.Div(this=passed, expression=double(1e6)))


def _text(value: Expr, condition: Condition) -> Expr:
    if isinstance(condition, (Matches, Contains)):
        return on_text(condition, value)
    if isinstance(condition, In):
        found = [c for c in condition.values if isinstance(c, str)]
        return member(value, map(text, dict.fromkeys(found))) if found else FALSE.copy()
    if isinstance(condition, OfType) and "string" in condition.kinds:
        return exp.Not(this=is_null(value))
    if not isinstance(condition, Compare) or not isinstance(condition.value, str):
        return FALSE.copy()
    return compared(value, condition.operator, text(condition.value))


class _Seconds(Value):
    """A DOUBLE of `runs`."""

    def __init__(self, value: Expr) -> None:
        self._value = value

    def is_(self, kind: str) -> Expr:
        return TRUE.copy() if kind == "number" else FALSE.copy()

    def number(self) -> Expr:
        return self._value.copy()

    def digits(self) -> Expr:
        return cast(exp.null(), "VARCHAR")

    def string(self) -> Expr:
        return cast(exp.null(), "VARCHAR")

    def true(self) -> Expr:
        return FALSE.copy()

    def json(self) -> Expr:
        return cast(exp.null(), "JSON")


def _duration(value: Expr, condition: Condition) -> Expr:
    if isinstance(condition, (Size, ElemMatch)):
        return FALSE.copy()
    met = branches(condition, _Seconds(value)).get("number", FALSE.copy())
    return both([exp.Not(this=is_null(value.copy())), met]) if isinstance(condition, OfType) else met


def _time(value: Expr, condition: Condition) -> Expr:
    if isinstance(condition, (Matches, Contains)):
        # Patterns see the spelling W&B's API hands out.
        return on_text(condition, call("strftime", value, word("%Y-%m-%dT%H:%M:%SZ")))
    if isinstance(condition, OfType) and "string" in condition.kinds:
        return exp.Not(this=is_null(value))
    if isinstance(condition, In):
        return either(_within(value, c) for c in condition.values if isinstance(c, str))
    if not isinstance(condition, Compare) or condition.value is None:
        return FALSE.copy()
    if condition.operator == "$eq":
        return _within(value, condition.value)
    return compared(value, condition.operator, _moment(period_of(condition.value)[0]))


def _within(value: Expr, date: str) -> Expr:
    """Equality with a date means any moment of it: `2025-01-31` is that day, a full second that second."""
    start, end = period_of(date)
    return both([compared(value, "$gte", _moment(start)), compared(value.copy(), "$lt", _moment(end))])


def period_of(date: str) -> tuple[datetime, datetime]:
    """The first moment of a date that the parser let through, and the first after it."""
    found = period(date)
    if found is None:  # the parser lets no other through
        raise ValueError(date)
    return found


def _moment(at: datetime) -> Expr:
    return cast(text(at.isoformat()), "TIMESTAMPTZ")


def _tags(value: Expr, condition: Condition) -> Expr:
    if isinstance(condition, (Matches, Contains)):
        return any_of(value, "t", on_text(condition, column("t")))
    if isinstance(condition, Size):
        return equal(call("len", value), condition.size)
    if isinstance(condition, ElemMatch):
        return any_of(call("json_extract", call("to_json", value), word("$[*]")), "e", element(condition, column("e")))
    if isinstance(condition, OfType):
        a_tag = (
            [exp.GT(this=call("len", value), expression=exp.Literal.number(0))] if "string" in condition.kinds else []
        )
        return exp.Not(this=is_null(value.copy())) if ARRAY in condition.kinds else either(a_tag)
    if isinstance(condition, In):
        wanted = [c for c in condition.values if isinstance(c, str)]
        parts = [call("list_has_any", value, array(map(text, dict.fromkeys(wanted))))] if wanted else []
        return either([*parts, *(_same_tags(value.copy(), c) for c in condition.values if isinstance(c, list))])
    if not isinstance(condition, Compare):
        return FALSE.copy()
    if isinstance(condition.value, list):
        return _same_tags(value, condition.value)
    if not isinstance(condition.value, str):
        return FALSE.copy()
    if condition.operator == "$eq":
        return call("list_contains", value, text(condition.value))
    return any_of(value, "t", compared(column("t"), condition.operator, text(condition.value)))


def _same_tags(value: Expr, wanted: list[Any]) -> Expr:
    if not all(isinstance(tag, str) for tag in wanted):
        return FALSE.copy()
    return equal(value, cast(array(map(text, wanted)), "VARCHAR[]"))


_ATTRIBUTE_SQL = {"text": _text, "time": _time, "tags": _tags, "duration": _duration}


# -- config and summary -----------------------------------------------------------------------------------


def _document(field: Document, condition: Condition) -> Expr:
    places = [field.parts] if field.exact else readings(field.parts)
    direct = [_at(places), holds(condition, StoredNode())]
    # Places on the way at which an array may stand, and the names that remain below each.
    above = {field.parts[:i]: field.parts[i:] for i in range(1, len(field.parts))}
    an_array = [_at(list(above)), StoredNode().is_(ARRAY)] if above else []
    walks = [(_at([at]), walked(rest, condition, StoredNode().json())) for at, rest in above.items()]
    through = [*an_array, case(*walks, default=FALSE.copy()) if len(walks) > 1 else walks[0][1]] if walks else []
    indexed = [at for at, rest in above.items() if INDEX.fullmatch(rest[0])]
    if indexed:
        # A pointer such as /x/0 may lead into an array, where other rules hold: there only the walk answers.
        inside = _exists(field.table, [_at(indexed), StoredNode().is_(ARRAY)])
        here = both([_exists(field.table, direct), exp.Not(this=inside)])
        found = either([here, _exists(field.table, through)])
    else:
        found = _exists(field.table, direct, *([through] if walks else []))
    if not allows_missing(condition):
        return found
    there = _exists(field.table, [_at(places)], *([[part.copy() for part in an_array]] if walks else []))
    return either([found, exp.Not(this=there)])


def _at(places: Sequence[Sequence[str]]) -> Expr:
    pointers = [pointer(place) for place in places]
    path = column("path", "n")
    return member(path, map(text, pointers)) if len(pointers) > 1 else equal(path, pointers[0])


def readings(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What a dotted name can mean: nested names, or names of which some hold dots; of more than six parts only one
    stretch of dots may belong to a name.

    Names with dots are looked for in objects only, so not with a number below them, which may be an index.

    >>> readings(("a", "b", "c"))
    [('a', 'b', 'c'), ('a.b', 'c'), ('a', 'b.c'), ('a.b.c',)]
    """
    n = len(parts)
    if n <= _MOST_PARTS:
        # Bit i of `kept` says that the dot after part i belongs to a name.
        joined = [_with_dots(parts, kept) for kept in range(1, 1 << max(n - 1, 0))]
    else:
        joined = [
            (*parts[:start], ".".join(parts[start : start + length]), *parts[start + length :])
            for length in range(2, n + 1)
            for start in range(n - length + 1)
        ]
    return [parts, *(names for names in joined if not any(INDEX.fullmatch(name) for name in names[1:]))]


def _with_dots(parts: tuple[str, ...], kept: int) -> tuple[str, ...]:
    names = [parts[0]]
    for i, part in enumerate(parts[1:]):
        if kept >> i & 1:
            names[-1] += f".{part}"
        else:
            names.append(part)
    return tuple(names)


def _exists(table: str, *alternatives: Sequence[Expr]) -> Expr:
    """Whether the run has a live node, under the alias n, that meets all conditions of one of the alternatives, each of
    which reads its own stretch of the nodes."""
    found: exp.Query | None = None
    for conditions in alternatives:
        nodes = exp.alias_(exp.table_(f"{table}_live", db="raw"), "n", table=True)
        one = exp.select(column("rid", "n")).from_(nodes, copy=False).where(*conditions, copy=False)
        found = one if found is None else exp.Union(this=found, expression=one, distinct=False)
    return exp.In(this=column("rid", RUNS), query=exp.Subquery(this=found))
