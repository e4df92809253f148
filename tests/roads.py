"""What W&B's export format makes of rows: every cell that differs from the rows themselves needs a reason here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Same = Callable[[Any, Any], bool]

ABSENT = type("Absent", (), {"__repr__": lambda self: "ABSENT"})()

LACKS = "a key that a row lacks is null: a file cannot tell it from one that was logged as null"
NESTED = "nested dictionaries come as columns with dotted names"
HIDDEN = "a literal `a.b` and a nested one share a column, and the literal one is kept where a row has both"
SEVERAL = "a key with values of several types is a struct of `_type_` fields, of which one is set"
FIELD = "a field that one dictionary lacks and another has is null"
TEXT = "lists and dictionaries that no one type holds are JSON text"
ROUNDED = "an integer among fractions is a float, as which large ones come back, rounded beyond 2^53"

REASONS = {LACKS, NESTED, HIDDEN, SEVERAL, FIELD, TEXT, ROUNDED}
"""Why `scan_history` gives other values from exports than from rows, all losses of W&B's own format."""


def flat(row: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The row by dotted names, and the reasons that took."""
    found: dict[str, Any] = {}
    needed: set[str] = set()

    def walk(prefix: str, place: dict[str, Any]) -> None:
        for name, value in place.items():
            if isinstance(value, dict) and value and not isinstance(value.get("_type"), str):
                needed.add(NESTED)
                walk(f"{prefix}{name}.", value)
            elif prefix:
                if prefix + name in found:
                    needed.add(HIDDEN)
                found[prefix + name] = value

    walk("", row)
    for name, value in row.items():
        if not isinstance(value, dict) or not value or isinstance(value.get("_type"), str):
            if name in found:
                needed.add(HIDDEN)
            found[name] = value
    return found, needed


def reasons(row: dict[str, Any], exported: dict[str, Any], same: Same) -> Iterator[tuple[str, str | None]]:
    """(key, reason) of every place where a row read from an export differs from `row`; None is no reason at all.

    `same` compares values where the format changes nothing.
    """
    expected, needed = flat(row)
    yield from (("", reason) for reason in needed)
    for key in {*expected, *exported}:
        for reason in _cell(expected.get(key, ABSENT), exported.get(key, ABSENT), same):
            yield key, reason


def _cell(a: Any, b: Any, same: Same, lacking: str = LACKS) -> Iterator[str | None]:
    if a is ABSENT or b is ABSENT:
        yield lacking if a is ABSENT and b is None else None
    elif isinstance(b, dict) and b and all(name.startswith("_type_") for name in b):
        held = [value for value in b.values() if value is not None]
        if len(held) == 1:
            yield SEVERAL
            yield from _cell(a, held[0], same)
        else:
            yield None
    elif isinstance(b, str) and isinstance(a, list | dict):
        yield TEXT if same(json.loads(b), a) else None
    elif isinstance(a, dict) and isinstance(b, dict):
        for name in {*a, *b}:
            yield from _cell(a.get(name, ABSENT), b.get(name, ABSENT), same, FIELD)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from _cell(x, y, same)
    elif not same(a, b):
        rounded = type(a) is int and (isinstance(b, float) or abs(a) > 2**53) and type(b) in (int, float)
        yield ROUNDED if rounded and float(a) == float(b) else None
