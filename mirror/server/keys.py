"""The key catalogue of a run as W&B serves it (`historyKeys`, PROTOCOL 2.3), kept up as rows arrive."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from mirror.server.rows import dumps, parse_row

_EXACT = 2**53


class KeyCatalogue:
    """`{"sets": [], "lastStep": n, "keys": {key: {"typeCounts": [..], "monotonic": .., "previousValue": ..}}}`.

    Nested dictionaries are listed by their leaves under dotted names. NaN and infinities count as numbers:
    they arrive as bare tokens, while a logged string "NaN" counts as a string, which keeps the two apart.
    """

    def __init__(self, document: str | None = None) -> None:
        held: dict[str, Any] = parse_row(document) if document else {}
        self.rows = 0
        """Rows taken in by this object; those behind `document` are not counted."""
        self.last_step: int | None = held.get("lastStep")
        self._counts: dict[str, dict[str, int]] = {}
        self._monotonic: dict[str, bool] = {}
        self._previous: dict[str, float] = {}
        for key, found in held.get("keys", {}).items():
            self._counts[key] = {c["type"]: c["count"] for c in found["typeCounts"]}
            self._monotonic[key] = found["monotonic"]
            if found.get("previousValue") is not None:
                self._previous[key] = found["previousValue"]

    def add(self, lines: Iterable[str | bytes]) -> None:
        for line in lines:
            row = parse_row(line)
            self.rows += 1
            step = row.get("_step")
            if isinstance(step, (int, float)) and math.isfinite(step):
                self.last_step = int(step) if self.last_step is None else max(self.last_step, int(step))
            self._add("", row)

    def _add(self, prefix: str, row: dict[str, Any]) -> None:
        counts, previous = self._counts, self._previous
        for name, value in row.items():
            key = prefix + name
            kind = _kind(value)
            if kind == "map" and value:
                self._add(key + ".", value)
                continue
            of_key = counts.get(key)
            if of_key is None:
                of_key = counts[key] = {}
                self._monotonic[key] = True
            of_key[kind] = of_key.get(kind, 0) + 1
            if kind == "number":
                before = previous.get(key)
                if before is not None and not value >= before:
                    self._monotonic[key] = False
                if -_EXACT <= value <= _EXACT:
                    previous[key] = value

    def document(self) -> dict[str, Any] | None:
        """The catalogue as a JSON value; None if no row was ever logged."""
        if not self._counts:
            return None
        keys = {
            key: {
                "typeCounts": [{"type": kind, "count": n} for kind, n in counts.items()],
                "monotonic": self._monotonic[key] and "number" in counts,
                "previousValue": self._previous.get(key),
            }
            for key, counts in self._counts.items()
        }
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
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    if value is None:
        return "nil"
    if isinstance(value, list):
        return "list"
    kind = value.get("_type")
    return kind if isinstance(kind, str) else "map"
