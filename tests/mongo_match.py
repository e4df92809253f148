"""A second, independent reading of docs/filters.md in plain Python, after MongoDB's documented rules.

It walks documents where the product asks tables, so the two can only agree on the meaning. Patterns go through
Python's `re`, which agrees with RE2 on the patterns the tests use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction
from typing import Any

MISSING = object()
SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
ROOTS = ("config", "summary_metrics")
DATES = ("created_at", "heartbeat_at", "updated_at")
CODES = {1: "double", 2: "string", 3: "object", 4: "array", 8: "bool", 10: "null", 16: "int", 18: "long"}

Reached = tuple[Any, bool]
"""A value (or MISSING) and whether it answers through its elements, too."""


def matches(run: dict[str, Any], query: dict[str, Any]) -> bool:
    """`run` has attributes under W&B's names and `config` and `summary_metrics` as documents."""
    return _all(query, lambda name: _values(run, name))


def _all(query: dict[str, Any], values: Any) -> bool:
    """`values(name)` gives what stands at a name."""
    return all(_one(name, wanted, values) for name, wanted in query.items())


def _one(name: str, wanted: Any, values: Any) -> bool:
    if name == "$and":
        return all(_all(q, values) for q in wanted)
    if name == "$or":
        return any(_all(q, values) for q in wanted)
    if name == "$nor":
        return not any(_all(q, values) for q in wanted)
    if name == "$not":
        return not _all(wanted, values)
    return _operators(values(name), wanted, name in DATES)


def _operators(found: list[Reached], wanted: Any, dated: bool) -> bool:
    if not (isinstance(wanted, dict) and any(k.startswith("$") for k in wanted)):
        wanted = {"$eq": wanted}
    return all(_holds(found, op, operand, wanted, dated) for op, operand in wanted.items())


# -- what stands at a name ------------------------------------------------------------------------------------


def _values(run: dict[str, Any], name: str) -> list[Reached]:
    root, _, rest = name.partition(".")
    exact = re.fullmatch(r"(\w+)((?:\[.*\])+)", name, re.S)
    if exact:
        root, parts = exact[1], json.loads("[" + exact[2][1:-1].replace('"]["', '","') + "]", strict=False)
    elif root in ROOTS:
        parts = rest.split(".") if rest else []
        if root == "config" and parts[1:2] == ["value"]:
            del parts[1]
    else:
        return [(MISSING if run.get(name) is None else run[name], True)]
    nested = _walk(run[root], parts)
    literal = [] if exact else [(v, True) for v in _dotted(run[root], parts)]
    on_the_way = [_plainly(run[root], parts[:i]) for i in range(1, len(parts) + 1)]
    absent = on_the_way and on_the_way[-1] is MISSING and not any(isinstance(v, list) for v in on_the_way)
    return literal if literal and absent else nested + literal


def _dotted(document: Any, parts: list[str]) -> Iterator[Any]:
    """Values below names of which at least one holds dots of the path."""
    for names in _joinings(parts):
        value = _plainly(document, names)
        if value is not MISSING and len(names) < len(parts) and not any(n.isdigit() for n in names[1:]):
            yield value


def _joinings(parts: list[str]) -> Iterator[list[str]]:
    if not parts:
        yield []
    for length in range(1, len(parts) + 1):
        for rest in _joinings(parts[length:]):
            yield [".".join(parts[:length]), *rest]


def _plainly(value: Any, names: list[str]) -> Any:
    for name in names:
        value = value.get(name, MISSING) if isinstance(value, dict) else MISSING
    return value


def _walk(value: Any, parts: list[str]) -> list[Reached]:
    if not parts:
        return [(value, True)]
    if isinstance(value, dict):
        return _walk(value[parts[0]], parts[1:]) if parts[0] in value else [(MISSING, True)]
    if not isinstance(value, list):
        return [(MISSING, True)]
    found = [hit for element in value if isinstance(element, dict) for hit in _walk(element, parts)]
    if re.fullmatch("0|[1-9][0-9]*", parts[0]) and int(parts[0]) < len(value):
        element = value[int(parts[0])]
        found += _walk(element, parts[1:]) if parts[1:] else [(element, False)]
    return found


# -- conditions -----------------------------------------------------------------------------------------------


