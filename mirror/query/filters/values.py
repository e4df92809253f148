"""What a condition on config and summary values means, in SQL, whatever form the value is stored in.

A stored value is a node of the `config` and `summary` tables (`Node`) or, inside arrays, a JSON value
(`Json`). Both say what type they are and hand out their number or text; a condition is written once,
against that. Values compare within their type only: numbers with numbers (1 = 1.0, exactly, also beyond
2^53), strings with strings, by UTF-8 bytes; NaN and infinities are the strings "NaN", "Infinity",
"-Infinity", as W&B's JSON spells them. A condition on an array holds if it holds for the whole or for one of
its elements.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from typing import Any

from sqlglot import exp
from sqlglot.expressions import Expression as Expr

from mirror.query.filters.sql import (
    FALSE,
    TRUE,
    any_of,
    both,
    call,
    case,
    cast,
    column,
    compared,
    double,
    either,
    equal,
    integer,
    is_null,
    member,
    text,
)
from mirror.query.filters.tree import Compare, In, Matches

Condition = Compare | In | Matches

_EXACT = 2**53
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBERS = ("UBIGINT", "BIGINT", "DOUBLE", "HUGEINT", "UHUGEINT")
_OR_EQUAL = ("$eq", "$gte", "$lte")
ARRAY = "array"


class Value(ABC):
    """A stored value. `type` names: null, bool, number, string, nonfinite, array, object."""

    @abstractmethod
    def is_(self, kind: str) -> Expr: ...

    @abstractmethod
    def number(self) -> Expr:
        """The nearest DOUBLE of a number, infinite if it is beyond them all."""

    @abstractmethod
    def digits(self) -> Expr:
        """The exact text of a number of which `number` is not exact; of others perhaps."""

    @abstractmethod
    def string(self) -> Expr: ...

    @abstractmethod
    def true(self) -> Expr: ...

    @abstractmethod
    def json(self) -> Expr:
        """The JSON text of an array or an object."""


def _nearest(digits: Expr) -> Expr:
    return exp.TryCast(this=digits, to=exp.DataType.build("DOUBLE"))


class Node(Value):
    """A row of `config` or `summary` under the alias n."""

    def is_(self, kind: str) -> Expr:
        return equal(column("type", "n"), kind)

    def number(self) -> Expr:
        return call("coalesce", column("num", "n"), _nearest(column("str", "n")))

    def digits(self) -> Expr:
        return column("str", "n")

    def string(self) -> Expr:
        return column("str", "n")

    def true(self) -> Expr:
        return equal(column("num", "n"), 1)

    def json(self) -> Expr:
        # DuckDB moves a repeated expression out of the CASE that guards it: none may fail on any row.
        return exp.TryCast(this=column("str", "n"), to=exp.DataType.build("JSON"))


class Json(Value):
    """A JSON value, e.g. the variable of a lambda."""

    def __init__(self, value: Expr) -> None:
        self.value = value

    def _type(self) -> Expr:
        return call("json_type", self.value.copy())

    def is_(self, kind: str) -> Expr:
        if kind == "number":
            return member(self._type(), map(text, _NUMBERS))
        if kind == "nonfinite":  # inside arrays these are the strings already
            return FALSE.copy()
        names = {"null": "NULL", "bool": "BOOLEAN", "string": "VARCHAR", ARRAY: "ARRAY", "object": "OBJECT"}
        return equal(self._type(), names[kind])

    def number(self) -> Expr:
        return _nearest(self.value.copy())

    def digits(self) -> Expr:
        return cast(self.value.copy(), "VARCHAR")

    def string(self) -> Expr:
        return call("json_extract_string", self.value.copy(), text("$"))

    def true(self) -> Expr:
        return equal(self.digits(), "true")

    def json(self) -> Expr:
        return self.value.copy()


def holds(condition: Condition, value: Value, *, elements: bool = True) -> Expr:
    """Whether the condition holds for a value that is there. Missing values are `allows_missing`'s business.

    `elements` says whether an array may answer through its elements."""
    branches = _branches(condition, value)
    if elements:
        inner = Json(column("e"))
        inside = _by_type(_branches(condition, inner), inner)
        if inside is not None:
            through = any_of(call("json_extract", value.json(), text("$[*]")), "e", inside)
            branches[ARRAY] = either([branches[ARRAY], through]) if ARRAY in branches else through
    return _by_type(branches, value) or FALSE.copy()


def allows_missing(condition: Condition) -> bool:
    """Whether the condition holds where there is no value: null, `$in` with null, `$gte` and `$lte` null."""
    if isinstance(condition, In):
        return None in condition.values
    if isinstance(condition, Matches):
        return False
    return condition.value is None and condition.operator in _OR_EQUAL


def _by_type(branches: dict[str, Expr], value: Value) -> Expr | None:
    if not branches:
        return None
    return case(*((value.is_(kind), found) for kind, found in branches.items()), default=FALSE.copy())


def _branches(condition: Condition, value: Value) -> dict[str, Expr]:
    """For each type of stored value that can meet the condition: when it does."""
    if isinstance(condition, Matches):
        found = call("regexp_matches", value.string(), text(condition.pattern))
        special = call("regexp_matches", _spelled(value), text(condition.pattern))
        return {"string": found} | ({} if isinstance(value, Json) else {"nonfinite": special})
    if isinstance(condition, In):
        return _in(list(condition.values), value)
    operator, constant = condition.operator, condition.value
    if isinstance(constant, bool):
        number = case((value.true(), exp.Literal.number(1)), default=exp.Literal.number(0))
        return {"bool": compared(number, operator, exp.Literal.number(int(constant)))}
    if isinstance(constant, (int, float)):
        return {"number": _number(value, operator, constant)}
    if isinstance(constant, str):
        found = {"string": compared(value.string(), operator, text(constant))}
        if isinstance(value, Node) and (operator != "$eq" or constant in _NONFINITE):
            found["nonfinite"] = compared(_spelled(value), operator, text(constant))
        return found
    if constant is None:
        return {"null": TRUE.copy()} if operator in _OR_EQUAL else {}
    return {ARRAY if isinstance(constant, list) else "object": _same(value.json(), "", constant)}


def _in(constants: list[Any], value: Value) -> dict[str, Expr]:
    found: dict[str, Expr] = {}
    strings = [c for c in constants if isinstance(c, str)]
    numbers = [c for c in constants if isinstance(c, (int, float)) and not isinstance(c, bool)]
    small = [c for c in numbers if abs(c) < _EXACT]
    large = [c for c in numbers if abs(c) >= _EXACT]
    if strings:
        found["string"] = member(value.string(), map(text, dict.fromkeys(strings)))
        if isinstance(value, Node) and any(s in _NONFINITE for s in strings):
            found["nonfinite"] = member(_spelled(value), map(text, dict.fromkeys(strings)))
    if numbers:
        parts = [_number(value, "$eq", c) for c in dict.fromkeys(large)]
        if small:
            parts.append(member(value.number(), map(double, dict.fromkeys(float(c) for c in small))))
        found["number"] = either(parts)
    booleans = {c for c in constants if isinstance(c, bool)}
    if booleans:
        found["bool"] = TRUE.copy() if len(booleans) == 2 else _truth(value, booleans.pop())
    if None in constants:
        found["null"] = TRUE.copy()
    for kind, type_ in ((ARRAY, list), ("object", dict)):
        same = [_same(value.json(), "", c) for c in constants if isinstance(c, type_)]
        if same:
            found[kind] = either(same)
    return found


def _truth(value: Value, wanted: bool) -> Expr:
    return value.true() if wanted else exp.Not(this=exp.paren(value.true()))


def _spelled(value: Value) -> Expr:
    """A non-finite number as the string that W&B's JSON spells it with."""
    return case(
        (call("isnan", value.number()), text("NaN")),
        (exp.GT(this=value.number(), expression=exp.Literal.number(0)), text("Infinity")),
        default=text("-Infinity"),
    )


