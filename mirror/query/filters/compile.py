"""Tree -> SQL: a boolean expression over one row of the view `runs`.

Config and summary are asked through their node tables (`raw.config_live`, `raw.summary_live`: one row per
value, `path` a JSON pointer), correlated by `runs.rid`. A dotted name is read as nested names and, since
people log literal dots too, as literal names: `config.a.b` finds {"a": {"b": ..}} and {"a.b": ..}. Where an
array stands on the way its JSON text is walked, one array level at a time, as MongoDB does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlglot import exp
from sqlglot.expressions import Expression as Expr

from mirror.query.filters.dates import period
from mirror.query.filters.sql import (
    FALSE,
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
    lambda_,
    member,
    text,
)
from mirror.query.filters.tree import And, Attribute, Document, In, Matches, Node, Or
from mirror.query.filters.values import (
    ARRAY,
    Condition,
    Json,
    allows_missing,
    escaped,
    holds,
)
from mirror.query.filters.values import Node as StoredNode

RUNS = "runs"
_INDEX = re.compile(r"0|[1-9][0-9]*")


def compiled(node: Node) -> Expr:
    """The expression for a tree."""
    if isinstance(node, And):
        return both(compiled(part) for part in node.parts)
    if isinstance(node, Or):
        return either(compiled(part) for part in node.parts)
    if isinstance(node.field, Document):
        return _document(node.field, node)
    return _attribute(node.field, node)


# -- attributes -------------------------------------------------------------------------------------------


def _attribute(field: Attribute, condition: Condition) -> Expr:
    parts = [_ATTRIBUTE_SQL[field.kind](attribute_sql(field), condition)]
    if allows_missing(condition):
        parts.append(is_null(attribute_sql(field)))
    return either(p for p in parts if p != FALSE)


def attribute_sql(field: Attribute) -> Expr:
    """The attribute's value as a column or from columns of `runs`; `duration` in seconds."""
    if field.kind != "duration":
        return column(field.column, RUNS)
    passed = call("date_diff", text("microsecond"), column("created_at", RUNS), column("heartbeat_at", RUNS))
    return exp.paren(exp.Div(this=passed, expression=double(1e6)))


def _text(value: Expr, condition: Condition) -> Expr:
    if isinstance(condition, Matches):
        return call("regexp_matches", value, text(condition.pattern))
    if isinstance(condition, In):
        found = [c for c in condition.values if isinstance(c, str)]
        return member(value, map(text, dict.fromkeys(found))) if found else FALSE.copy()
    if not isinstance(condition.value, str):
        return FALSE.copy()
    return compared(value, condition.operator, text(condition.value))


