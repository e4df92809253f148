"""The key catalogue of a run's history: counts, bounds and last values per key, updated by batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirror.store import cellform
from mirror.store.cellform import BOOL, EMPTY, INT, KINDS, LIST, NONFINITE, NULL, NUMBER, STRING, Ints, Mask

_COUNTS = {
    "n_number": [NUMBER], "n_int": [INT], "n_bool": [BOOL], "n_string": [STRING], "n_null": [NULL],
    "n_nonfinite": [NONFINITE], "n_json": list(range(LIST, EMPTY)),
}  # fmt: skip


class MetricStats:
    """The rows of table `metric` (schema/tables.sql) for one generation of one run's history. Feed it the
    batches in any order; `load` continues from rows that were stored."""

    def __init__(self) -> None:
        self._place: dict[tuple[str, int], int] = {}
        self._columns = _empty(0)

    def add(self, table: pa.Table, row_offset: int) -> None:
        """Count the cells of a batch (columns of `CELLS`) whose row 0 is the run's row `row_offset`."""
        kind = cellform.kind_codes(table)
        logged = kind != EMPTY
        if not logged.all():
            table, kind = table.filter(pa.array(logged)), kind[logged]
        if not len(table):
            return
        code, places = cellform.places(table)
        row = table.column("row").to_numpy()
        v = np.where(kind <= INT, table.column("v").to_numpy(), np.nan)
        order = _by_code_and_row(code, row, len(places))
        starts = np.flatnonzero(np.diff(code[order], prepend=-1))
        ends = {"first": order[starts], "last": order[np.append(starts[1:], len(order)) - 1]}
        seen = code[ends["first"]]  # a dictionary may hold keys that no cell of the batch has
        counts = np.bincount(code * len(KINDS) + kind, minlength=len(places) * len(KINDS)).reshape(-1, len(KINDS))
        new = {name: counts[seen][:, kinds].sum(axis=1) for name, kinds in _COUNTS.items()}
        for end, at in ends.items():
            new[f"{end}_row"] = row[at] + row_offset
            new[f"{end}_step"], new[f"has_{end}_step"] = _filled(table.column("step").take(pa.array(at)))
        new["last_v"], new["has_last_v"] = _filled(table.column("v").take(pa.array(ends["last"])))
        new["min_v"], new["max_v"] = np.fmin.reduceat(v[order], starts), np.fmax.reduceat(v[order], starts)
        self._merge([places[i] for i in seen.tolist()], new)

    def load(self, rows: pa.Table) -> None:
        """Take over rows of `metric` (one generation of one run)."""
        new: dict[str, npt.NDArray[Any]] = {}
        for name in _empty(0):
            if name.startswith("has_"):
                continue
            new[name], known = _filled(rows.column(name))
            if name.startswith(("min", "max")):
                new[name] = np.where(known, new[name], np.nan)
            new[f"has_{name}"] = known
        places = list(zip(rows.column("key").to_pylist(), rows.column("path_id").to_pylist(), strict=True))
        self._merge(places, new)

    def table(self) -> pa.Table:
        """The columns of `metric` without rid and gen, a row per key, in order of key and path_id."""
        places = sorted(self._place)
        at = np.fromiter(map(self._place.__getitem__, places), np.int64, len(places))
        held = {name: column[at] for name, column in self._columns.items()}
        columns = {
            "key": pa.array([key for key, _ in places], pa.string()),
            "path_id": pa.array([path_id for _, path_id in places], pa.int64()),
            "n": pa.array(np.sum([held[name] for name in _COUNTS], axis=0, dtype=np.int64)),
        }
        for name, column in held.items():
            if name.startswith(("min", "max")):
                columns[name] = pa.array(column, mask=np.isnan(column))
            elif not name.startswith("has_"):
                known = held.get(f"has_{name}")
                columns[name] = pa.array(column, mask=None if known is None else ~known)
        return pa.table(columns)

    def _merge(self, places: list[tuple[str, int]], new: dict[str, npt.NDArray[Any]]) -> None:
        before = len(self._place)
        at = np.fromiter((self._place.setdefault(p, len(self._place)) for p in places), np.int64, len(places))
        held = self._columns
        if grown := len(self._place) - before:
            held = {name: np.append(held[name], column) for name, column in _empty(grown).items()}
        for name in _COUNTS:
            held[name][at] += new[name]
        for end, beyond in (("first", np.less), ("last", np.greater)):
            newer = beyond(new[f"{end}_row"], held[f"{end}_row"][at])
            for name in held:
                if end in name:
                    held[name][at[newer]] = new[name][newer]
        held["min_v"][at] = np.fmin(held["min_v"][at], new["min_v"])
        held["max_v"][at] = np.fmax(held["max_v"][at], new["max_v"])
        self._columns = held


def _by_code_and_row(code: Ints, row: Ints, codes: int) -> Ints:
    """The order of the cells by code, those of one code by row."""
    beside, below = np.diff(code), np.diff(row)
    if ((beside > 0) | (beside == 0) & (below >= 0)).all():  # key after key, as exports come
        return np.arange(len(code))
    if (below < 0).any():
        return np.lexsort((row, code))
    # Sixteen bits are sorted by radix, many times faster.
    return np.argsort(code.astype(np.uint16) if codes < 1 << 16 else code, kind="stable")


def _empty(n: int) -> dict[str, npt.NDArray[Any]]:
    """The columns for n keys that were never seen; `has_x` tells where x is not null."""
    return {
        **{name: np.zeros(n, np.int64) for name in _COUNTS},
        "first_row": np.full(n, np.iinfo(np.int64).max),
        "last_row": np.full(n, -1, np.int64),
        "first_step": np.zeros(n, np.int64),
        "last_step": np.zeros(n, np.int64),
        "last_v": np.zeros(n),
        "min_v": np.full(n, np.nan),
        "max_v": np.full(n, np.nan),
        "has_first_step": np.zeros(n, bool),
        "has_last_step": np.zeros(n, bool),
        "has_last_v": np.zeros(n, bool),
    }


def _filled(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], Mask]:
    """Values with zeros for nulls, and where they are not null."""
    return column.fill_null(0).to_numpy(), column.is_valid().to_numpy()
