"""What is inside JSON: names on the way through lists, and the elements that `$elemMatch` looks at."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlglot import exp
from sqlglot.expressions import Expression as Expr

from mirror.query.filters.sql import (
    any_of,
    array,
    both,
    call,
    case,
    cast,
    column,
    either,
    equal,
    is_null,
    lambda_,
    negated,
    text,
    word,
)
from mirror.query.filters.tree import And, Condition, ElemMatch, Exists, Inner, Node, Not, Or
from mirror.query.filters.values import Json, allows_missing, escaped, holds

INDEX = re.compile(r"0|[1-9][0-9]*")


def element(condition: ElemMatch, value: Expr) -> Expr:
    """Whether a JSON value, an element of a list, is what `$elemMatch` looks for."""
    met = _inner(condition.node, value)
    return both([_is_json("OBJECT", value), met]) if condition.objects else met


def _inner(node: Node, value: Expr) -> Expr:
    if isinstance(node, And):
        return both(_inner(part, value) for part in node.parts)
    if isinstance(node, Or):
        return either(_inner(part, value) for part in node.parts)
    if isinstance(node, Not):
        return negated(_inner(node.part, value))
    assert isinstance(node.field, Inner)
    if node.field.parts:
        return walked(node.field.parts, node, value.copy())
    return holds(node, Json(value.copy()), elements=False)


def walked(rest: tuple[str, ...], condition: Condition, start: Expr) -> Expr:
    """Whether a value below the JSON list or object `start`, along the remaining names, meets the condition.

    MongoDB's rules: a name goes into the objects of an array, not into arrays inside it; a number is also
    an index; a value reached by a final index does not open again; what is no object has a missing value
    below."""
    values = array([start])
    closed: Expr | None = None
    for i, name in enumerate(rest):
        child = text(pointer([name]))
        of_objects = call(
            "list_transform",
            call("list_filter", _elements("v"), lambda_("e", _is_json("OBJECT", column("e")))),
            lambda_("e", call("json_extract", column("e"), child.copy())),
        )
        from_array = of_objects
        if INDEX.fullmatch(name):
            hit = call("json_extract", column("v"), child.copy())
            hits = case(
                (both([_is_json("ARRAY", column("v")), exp.Not(this=is_null(hit))]), array([hit.copy()])),
                default=array([]),
            )
            if i == len(rest) - 1:
                closed = _flattened(values.copy(), hits)
            else:
                from_array = call("list_concat", of_objects, hits)
        values = _flattened(
            values,
            case(
                (_is_json("ARRAY", column("v")), from_array),
                (_is_json("OBJECT", column("v")), array([call("json_extract", column("v"), child.copy())])),
                default=array([cast(exp.null(), "JSON")]),
            ),
        )
    value = Json(column("v"))
    met = holds(condition, value)
    if isinstance(condition, Exists):
        met = exp.Not(this=is_null(column("v")))
    elif allows_missing(condition):
        met = either([is_null(column("v")), met])
    found = [any_of(values, "v", met)]
    if closed is not None:
        found.append(any_of(closed, "v", holds(condition, value, elements=False)))
    return either(found)


def _elements(name: str) -> Expr:
    return call("json_extract", column(name), word("$[*]"))


def _is_json(kind: str, value: Expr) -> Expr:
    return equal(call("json_type", value.copy()), word(kind))


def _flattened(values: Expr, each: Expr) -> Expr:
    return call("flatten", call("list_transform", values, lambda_("v", each)))


def pointer(parts: Sequence[str]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join(f"/{escaped(part)}" for part in parts)
