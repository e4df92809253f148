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
    whole,
    word,
)
from mirror.query.filters.tree import (
    Compare,
    Condition,
    Contains,
    ElemMatch,
    Exists,
    In,
    Matches,
    Mod,
    OfType,
    Size,
)

_EXACT = 2**53
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBERS = ("UBIGINT", "BIGINT", "DOUBLE", "HUGEINT", "UHUGEINT")
_OR_EQUAL = ("$eq", "$gte", "$lte")
_WHOLE_LISTS = (Size, ElemMatch)
_INT, _LONG = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)
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
        return equal(column("type", "n"), word(kind))

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
            return member(self._type(), map(word, _NUMBERS))
        if kind == "nonfinite":  # inside arrays these are the strings already
            return FALSE.copy()
        names = {"null": "NULL", "bool": "BOOLEAN", "string": "VARCHAR", ARRAY: "ARRAY", "object": "OBJECT"}
        return equal(self._type(), word(names[kind]))

    def number(self) -> Expr:
        return _nearest(self.value.copy())

    def digits(self) -> Expr:
        return cast(self.value.copy(), "VARCHAR")

    def string(self) -> Expr:
        return call("json_extract_string", self.value.copy(), word("$"))

    def true(self) -> Expr:
        return equal(self.digits(), word("true"))

    def json(self) -> Expr:
        return self.value.copy()


def holds(condition: Condition, value: Value, *, elements: bool = True) -> Expr:
    """Whether the condition holds for a value that is there. Missing values are `allows_missing`'s business.

    `elements` says whether an array may answer through its elements."""
    if isinstance(condition, Exists):
        return TRUE.copy()
    if isinstance(condition, _WHOLE_LISTS):
        return case((value.is_(ARRAY), _of_list(condition, value)), default=FALSE.copy())
    found = branches(condition, value)
    if elements:
        inner = Json(column("e"))
        inside = _by_type(branches(condition, inner), inner)
        if inside is not None:
            through = any_of(call("json_extract", value.json(), word("$[*]")), "e", inside)
            found[ARRAY] = either([found[ARRAY], through]) if ARRAY in found else through
    return _by_type(found, value) or FALSE.copy()


def _of_list(condition: Condition, value: Value) -> Expr:
    if isinstance(condition, Size):
        return equal(call("json_array_length", value.json()), condition.size)
    assert isinstance(condition, ElemMatch)
    from mirror.query.filters.lists import element

    return any_of(call("json_extract", value.json(), word("$[*]")), "e", element(condition, column("e")))


def allows_missing(condition: Condition) -> bool:
    """Whether the condition holds where there is no value: null, `$in` with null, `$gte` and `$lte` null."""
    if isinstance(condition, In):
        return None in condition.values
    return isinstance(condition, Compare) and condition.value is None and condition.operator in _OR_EQUAL


def _by_type(found: dict[str, Expr], value: Value) -> Expr | None:
    if not found:
        return None
    return case(*((value.is_(kind), met) for kind, met in found.items()), default=FALSE.copy())


def branches(condition: Condition, value: Value) -> dict[str, Expr]:
    """For each type of stored value that can meet the condition: when it does."""
    if isinstance(condition, (Matches, Contains)):
        found = {"string": on_text(condition, value.string())}
        # Inside JSON text the non-finite numbers are strings already.
        return found if isinstance(value, Json) else found | {"nonfinite": on_text(condition, _spelled(value))}
    if isinstance(condition, In):
        return _in(list(condition.values), value)
    if isinstance(condition, OfType):
        return _of_types(condition.kinds, value)
    if isinstance(condition, Mod):
        return {"number": _mod(condition, value)}
    assert isinstance(condition, Compare)
    operator, constant = condition.operator, condition.value
    if isinstance(constant, bool):
        number = case((value.true(), whole(1)), default=whole(0))
        return {"bool": compared(number, operator, whole(int(constant)))}
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


def on_text(condition: Matches | Contains, value: Expr) -> Expr:
    """Whether a string meets the condition."""
    if isinstance(condition, Matches):
        return call("regexp_matches", value, text(condition.pattern))
    return call("contains", value, text(condition.text))