def _number(value: Value, operator: str, constant: int | float) -> Expr:
    """Exact comparison of numbers. Up to 2^53 the nearest double decides: rounding crosses no such number."""
    if abs(constant) < _EXACT:
        return compared(value.number(), operator, double(float(constant)))
    exact = int(constant)  # a double beyond 2^53 is an integer
    whole = call("nullif", call("regexp_extract", value.digits(), text("^-?[0-9]+$")), text(""))
    by_digits = compared(cast(whole, "BIGNUM"), operator, integer(exact))
    by_double = _double_against(value.number(), operator, exact)
    return case((exp.Not(this=is_null(whole.copy())), by_digits), default=by_double)


def _near(exact: int) -> float:
    try:
        return float(exact)
    except OverflowError:
        return sys.float_info.max if exact > 0 else -sys.float_info.max


def _double_against(number: Expr, operator: str, exact: int) -> Expr:
    """A DOUBLE against an integer that may lie between two doubles or beyond all of them."""
    near = _near(exact)
    if int(near) == exact:
        return compared(number, operator, double(near))
    if operator == "$eq":
        return FALSE.copy()
    # near > exact: every double >= near is above; near < exact: every double <= near is below.
    above = operator in ("$gt", "$gte")
    if int(near) > exact:
        return compared(number, "$gte" if above else "$lt", double(near))
    return compared(number, "$gt" if above else "$lte", double(near))


def _same(document: Expr, pointer: str, constant: Any) -> Expr:
    """Whether the JSON at a pointer equals a constant; the order of an object's names does not count."""
    at = call("json_extract", document.copy(), text(pointer)) if pointer else document.copy()
    if isinstance(constant, list):
        parts = [
            equal(call("json_type", at), "ARRAY"),
            equal(call("json_array_length", at.copy()), len(constant)),
            *(_same(document, f"{pointer}/{i}", c) for i, c in enumerate(constant)),
        ]
        return both(parts)
    if isinstance(constant, dict):
        parts = [
            equal(call("json_type", at), "OBJECT"),
            equal(call("len", call("json_keys", at.copy())), len(constant)),
            *(_same(document, f"{pointer}/{escaped(name)}", c) for name, c in constant.items()),
        ]
        return both(parts)
    value = Json(at)
    return _by_type(_branches(Compare(_NOWHERE, "$eq", constant, ""), value), value) or FALSE.copy()


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


_NOWHERE: Any = None  # a comparison inside a document has no field of its own
