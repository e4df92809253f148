"""The key catalogue of a run as W&B serves it (`historyKeys`), kept up as rows arrive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirror.server.rows import dumps, parse_row
from mirror.store import cellform
from mirror.store.cellform import (
    BOOL,
    DICT,
    EMPTY,
    INT,
    KINDS,
    LIST,
    MEDIA,
    NONFINITE,
    NULL,
    STRING,
    Codes,
    Floats,
    Ints,
)  # fmt: skip
from mirror.store.cells import CellBatch, decode

_EXACT = 2**53
_TYPES = {BOOL: "bool", STRING: "string", NULL: "nil", LIST: "list", DICT: "map"}
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

    def add(self, rows: Sequence[str] | CellBatch, skip: int = 0) -> None:
        """Count the next rows (JSON texts of objects, or what `cells.decode` made of them) but for the first `skip`."""
        batch = rows if isinstance(rows, CellBatch) else decode(rows)
        cells = batch.table.filter(pc.greater_equal(batch.table.column("row"), skip)) if skip else batch.table
        code, places = cellform.places(cells)
        names = [key if path_id >= 0 else ".".join(cellform.path(key, path_id)) for key, path_id in places]
        ids = {name: i for i, name in enumerate(dict.fromkeys(names))}
        name = np.array([ids[name] for name in names], np.int64)[code]
        order = np.lexsort((cells.column("row").to_numpy(), name))
        name, kind = name[order], cellform.kind_codes(cells)[order]
        number = (kind <= INT) | (kind == NONFINITE)
        keys, values = list(ids), _numbers(cells, order[number])
        self._add_numbers(keys, name[number], kind[number], values)
        self._add_others(keys, name[~number], kind[~number], cells.column("j").take(pa.array(order[~number])))
        steps = values[name[number] == ids["_step"]] if "_step" in ids else values[:0]
        seen = [self.last_step, batch.last_step, *(int(step) for step in steps[np.abs(steps) <= _EXACT])]
        self.last_step = max((step for step in seen if step is not None), default=None)

    def _add_numbers(self, keys: list[str], name: Ints, kind: Codes, values: Floats) -> None:
        """Numbers in order of key, then of row."""
        if not len(name):
            return
        starts = np.flatnonzero(np.concatenate([[True], name[1:] != name[:-1]]))
        ends = np.append(starts[1:], len(name))
        held = [self._numbers.setdefault(keys[n], [0, True, -math.inf]) for n in name[starts].tolist()]
        exact = np.abs(values) <= _EXACT
        last = np.maximum.accumulate(np.where(exact, np.arange(len(name)), -1))
        before = np.concatenate([[-1], last[:-1]])
        begin = np.repeat(starts, ends - starts)
        previous = np.where(before >= begin, values[before], np.repeat([float(h[2]) for h in held], ends - starts))
        rising = np.logical_and.reduceat(values >= previous, starts)
        for numbers, start, end, up in zip(held, starts.tolist(), ends.tolist(), rising.tolist(), strict=True):
            numbers[0] += end - start
            numbers[1] &= up
            if (at := last[end - 1]) >= start:
                numbers[2] = int(values[at]) if kind[at] == INT else float(values[at])

    def _add_others(self, keys: list[str], name: Ints, kind: Codes, j: pa.ChunkedArray) -> None:
        whole = (kind == MEDIA).nonzero()[0]
        types = [_media_type(text) for text in j.take(pa.array(whole)).to_pylist()]
        found = Counter(zip(name[whole].tolist(), types, strict=True))
        plain = (kind != MEDIA) & (kind != EMPTY)
        for pair, n in zip(*np.unique(name[plain] * len(KINDS) + kind[plain], return_counts=True), strict=True):
            found[int(pair) // len(KINDS), _TYPES[int(pair) % len(KINDS)]] += int(n)
        for (at, what), n in found.items():
            counts = self._others.setdefault(keys[at], {})
            counts[what] = counts.get(what, 0) + n

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


def _numbers(cells: pa.Table, at: Ints) -> Floats:
    """Values of number cells; those no double holds exactly as near as one comes."""
    cells = cells.select(["v", "j"]).take(pa.array(at))
    values: Floats = cells.column("v").to_numpy().copy()
    for i in np.flatnonzero(cells.column("v").is_null().to_numpy()).tolist():
        values[i] = float(cells.column("j")[i].as_py())
    return values


def _media_type(text: str) -> str:
    kind = parse_row(text).get("_type")
    return kind if isinstance(kind, str) else "map"
