"""A second, independent reading of docs/filters.md in plain Python, for the operators of this release.

It walks documents where the product asks tables, so the two can only agree on the meaning. Patterns go through
Python's `re`, which agrees with RE2 on the simple patterns the tests use.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

MISSING = object()
SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def matches(run: dict[str, Any], query: dict[str, Any]) -> bool:
    """`run` has attributes under W&B's names and `config` and `summary_metrics` as documents."""
    return all(_matches_one(run, name, value) for name, value in query.items())


def _matches_one(run: dict[str, Any], name: str, value: Any) -> bool:
    if name == "$and":
        return all(matches(run, q) for q in value)
    if name == "$or":
        return any(matches(run, q) for q in value)
    operators = [(k, v) for k, v in value.items() if k.startswith("$")] if isinstance(value, dict) else []
    found = _values(run, name)
    dated = name in ("created_at", "heartbeat_at")
    return all(_holds(found, op, operand, dated) for op, operand in operators or [("$eq", value)])


def _values(run: dict[str, Any], name: str) -> list[tuple[Any, bool]]:
    """What stands at a name: pairs of a value (or MISSING) and whether it answers through its elements."""
    root, _, rest = name.partition(".")
    if root not in ("config", "summary_metrics"):
        return [(MISSING if run.get(name) is None else run[name], True)]
    parts = rest.split(".") if rest else []
    if root == "config" and parts[1:2] == ["value"]:
        del parts[1]
    nested = _walk(run[root], parts)
    literal = []
    for length in range(2, len(parts) + 1):
        for start in range(len(parts) - length + 1):
            names = [*parts[:start], ".".join(parts[start : start + length]), *parts[start + length :]]
            value = _plainly(run[root], names)
            if value is not MISSING and not any(part.isdigit() for part in names[1:]):
                literal.append((value, True))
    on_the_way = [_plainly(run[root], parts[:i]) for i in range(1, len(parts) + 1)]
    absent = on_the_way and on_the_way[-1] is MISSING and not any(isinstance(v, list) for v in on_the_way)
    return literal if literal and absent else nested + literal


def _plainly(value: Any, names: list[str]) -> Any:
    for name in names:
        value = value.get(name, MISSING) if isinstance(value, dict) else MISSING
    return value


def _walk(value: Any, parts: list[str]) -> list[tuple[Any, bool]]:
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


def _holds(found: list[tuple[Any, bool]], operator: str, operand: Any, dated: bool) -> bool:
    if operator == "$in":
        return any(_holds(found, "$eq", one, dated) for one in operand)
    for value, opens in found:
        if _true_of(value, operator, operand, dated):
            return True
        if opens and isinstance(value, list) and any(_true_of(e, operator, operand, dated) for e in value):
            return True
    return False


def _true_of(value: Any, operator: str, operand: Any, dated: bool) -> bool:
    if isinstance(value, float) and str(value) in SPECIAL:
        value = SPECIAL[str(value)]
    if operator == "$regex":
        return isinstance(value, str) and re.search(operand, value) is not None
    if operand is None:
        return operator in ("$eq", "$gte", "$lte") and (value is None or value is MISSING)
    if dated and isinstance(value, str):
        if operator == "$eq":
            return value.startswith(operand.rstrip("Z"))
        value, operand = (datetime.fromisoformat(_whole(t)) for t in (value, operand))
    elif _bracket(value) != _bracket(operand) or _bracket(value) is None:
        return False
    if operator == "$eq":
        return _same(value, operand)
    left, right = (v.encode() if isinstance(v, str) else v for v in (value, operand))
    return bool({"$gt": left > right, "$gte": left >= right, "$lt": left < right, "$lte": left <= right}[operator])


def _whole(date: str) -> str:
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


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 = 1.0, true is no number, the order of names does not count."""
    if isinstance(a, float) and str(a) in SPECIAL:
        a = SPECIAL[str(a)]
    if a is None or b is None:
        return a is b
    if _bracket(a) != _bracket(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return bool(a == b)
