"""The key catalogue of a run as W&B serves it (`historyKeys`), kept up as rows arrive."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from mirror.server.rows import dumps, parse_row

_EXACT = 2**53
_Numbers = list[Any]
"""Of a key's numbers: how many, whether none was below the one before, the last one that a double holds exactly."""


class KeyCatalogue:
    """`{"sets": [], "lastStep": n, "keys": {key: {"typeCounts": [..], "monotonic": .., "previousValue": ..}}}`.

    Nested dictionaries are listed by their leaves under dotted names. NaN and infinities count as numbers:
    they arrive as bare tokens, while a logged string "NaN" counts as a string, which keeps the two apart.
    """

    def __init__(self, document: str | None = None) -> None:
        held: dict[str, Any] = parse_row(document) if document else {}
        self.last_step: int | None = held.get("lastStep")
        self._numbers: dict[str, _Numbers] = {}
        self._others: dict[str, dict[str, int]] = {}
        for key, found in held.get("keys", {}).items():
            counts = {c["type"]: c["count"] for c in found["typeCounts"]}
            n = counts.pop("number", 0)
            if n:
                previous = found.get("previousValue")
                self._numbers[key] = [n, found["monotonic"], -math.inf if previous is None else previous]
            if counts:
                self._others[key] = counts

    def add(self, line: str | bytes) -> None:
        row = parse_row(line)
        step = row.get("_step")
        if isinstance(step, (int, float)) and math.isfinite(step):
            self.last_step = int(step) if self.last_step is None else max(self.last_step, int(step))
        self._add("", row)

    def _add(self, prefix: str, row: dict[str, Any]) -> None:
        numbers = self._numbers
        for name, value in row.items():
            key = prefix + name if prefix else name
            kind = type(value)
            if kind is float or kind is int:
                held = numbers.get(key)
                if held is None:
                    held = numbers[key] = [0, True, -math.inf]
                held[0] += 1
                if not value >= held[2]:
                    held[1] = False
                if -_EXACT <= value <= _EXACT:
                    held[2] = value
            elif kind is dict and value and not isinstance(value.get("_type"), str):
                self._add(key + ".", value)
            else:
                counts = self._others.setdefault(key, {})
                what = _kind(value)
                counts[what] = counts.get(what, 0) + 1

    def document(self) -> dict[str, Any] | None:
        """The catalogue as a JSON value; None if no row was ever logged."""
        keys: dict[str, dict[str, Any]] = {}
        for key, (n, monotonic, previous) in self._numbers.items():
            counted = [{"type": "number", "count": n}]
            value = previous if math.isfinite(previous) else None
            keys[key] = {"typeCounts": counted, "monotonic": monotonic, "previousValue": value}
        for key, counts in self._others.items():
            found = keys.setdefault(key, {"typeCounts": [], "monotonic": False, "previousValue": None})
            found["typeCounts"] += [{"type": kind, "count": n} for kind, n in counts.items()]
        if not keys:
            return None
        return {"sets": [], "lastStep": -1 if self.last_step is None else self.last_step, "keys": keys}

    def text(self) -> str | None:
        found = self.document()
        return None if found is None else dumps(found).decode()


def from_metrics(metrics: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """A catalogue for a run whose source gave none, from rows (key, numbers, bools, strings, nulls, others, last step,
    last value) of the table `metric`. Which numbers are monotonic is not known."""
    last_step = -1
    keys: dict[str, dict[str, Any]] = {}
    for key, *counts, step, last_value in metrics:
        last_step = max(last_step, -1 if step is None else step)
        found = keys.setdefault(key, {"typeCounts": [], "monotonic": False, "previousValue": None})
        kinds = ("number", "bool", "string", "nil", "map")
        found["typeCounts"] += [{"type": kind, "count": n} for kind, n in zip(kinds, counts, strict=True) if n]
        if last_value is not None and math.isfinite(last_value):
            found["previousValue"] = last_value
    return {"sets": [], "lastStep": last_step, "keys": keys}


def _kind(value: Any) -> str:
    if value is None:
        return "nil"
    if isinstance(value, dict):
        kind = value.get("_type")
        return kind if isinstance(kind, str) else "map"
    return {bool: "bool", str: "string", list: "list"}[type(value)]