def _of_types(kinds: frozenset[str], value: Value) -> dict[str, Expr]:
    """MongoDB's types. JSON does not tell 1 from 1.0: whole numbers of 32 bits count as int, of 64 as long."""
    found: dict[str, Expr] = {kind: TRUE.copy() for kind in kinds & {"null", "bool", "string", ARRAY, "object"}}
    if "string" in kinds and isinstance(value, Node):
        found["nonfinite"] = TRUE.copy()
    if "number" in kinds or {"int", "long", "double"} <= kinds:
        found["number"] = TRUE.copy()
    elif kinds & {"int", "long", "double"}:
        integral = _whole(value)
        sizes = [
            (is_null(integral), "double" in kinds),
            (exp.Between(this=integral.copy(), low=whole(_INT[0]), high=whole(_INT[1])), "int" in kinds),
            (exp.Between(this=integral.copy(), low=whole(_LONG[0]), high=whole(_LONG[1])), "long" in kinds),
        ]
        known = [(is_so, (TRUE if wanted else FALSE).copy()) for is_so, wanted in sizes]
        found["number"] = case(*known, default=(TRUE if "double" in kinds else FALSE).copy())
    return found


def _whole(value: Value) -> Expr:
    """A whole number of at most 38 digits as HUGEINT, NULL for others."""
    number = value.number()
    cut = exp.EQ(this=number, expression=call("trunc", number.copy()))
    return call("coalesce", _hugeint(_digits_only(value)), case((cut, _hugeint(number.copy())), default=exp.null()))


def _digits_only(value: Value) -> Expr:
    return call("nullif", call("regexp_extract", value.digits(), word("^-?[0-9]+$")), word(""))


def _hugeint(value: Expr) -> Expr:
    return exp.TryCast(this=value, to=exp.DataType.build("HUGEINT", dialect="duckdb"))


def _mod(condition: Mod, value: Value) -> Expr:
    """Only what fits in 64 bits after cutting off the fraction has a remainder."""
    cut = call("coalesce", _hugeint(_digits_only(value)), _hugeint(call("trunc", value.number())))
    fits = exp.Between(this=cut, low=whole(_LONG[0]), high=whole(_LONG[1]))
    rest = exp.Mod(this=exp.paren(cut.copy()), expression=_hugeint(whole(condition.divisor)))
    return case((fits, exp.EQ(this=exp.paren(rest), expression=whole(condition.remainder))), default=FALSE.copy())


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
        (call("isnan", value.number()), word("NaN")),
        (exp.GT(this=value.number(), expression=whole(0)), word("Infinity")),
        default=word("-Infinity"),
    )


def _number(value: Value, operator: str, constant: int | float) -> Expr:
    """Exact comparison of numbers. Up to 2^53 the nearest double decides: rounding crosses no such number."""
    if abs(constant) < _EXACT:
        return compared(value.number(), operator, double(float(constant)))
    exact = int(constant)  # a double beyond 2^53 is an integer
    digits = _digits_only(value)
    by_digits = compared(cast(digits, "BIGNUM"), operator, integer(exact))
    by_double = _double_against(value.number(), operator, exact)
    return case((exp.Not(this=is_null(digits.copy())), by_digits), default=by_double)


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
            equal(call("json_type", at), word("ARRAY")),
            equal(call("json_array_length", at.copy()), len(constant)),
            *(_same(document, f"{pointer}/{i}", c) for i, c in enumerate(constant)),
        ]
        return both(parts)
    if isinstance(constant, dict):
        parts = [
            equal(call("json_type", at), word("OBJECT")),
            equal(call("len", call("json_keys", at.copy())), len(constant)),
            *(_same(document, f"{pointer}/{escaped(name)}", c) for name, c in constant.items()),
        ]
        return both(parts)
    value = Json(at)
    return _by_type(branches(Compare(_NOWHERE, "$eq", constant, ""), value), value) or FALSE.copy()


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


_NOWHERE: Any = None  # a comparison inside a document has no field of its own