def _duration(value: Expr, condition: Condition) -> Expr:
    if isinstance(condition, Matches):
        return FALSE.copy()
    if isinstance(condition, In):
        found = [c for c in condition.values if _is_number(c)]
        return member(value, (double(float(c)) for c in found)) if found else FALSE.copy()
    if not _is_number(condition.value):
        return FALSE.copy()
    return compared(value, condition.operator, double(float(condition.value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**1023


def _time(value: Expr, condition: Condition) -> Expr:
    if isinstance(condition, Matches):
        # Patterns see the spelling W&B's API hands out.
        spelled = call("strftime", value, text("%Y-%m-%dT%H:%M:%SZ"))
        return call("regexp_matches", spelled, text(condition.pattern))
    if isinstance(condition, In):
        return either(_within(value, c) for c in condition.values if isinstance(c, str))
    if condition.value is None:
        return FALSE.copy()
    if condition.operator == "$eq":
        return _within(value, condition.value)
    return compared(value, condition.operator, _moment(_period(condition.value)[0]))


def _within(value: Expr, date: str) -> Expr:
    """Equality with a date means any moment of it: `2025-01-31` is that day, a full second that second."""
    start, end = _period(date)
    return both([compared(value, "$gte", _moment(start)), compared(value.copy(), "$lt", _moment(end))])


def _period(date: str) -> tuple[datetime, datetime]:
    found = period(date)
    if found is None:  # the parser lets no other through
        raise ValueError(date)
    return found


def _moment(at: datetime) -> Expr:
    return cast(text(at.isoformat()), "TIMESTAMPTZ")


def _tags(value: Expr, condition: Condition) -> Expr:
    if isinstance(condition, Matches):
        return any_of(value, "t", call("regexp_matches", column("t"), text(condition.pattern)))
    if isinstance(condition, In):
        wanted = [c for c in condition.values if isinstance(c, str)]
        parts = [call("list_has_any", value, array(map(text, dict.fromkeys(wanted))))] if wanted else []
        return either([*parts, *(_same_tags(value.copy(), c) for c in condition.values if isinstance(c, list))])
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
    places = [pointer(reading) for reading in readings(field.parts)]
    here = member(_path(), map(text, places)) if len(places) > 1 else equal(_path(), places[0])
    direct = holds(condition, StoredNode())
    # Places on the way at which an array may stand, and the names that remain below each.
    above = {pointer(field.parts[:i]): field.parts[i:] for i in range(1, len(field.parts))}
    an_array = equal(column("type", "n"), ARRAY)
    walks = [(both([equal(_path(), at), an_array.copy()]), _walked(rest, condition)) for at, rest in above.items()]
    indexed = [at for at, rest in above.items() if _INDEX.fullmatch(rest[0])]
    if indexed:
        # A pointer such as /x/0 may lead into an array, where other rules hold: there only the walk answers.
        inside = _exists(field.table, [member(_path(), map(text, indexed)), an_array.copy()])
        walked = _exists(field.table, [member(_path(), map(text, above)), case(*walks, default=FALSE.copy())])
        found = either([both([_exists(field.table, [here, direct]), exp.Not(this=inside)]), walked])
    elif walks:
        either_way = case((here, direct), *walks, default=FALSE.copy())
        found = _exists(field.table, [member(_path(), map(text, [*places, *above])), either_way])
    else:
        found = _exists(field.table, [here, direct])
    if not allows_missing(condition):
        return found
    there = [here.copy()]
    if above:
        there.append(both([member(_path(), map(text, above)), an_array.copy()]))
    return either([found, exp.Not(this=_exists(field.table, [either(there)]))])


def _walked(rest: tuple[str, ...], condition: Condition) -> Expr:
    """Whether a value below the array n.str, along the remaining names, meets the condition.

    MongoDB's rules: a name goes into the objects of an array, not into arrays inside it; a number is also
    an index; a value reached by a final index does not open again; what is no object has a missing value
    below."""
    values = array([StoredNode().json()])
    closed: Expr | None = None
    for i, name in enumerate(rest):
        child = text(pointer([name]))
        of_objects = call(
            "list_transform",
            call("list_filter", _elements("v"), lambda_("e", equal(call("json_type", column("e")), "OBJECT"))),
            lambda_("e", call("json_extract", column("e"), child.copy())),
        )
        from_array = of_objects
        if _INDEX.fullmatch(name):
            hit = call("json_extract", column("v"), child.copy())
            hits = case(
                (both([_is_json("ARRAY"), exp.Not(this=is_null(hit))]), array([hit.copy()])),
                default=array([]),
            )
            if i == len(rest) - 1:
                closed = _flattened(values.copy(), hits)
            else:
                from_array = call("list_concat", of_objects, hits)
        values = _flattened(
            values,
            case(
                (_is_json("ARRAY"), from_array),
                (_is_json("OBJECT"), array([call("json_extract", column("v"), child.copy())])),
                default=array([cast(exp.null(), "JSON")]),
            ),
        )
    value = Json(column("v"))
    met = holds(condition, value)
    if allows_missing(condition):
        met = either([is_null(column("v")), met])
    found = [any_of(values, "v", met)]
    if closed is not None:
        found.append(any_of(closed, "v", holds(condition, value, elements=False)))
    return either(found)


def _elements(name: str) -> Expr:
    return call("json_extract", column(name), text("$[*]"))


def _is_json(kind: str) -> Expr:
    return equal(call("json_type", column("v")), kind)


def _flattened(values: Expr, each: Expr) -> Expr:
    return call("flatten", call("list_transform", values, lambda_("v", each)))


def _path() -> Expr:
    return column("path", "n")


def readings(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What a dotted name can mean: nested names, or with one stretch of dots that belong to a name.

    Names with dots are looked for in objects only, so not with a number below them, which may be an index.

    >>> readings(("a", "b", "c"))
    [('a', 'b', 'c'), ('a.b', 'c'), ('a', 'b.c'), ('a.b.c',)]
    """
    joined = [
        (*parts[:start], ".".join(parts[start : start + length]), *parts[start + length :])
        for length in range(2, len(parts) + 1)
        for start in range(len(parts) - length + 1)
    ]
    return [parts, *(names for names in joined if not any(_INDEX.fullmatch(name) for name in names[1:]))]


def pointer(parts: Sequence[str]) -> str:
    return "".join(f"/{escaped(part)}" for part in parts)


def _exists(table: str, conditions: Sequence[Expr]) -> Expr:
    """Whether the run has a live node, under the alias n, that meets all conditions."""
    nodes = exp.alias_(exp.table_(f"{table}_live", db="raw"), "n", table=True)
    same_run = exp.EQ(this=column("rid", "n"), expression=column("rid", RUNS))
    found = exp.select(exp.Literal.number(1)).from_(nodes, copy=False)
    return exp.Exists(this=found.where(same_run, *conditions, copy=False))
