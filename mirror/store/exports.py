"""W&B's Parquet history exports as cells: wide files, a column a key, become the tall form of `cells`.

What a file cannot say is decided as W&B's own writer would have it: its SDK writes integral floats as integers, so
an integral DOUBLE is an `int` (below 1e21, from where on its encoder writes exponents); a missing value is a key that
was not logged. Whether nothing else could have been meant is told by the key catalogue (`KeyCatalogue.exportable`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mirror.errors import SourceError
from mirror.store.cellform import (
    BOOL,
    CELLS,
    DICT,
    INT,
    KINDS,
    LIST,
    MEDIA,
    NONFINITE,
    NUMBER,
    STRING,
    Codes,
    Floats,
    Ints,
)
from mirror.store.cells import CellBatch, fingerprint
from mirror.store.rebuild import rows_as_json

_BATCH_CELLS = 400_000
_EXACT = 2.0**53
_EXPONENTS = 1e21  # from here on Go's encoder, which W&B's SDK uses, writes exponents
_UNION = "_type_"


class Export:
    """The files of one run's export, in the order of their steps. Raises SourceError if that is not to be had."""

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            files = [pq.ParquetFile(path) for path in paths]
        except (OSError, pa.ArrowException) as e:
            raise SourceError(f"an export is no Parquet file ({e})", e) from e
        # A run without rows is a file without columns.
        found = [(file, _steps(file)) for file in files if file.metadata.num_columns and file.metadata.num_rows]
        found.sort(key=lambda f: f[1])
        for (_, before), (_, after) in pairwise(found):
            if after[0] < before[1]:
                raise SourceError("the files of an export overlap")
        self._files = [file for file, _ in found]
        self.rows = sum(file.metadata.num_rows for file in self._files)
        self.last_step: int | None = None
        self._last_fingerprint = ""

    def is_last(self, row: str) -> bool:
        """Whether a row, as JSON, equals the last one that was read."""
        return fingerprint(row) == self._last_fingerprint

    def close(self) -> None:
        for file in self._files:
            file.close()

    def batches(self) -> Iterator[CellBatch]:
        """The rows as cells, some at a time. Raises SourceError for damaged files and steps that go backwards."""
        for file in self._files:
            rows = max(1, _BATCH_CELLS // file.metadata.num_columns)
            try:
                for piece in file.iter_batches(batch_size=rows):
                    batch = cells_of(piece)
                    if (
                        self.last_step is not None
                        and batch.first_step is not None
                        and batch.first_step < self.last_step
                    ):
                        raise SourceError("the steps of an export go backwards")
                    if batch.last_step is not None:
                        self.last_step = batch.last_step
                    self._last_fingerprint = batch.last_fingerprint
                    yield batch
            except (OSError, pa.ArrowException) as e:
                raise SourceError(f"an export is damaged ({e})", e) from e


def _steps(file: pq.ParquetFile) -> tuple[float, float]:
    """First and last step of a file, from its footer or its column."""
    metadata = file.metadata
    names = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    at = names.get("_step")
    if at is None:
        raise SourceError("an export has no column `_step`")
    stats = [metadata.row_group(i).column(at).statistics for i in range(metadata.num_row_groups)]
    if all(s is not None and s.has_min_max for s in stats):
        return min(s.min for s in stats), max(s.max for s in stats)
    column = file.read(["_step"])["_step"].drop_null().to_numpy()
    return (float(column.min()), float(column.max())) if len(column) else (0.0, 0.0)


def cells_of(rows: pa.RecordBatch) -> CellBatch:
    """Consecutive rows of a wide table as cells."""
    parts = _Parts(rows.num_rows)
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        parts.add(name, column)
    table, first, last = parts.table()
    at_end = table.filter(pc.equal(table["row"], rows.num_rows - 1))
    return CellBatch(rows.num_rows, table, first, last, fingerprint(next(iter(rows_as_json(at_end)), "{}")))


class _Parts:
    """Cells, a column after the other."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._names: list[str] = []
        self._code: list[Ints] = []
        self._row: list[Ints] = []
        self._kind: list[Codes] = []
        self._v: list[Floats] = []
        self._j: list[pa.Array] = []
        self._step = np.zeros(rows, np.int64)
        self._has_step = np.zeros(rows, bool)
        self._ts = np.zeros(rows, np.int64)
        self._has_ts = np.zeros(rows, bool)

    def add(self, name: str, column: pa.Array) -> None:
        if pa.types.is_struct(column.type) and all(f.name.startswith(_UNION) for f in column.type):
            for field in column.type:  # one of them is set
                self.add(name, _field(column, field.name))
            return
        at: Ints = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        if not len(at):
            return
        kind, v, j = _values(column.drop_null())
        self._names.append(name)
        self._code.append(np.full(len(at), len(self._names) - 1, np.int32))
        self._row.append(at)
        self._kind.append(kind)
        self._v.append(v)
        self._j.append(j)
        if name == "_step":
            good = (kind == INT) & (np.abs(v) <= _EXACT)
            self._step[at[good]], self._has_step[at[good]] = v[good].astype(np.int64), True
        elif name == "_timestamp":
            good = (kind <= INT) & (np.abs(v) < 253402300800)
            self._ts[at[good]], self._has_ts[at[good]] = np.rint(v[good] * 1e6).astype(np.int64), True

    def table(self) -> tuple[pa.Table, int | None, int | None]:
        if not self._names:
            return CELLS.empty_table(), None, None
        code, row = np.concatenate(self._code), np.concatenate(self._row)
        kind, v = np.concatenate(self._kind), np.concatenate(self._v)
        names = {name: i for i, name in enumerate(dict.fromkeys(self._names))}
        place = np.array([names[name] for name in self._names], np.int32)
        # A dotted column was a nested dictionary: which of its dots were borders, a file does not tell.
        borders = np.array([(1 << name.count(".")) - 1 if name.count(".") <= 62 else 0 for name in self._names])
        columns = [
            pa.DictionaryArray.from_arrays(place[code], pa.array(names, pa.string())),
            pa.array(borders[code]),
            pa.array(row),
            pa.array(self._step[row], mask=~self._has_step[row]),
            pa.array(self._ts[row], mask=~self._has_ts[row]).cast(CELLS.field("ts").type),
            pa.DictionaryArray.from_arrays(kind, pa.array(KINDS)),
            pa.array(v, mask=~((kind <= BOOL) | (kind == NONFINITE)) | np.isinf(v) & (kind == INT)),
            pa.concat_arrays(self._j),
        ]
        seen = self._step[self._has_step]
        first, last = (int(seen[0]), int(seen.max())) if len(seen) else (None, None)
        return pa.Table.from_arrays(columns, schema=CELLS), first, last


def _values(column: pa.Array) -> tuple[Codes, Floats, pa.Array]:
    """Kind, number and text of values that are all there. An integer that no double holds has an infinite number."""
    n = len(column)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        v = column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        integral = np.isfinite(v) & (np.floor(v) == v) & (np.abs(v) < _EXPONENTS)
        kind = np.where(integral, INT, np.where(np.isfinite(v), NUMBER, NONFINITE)).astype(np.int8)
        big = np.flatnonzero(integral & (np.abs(v) > _EXACT))
        return kind, *_integers(v, big, [int(x) for x in v[big]])
    if pa.types.is_integer(column.type):
        whole = column.to_numpy(zero_copy_only=False)
        v = whole.astype(np.float64)
        big = np.flatnonzero((v >= _EXACT) | (v <= -_EXACT))
        big = big[[abs(int(whole[i])) > 1 << 53 for i in big]] if len(big) else big
        return np.full(n, INT, np.int8), *_integers(v, big, [int(whole[i]) for i in big])
    if pa.types.is_boolean(column.type):
        v = column.cast(pa.int8()).to_numpy(zero_copy_only=False).astype(np.float64)
        return np.full(n, BOOL, np.int8), v, pa.nulls(n, pa.string())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.full(n, STRING, np.int8), np.full(n, np.nan), _texts(column.to_pylist())
    values = [_plain(value) for value in column.to_pylist()]
    kinds = [_kind(value) for value in values]
    return np.array(kinds, np.int8), np.full(n, np.nan), _texts(values)


def _integers(v: Floats, at: Ints, exact: list[int]) -> tuple[Floats, pa.Array]:
    """Numbers with the digits of those that no double holds."""
    if not len(at):
        return v, pa.nulls(len(v), pa.string())
    v = v.copy()
    v[at] = np.inf
    texts: list[str | None] = [None] * len(v)
    for i, value in zip(at.tolist(), exact, strict=True):
        texts[i] = str(value)
    return v, pa.array(texts, pa.string())


def _texts(values: list[Any]) -> pa.Array:
    return pa.array([json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in values], pa.string())


def _kind(value: Any) -> int:
    if isinstance(value, dict):
        return MEDIA if "_type" in value else DICT
    return LIST if isinstance(value, list) else STRING


def _plain(value: Any) -> Any:
    """A nested value as JSON would have it: integral floats as integers, no fields that are not set."""
    if isinstance(value, dict):
        unions = [k for k in value if k.startswith(_UNION)]
        if unions and len(unions) == len(value):
            return next((_plain(v) for v in value.values() if v is not None), None)
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXPONENTS:
        return int(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _field(column: pa.Array, name: str) -> pa.Array:
    """A field of a struct, null where the struct is."""
    return pc.if_else(column.is_valid(), pc.struct_field(column, name), None)
