"""A run's history as W&B exports it: wide Parquet files, SNAPPY with dictionaries, one column a key.

`_step` is INT64. Nested dictionaries are columns with dotted names (a literal `a.b` shares the column of a nested
one and goes before it where a row has both). Numbers are DOUBLE, or INT64 where all are integers; lists and media
are LIST and STRUCT where all values of the key have one shape, JSON text otherwise. A key whose values are of
several types is a STRUCT of fields `_type_number`, `_type_bool`, `_type_string`, `_type_list`, `_type_map`, of
which one is set. A null is a missing key. A run without rows is one file without columns.

Rows lie in order of `_step`, those of one step in logged order. Stretches of rows are read and written one after
another, so that memory depends on neither the rows of a run nor the size of its cells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from mirror.query.rows import evenly
from mirror.store.cellform import INT, KINDS, kind_codes, path, places

if TYPE_CHECKING:
    import duckdb

FILE_ROWS = 200_000
"""Rows a file; a longer run has several."""

MAX_SLOTS = 4_000_000_000
"""Rows times keys of a run beyond which a wide file makes no sense: such a run is read by rows."""

_BLOCK = 16  # rows; the smallest stretch that is read at once
_SLOT_BYTES = 8  # what a place in a wide table costs while it is made
_CELL_BYTES = 32  # and a cell
_FILE_PIECES = 40_000  # columns times row groups of a file: each costs memory until the file is closed
_TYPES = {"number": "number", "int": "number", "nonfinite": "number", "bool": "bool", "string": "string",
          "list": "list", "dict": "map", "media": "map"}  # fmt: skip
_TYPE_OF_KIND = np.array([list(dict.fromkeys(_TYPES.values())).index(_TYPES[k]) if k in _TYPES else -1 for k in KINDS])
_NAMES = list(dict.fromkeys(_TYPES.values()))
_PLAIN = {"number": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
_EXACT = 2**53
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_FIELDS = 100  # of a struct; dictionaries beyond it are JSON text

Ints = npt.NDArray[np.int64]


@dataclass
class Column:
    """A column of the file: its name, and the Arrow type of each type of values the key has."""

    name: str
    types: dict[str, pa.DataType] = field(default_factory=dict)

    @property
    def type(self) -> pa.DataType:
        if self.name == "_step":
            return pa.int64()
        if len(self.types) > 1:
            return pa.struct([(f"_type_{name}", self.types[name]) for name in sorted(self.types)])
        return next(iter(self.types.values()), pa.float64())


def write(db: duckdb.DuckDBPyConnection, cells: str, rows: int, folder: Path) -> int | None:
    """Write `folder`/0.parquet, 1.parquet, ... from the FROM item `cells` (one generation of one run that has so many
    `rows`), and say how many files there are; None if the run is too wide to be exported. `db` is closed."""
    with db:
        if not rows:
            empty = pa.schema([], {"wandb-compacted": "true"})
            pq.write_table(empty.empty_table(), folder / "0.parquet")
            return 1
        source = _Source(db, cells, rows)
        if rows * len(source.columns) > MAX_SLOTS:
            return None
        schema = pa.schema([(column.name, column.type) for column in source.columns])
        files = 0
        out: pq.ParquetWriter | None = None
        try:
            room = pieces = 0
            for table in source.tables(schema):
                if out is None or len(table) > room or pieces + table.num_columns > _FILE_PIECES:
                    if out is not None:
                        out.close()
                    out = pq.ParquetWriter(folder / f"{files}.parquet", schema, compression="snappy")
                    files, room, pieces = files + 1, FILE_ROWS, 0
                out.write_table(table, row_group_size=len(table))
                room, pieces = room - len(table), pieces + table.num_columns
        finally:
            if out is not None:
                out.close()
        return files


class _Source:
    """The cells of a run and the columns they are spread over."""

    def __init__(self, db: duckdb.DuckDBPyConnection, cells: str, rows: int) -> None:
        self._db, self._rows = db, rows
        self._from, self._at = f"from {cells}", "row"
        query = f"select 1 from (select step < lag(step) over (order by row) as back {self._from} and key = '_step')"
        if db.execute(f"{query} where back limit 1").fetchone():
            db.execute(
                "create temp table ordered as "
                "select row, row_number() over (order by step nulls last, row) - 1 as place "
                f"from (select row, max(step) as step {self._from} group by row)"
            )
            self._from, self._at = f"from (select * {self._from}) join ordered using (row) where true", "place"
        self._column_of: dict[tuple[str, int], int] = {}
        self.columns: list[Column] = []
        self._find_columns()

    def _find_columns(self) -> None:
        query = (
            "select key, path_id, kind, bool_or(kind = 'int' and j is not null and try_cast(j as bigint) is null) "
            f"{self._from} group by all order by key, path_id, kind"
        )
        number: dict[str, int] = {}
        kinds: dict[str, set[str]] = {}
        huge: set[str] = set()
        for key, path_id, kind, beyond in self._db.execute(query).fetchall():
            if kind == "empty":
                continue
            name = column_name(key, path_id)
            self._column_of[(key, path_id)] = number.setdefault(name, len(number))
            kinds.setdefault(name, set()).add(kind)
            if beyond:
                huge.add(name)
        self.columns = [Column(name) for name in number]
        for column in self.columns:
            found = kinds[column.name]
            column.types = {_TYPES[kind]: _PLAIN.get(_TYPES[kind], pa.null()) for kind in found if kind in _TYPES}
            if not found & {"number", "nonfinite"} and "int" in found and column.name not in huge:
                column.types["number"] = pa.int64()
        if any(not found.isdisjoint({"list", "dict", "media"}) for found in kinds.values()):
            self._find_shapes()

    def _find_shapes(self) -> None:
        """Give lists and dictionaries the type that all values of their key have."""
        shapes: dict[tuple[int, str], pa.DataType | None] = {}
        for first, last in self._stretches("kind in ('list', 'dict', 'media')"):
            where = f"kind in ('list', 'dict', 'media') and {self._at} >= {first} and {self._at} < {last}"
            query = f"select key, path_id, kind, j {self._from} and {where}"
            for key, path_id, kind, text in self._db.execute(query).fetchall():
                name = (self._column_of[(key, path_id)], _TYPES[kind])
                if name in shapes and shapes[name] is None:
                    continue
                try:
                    shapes[name] = _merged(shapes.get(name, pa.null()), _shape(_parsed(text)))
                except (_NoShape, RecursionError):
                    shapes[name] = None
        for (number, group), shape in shapes.items():
            self.columns[number].types[group] = pa.string() if shape is None else _concrete(shape)

    def _stretches(self, condition: str) -> Iterator[tuple[int, int]]:
        """Ranges [first, last) of places that weigh about as much each."""
        weights = self._db.execute(
            f"select {self._at} // {_BLOCK} as block, count(*) * {_CELL_BYTES} + coalesce(sum(strlen(j)), 0) "
            f"+ {_BLOCK * _SLOT_BYTES * len(self.columns)} {self._from} and {condition} group by block order by block"
        ).fetchall()
        for first, last in evenly([(int(block), int(weight)) for block, weight in weights]):
            yield first * _BLOCK, min((last + 1) * _BLOCK, self._rows)

    def tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """All rows, in tables of `schema`."""
        for first, last in self._stretches("true"):
            where = f"{self._at} >= {first} and {self._at} < {last}"
            query = f"select key, path_id, {self._at} as place, step, kind, v, j {self._from} and {where}"
            yield self._table(self._db.sql(query).to_arrow_table(), first, last - first, schema)

    def _table(self, cells: pa.Table, first: int, rows: int, schema: pa.Schema) -> pa.Table:
        code, found = places(cells)
        column = np.array([self._column_of.get(place, -1) for place in found], np.int64)[code]
        at: Ints = cells["place"].to_numpy() - first
        literal = np.array([path_id == 0 for _, path_id in found])[code]
        order = np.lexsort((literal, at, column))
        column, at = column[order], at[order]
        kept = np.append((column[1:] != column[:-1]) | (at[1:] != at[:-1]), True) & (column >= 0)
        order, column, at = order[kept], column[kept], at[kept]
        held = _Cells(cells.select(["step", "kind", "v", "j"]).take(pa.array(order)))
        bounds = np.searchsorted(column, np.arange(len(self.columns) + 1))
        arrays = [
            held.array(self.columns[n], slice(int(bounds[n]), int(bounds[n + 1])), at, rows)
            for n in range(len(self.columns))
        ]
        return pa.Table.from_arrays(arrays, schema=schema)


class _Cells:
    """Cells of one stretch, sorted by column and row."""

    def __init__(self, cells: pa.Table) -> None:
        self._kind = kind_codes(cells)
        self._type = _TYPE_OF_KIND[self._kind]
        self._v: npt.NDArray[np.float64] = cells["v"].to_numpy()
        self._j = cells["j"].combine_chunks()
        self._written = self._j.is_valid().to_numpy(zero_copy_only=False) & (self._kind <= INT)
        self._step = cells["step"].combine_chunks()

    def array(self, column: Column, part: slice, at: Ints, rows: int) -> pa.Array:
        if column.name == "_step":
            return _spread(self._step.slice(part.start, part.stop - part.start), at[part], rows)
        found = {}
        for name, kind in column.types.items():
            where = part.start + np.flatnonzero(self._type[part] == _NAMES.index(name))
            found[name] = _spread(self._dense(name, kind, where), at[where], rows)
        if len(found) < 2:
            return next(iter(found.values())) if found else pa.nulls(rows, column.type)
        children = [found[name] for name in sorted(found)]
        missing = np.logical_and.reduce([child.is_null().to_numpy(zero_copy_only=False) for child in children])
        return pa.StructArray.from_arrays(children, fields=list(column.type), mask=pa.array(missing))

    def _dense(self, name: str, kind: pa.DataType, where: Ints) -> pa.Array:
        v = self._v[where]
        if name == "bool":
            return pa.array(v != 0)
        if name == "number":
            written = np.flatnonzero(self._written[where])
            if pa.types.is_int64(kind):
                whole = np.where(np.isfinite(v), v, 0).astype(np.int64)
                for i in written.tolist():
                    whole[i] = int(self._j[int(where[i])].as_py())
                return pa.array(whole)
            for i in written.tolist():
                v[i] = float(self._j[int(where[i])].as_py())
            return pa.array(v)
        texts = self._j.take(pa.array(where))
        if name == "string":
            return pa.array(_strings(texts.to_pylist()), pa.string())
        if pa.types.is_string(kind):
            return texts.cast(pa.string())
        return pa.array([_parsed(text) for text in texts.to_pylist()], kind)


def _spread(dense: pa.Array, at: Ints, rows: int) -> pa.Array:
    """Values at their rows, null elsewhere."""
    if len(dense) == rows:
        return dense
    index = np.zeros(rows, np.int64)
    missing = np.ones(rows, bool)
    index[at], missing[at] = np.arange(len(dense)), False
    return dense.take(pa.array(index, mask=missing)) if len(dense) else pa.nulls(rows, dense.type)


def column_name(key: str, path_id: int) -> str:
    """The dotted name of a key; lone surrogates, which Parquet cannot spell, are U+FFFD."""
    return _SURROGATE.sub("\ufffd", ".".join(path(key, path_id))) if path_id < 0 else key


def _strings(texts: list[str]) -> list[str]:
    try:
        found: list[str] = orjson.loads(f"[{','.join(texts)}]")
        return found
    except orjson.JSONDecodeError:
        return [_SURROGATE.sub("\ufffd", json.loads(text)) for text in texts]


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # NaN tokens, integers beyond 64 bit, lone surrogates
        return json.loads(text)


class _NoShape(Exception):
    """Values that no one column type holds."""


def _shape(value: Any) -> pa.DataType:
    """The Arrow type of a JSON value."""
    match value:
        case None:
            return pa.null()
        case bool():
            return pa.bool_()
        case int() if -_EXACT <= value <= _EXACT:
            return pa.int64()
        case float():
            return pa.float64()
        case str() if not _SURROGATE.search(value):
            return pa.string()
        case list():
            return pa.list_(_all_merged(map(_shape, value)))
        case dict() if 0 < len(value) <= _MAX_FIELDS:
            return pa.struct([(name, _shape(inner)) for name, inner in value.items()])
    raise _NoShape


def _all_merged(shapes: Iterable[pa.DataType]) -> pa.DataType:
    found = pa.null()
    for shape in shapes:
        found = _merged(found, shape)
    return found


def _merged(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type that holds values of both."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(a) and pa.types.is_list(b):
        return pa.list_(_merged(a.value_type, b.value_type))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        fields = {f.name: f.type for f in a}
        for f in b:
            fields[f.name] = _merged(fields.get(f.name, pa.null()), f.type)
        if len(fields) <= _MAX_FIELDS:
            return pa.struct(list(fields.items()))
    raise _NoShape


def _concrete(shape: pa.DataType) -> pa.DataType:
    """The type with another one where only nulls were seen, which Parquet readers take for an error."""
    if pa.types.is_null(shape):
        return pa.float64()
    if pa.types.is_list(shape):
        return pa.list_(_concrete(shape.value_type))
    if pa.types.is_struct(shape):
        return pa.struct([(f.name, _concrete(f.type)) for f in shape])
    return shape