def _holds(found: list[Reached], operator: str, operand: Any, beside: dict[str, Any], dated: bool) -> bool:
    def any_equal(constants: list[Any]) -> bool:
        return any(_holds(found, "$eq", one, {}, dated) for one in constants)

    if operator == "$in":
        return any_equal(operand)
    if operator in ("$nin", "$ne"):
        return not any_equal(operand if operator == "$nin" else [operand])
    if operator == "$not":
        return not _operators(found, operand, dated)
    if operator == "$all":
        each = [one if isinstance(one, dict) and "$elemMatch" in one else {"$eq": one} for one in operand]
        return bool(each) and all(_operators(found, one, dated) for one in each)
    if operator == "$exists":
        return bool(operand) == any(value is not MISSING for value, _ in found)
    if operator == "$size":
        return any(isinstance(value, list) and len(value) == operand for value, _ in found)
    if operator == "$elemMatch":
        return any(isinstance(value, list) and any(_element(e, operand) for e in value) for value, _ in found)
    if operator == "$options":
        return True
    if operator == "$regex":
        operand = re.compile(operand, sum(getattr(re, flag.upper()) for flag in beside.get("$options", "")))
    for value, opens in found:
        if _true_of(value, operator, operand, dated):
            return True
        if opens and isinstance(value, list) and any(_true_of(e, operator, operand, dated) for e in value):
            return True
    return False


def _element(element: Any, query: dict[str, Any]) -> bool:
    first = next(iter(query), "")
    if first.startswith("$") and first not in ("$and", "$or", "$nor"):
        return _operators([(element, False)], query, False)
    return isinstance(element, dict) and _all(query, lambda name: _walk(element, name.split(".")))


def _true_of(value: Any, operator: str, operand: Any, dated: bool) -> bool:
    value = _spelled(value)
    if operator == "$regex":
        return isinstance(value, str) and operand.search(value) is not None
    if operator == "$contains":
        return isinstance(value, str) and operand in value
    if operator == "$type":
        kinds = [CODES.get(kind, kind) for kind in (operand if isinstance(operand, list) else [operand])]
        return bool(_types(value) & set(kinds))
    if operator == "$mod":
        return _remainder(value, *operand)
    if operand is None:
        return operator in ("$eq", "$gte", "$lte") and (value is None or value is MISSING)
    if dated and isinstance(value, str):
        if operator == "$eq":
            return value.startswith(operand.rstrip("Z"))
        value, operand = (datetime.fromisoformat(_full(t)) for t in (value, operand))
    elif _bracket(value) != _bracket(operand) or _bracket(value) is None:
        return False
    if operator == "$eq":
        return _same(value, operand)
    left, right = (v.encode() if isinstance(v, str) else v for v in (value, operand))
    return bool({"$gt": left > right, "$gte": left >= right, "$lt": left < right, "$lte": left <= right}[operator])


def _types(value: Any) -> set[str]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != int(value) or not -(2**63) <= value < 2**63:
            return {"number", "double"}
        return {"number", "int" if -(2**31) <= value < 2**31 else "long"}
    return {"null" if value is None else _bracket(value) or ""}


def _remainder(value: Any, divisor: float, remainder: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    whole, by = int(value), int(divisor)
    if not -(2**63) <= whole < 2**63:
        return False
    quotient = int(Fraction(whole, by))  # towards zero
    return whole - quotient * by == int(remainder)


def _full(date: str) -> str:
    """A date cut short, filled up to its first moment in UTC."""
    full = "0000-01-01T00:00:00"
    text = date.removesuffix("Z")
    return text + full[len(text) :] + "+00:00" if len(text) < 20 else text + "+00:00"


def _bracket(value: Any) -> str | None:
    for kinds, name in (
        ((bool,), "bool"),
        ((int, float), "number"),
        ((str,), "string"),
        ((list,), "array"),
        ((dict,), "object"),
    ):
        if isinstance(value, kinds):
            return name
    return None


def _spelled(value: Any) -> Any:
    return SPECIAL.get(str(value), value) if isinstance(value, float) else value


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 = 1.0, true is no number, the order of names does not count."""
    a, b = _spelled(a), _spelled(b)
    if a is None or b is None:
        return a is b
    if _bracket(a) != _bracket(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return bool(a == b)
