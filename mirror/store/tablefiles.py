"""W&B tables as Parquet files that SQL reads: ROOT/tables/aa/<sha256 of the JSON>.parquet, made once and never changed.

A table is a JSON object with `columns` (names) and `data` (a list of rows), in any order. It is read twice, a piece at
a time: for the types of the columns, then for the rows. A column gets the one type all its values have: BOOLEAN,
BIGINT, DECIMAL(38,0) (integers beyond 64 bits), DOUBLE (also integers among floats, where it holds them), VARCHAR.
Every other column (lists, dictionaries, media, different types of values) becomes exact JSON text; null is NULL in all.
A float NaN is NaN, the text "NaN" a text.
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mirror.errors import StoreError
from mirror.store.blobs import TABLE_SUFFIX, blob_path, table_path
from mirror.store.disk import explained
from mirror.store.layout import Layout
from mirror.store.schema import tables

if TYPE_CHECKING:
    from mirror.store.commit import Batch

_FIELDS = b"mirror_fields"
_CHUNK = 1 << 20
_LONGEST = 256 << 20
"""A row of so many characters is none."""
_BATCH_ROWS = 10_000
_BATCH_TEXT = 8 << 20
_GROUP_ROWS = 131_072
_GROUP_BYTES = 32 << 20
_OLD = 3600.0
_EXACT = 1 << 53
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_DECIMAL = 10**38


@dataclass(frozen=True)
class TableFile:
    """What is in a table: `fields` are its columns, each {"name": as logged, "column": unique name in SQL, "type": SQL
    type}, with "exact": "json" if its values are JSON text. `note` says why it could not be read."""

    row_count: int | None = None
    fields: list[dict[str, str]] | None = None
    note: str | None = None


def note_tables(batch: Batch, layout: Layout, rid: int, held: Mapping[str, str]) -> None:
    """Make Parquet files of the tables among files (sha256 by name) of a run or an artifact, and rows of `tables`."""
    rows = []
    for name, sha256 in held.items():
        if name.endswith(TABLE_SUFFIX):
            found = convert(layout, sha256)
            fields = None if found.fields is None else json.dumps(found.fields, ensure_ascii=False)
            row = {"rid": rid, "sha256": sha256, "row_count": found.row_count, "fields": fields, "note": found.note}
            rows.append(row)
    if rows:
        batch.rows.setdefault("tables", []).append(pa.Table.from_pylist(rows, schema=tables()["tables"]))


def convert(layout: Layout, sha256: str, folder: Path | None = None) -> TableFile:
    """Make the Parquet file of a table whose JSON is held, below `folder` (ROOT/tables), unless it is there."""
    path = table_path(folder or layout.tables, sha256)
    if path.exists():
        return _described(path)
    try:
        shape = _shape(blob_path(layout.blobs, sha256))
        with explained("writing a table"):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_old(path.parent)
            tmp = path.with_name(f"{sha256}.{secrets.token_hex(4)}.tmp")
            try:
                _write(blob_path(layout.blobs, sha256), tmp, shape)
                tmp.replace(path)
            finally:
                tmp.unlink(missing_ok=True)
    except _NoTable as e:
        return TableFile(note=str(e))
    return _described(path)


def _remove_old(folder: Path) -> None:
    """Drop what a killed process was writing."""
    for path in folder.glob("*.tmp"):
        if path.stat().st_mtime < time.time() - _OLD:
            path.unlink(missing_ok=True)


def _described(path: Path) -> TableFile:
    metadata = pq.read_metadata(path)
    return TableFile(metadata.num_rows, json.loads(metadata.metadata[_FIELDS]))


class _NoTable(Exception):
    """Why a file is no table."""


# -- reading JSON piece by piece ------------------------------------------------------------------------------


class _Pieces:
    """The text of a file, of which only the part that is being parsed is held."""

    _SPACE = re.compile(r"[ \t\n\r]*")

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        self._parser = json.JSONDecoder(strict=False)
        self._text = ""
        self._at = self._dropped = 0
        self._ended = False

    def close(self) -> None:
        self._file.close()

    @property
    def passed(self) -> int:
        """Characters that are parsed."""
        return self._dropped + self._at

    def drop(self) -> None:
        """Forget what is parsed."""
        self._dropped += self._at
        self._text, self._at = self._text[self._at :], 0

    def _more(self) -> bool:
        """Read on, as much as is held already; False at the end."""
        self.drop()
        if self._ended:
            return False
        if len(self._text) > _LONGEST:
            raise _NoTable(f"it has a value of more than {_LONGEST >> 20} MB")
        data = self._file.read(max(_CHUNK, len(self._text)))
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, self._ended)
        except UnicodeDecodeError as e:
            raise _NoTable(f"it is no UTF-8 ({e.reason})") from e
        return True

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            found = self._SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def expect(self, wanted: str) -> str:
        found = self.peek()
        if not found or found not in wanted:
            raise _NoTable(f"it is no JSON of a table: `{found}` where one of `{wanted}` should be")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, whole. A number at the end of the text at hand might go on behind it."""
        self.peek()
        while True:
            try:
                found, end = self._parser.raw_decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError) as e:
                if isinstance(e, RecursionError) or not self._more():
                    raise _NoTable(f"it is no JSON ({str(e)[:100]})") from e
                continue
            if end < len(self._text) or not self._more():
                self._at = end
                return found


def _batches(path: Path, found: dict[str, Any]) -> Iterator[list[list[Any]]]:
    """The rows of a table, some at a time; `columns` is put into `found` when it has come by."""
    pieces = _Pieces(path)
    try:
        pieces.expect("{")
        while pieces.peek() != "}":
            key = pieces.value()
            pieces.expect(":")
            if key == "data" and pieces.peek() == "[":
                yield from _rows(pieces)
            else:
                value = pieces.value()
                if key == "columns":
                    found["columns"] = value
            if pieces.expect(",}") == "}":
                break
    finally:
        pieces.close()


def _rows(pieces: _Pieces) -> Iterator[list[list[Any]]]:
    """Rows as far as the next closing bracket: few at a time where they are long."""
    pieces.expect("[")
    if pieces.peek() == "]":
        pieces.expect("]")
        return
    batch: list[list[Any]] = []
    most = pieces.passed + _BATCH_TEXT
    while True:
        row = pieces.value()
        if type(row) is not list:
            raise _NoTable("it has a row that is no list")
        batch.append(row)
        if len(batch) == _BATCH_ROWS or pieces.passed > most:
            yield batch
            batch = []
            pieces.drop()
            most = pieces.passed + _BATCH_TEXT
        if pieces.expect(",]") == "]":
            break
    if batch:
        yield batch


# -- types ----------------------------------------------------------------------------------------------------


class _Column:
    """What values a column has."""

    def __init__(self) -> None:
        self.types: set[type] = set()
        self.low = self.high = 0
        self.broken = False
        """Some text has half a character in it, which UTF-8 cannot spell."""

    def see(self, values: tuple[Any, ...]) -> None:
        kinds = set(map(type, values))
        self.types |= kinds
        if int in kinds:
            numbers = [v for v in values if type(v) is int]
            self.low, self.high = min(self.low, *numbers), max(self.high, *numbers)
        if str in kinds and not self.broken:
            try:
                "".join(v for v in values if type(v) is str).encode()
            except UnicodeEncodeError:
                self.broken = True

    @property
    def type(self) -> pa.DataType | None:
        """None for JSON text."""
        types = self.types - {type(None)}
        most = max(-self.low, self.high)
        if types == {bool}:
            return pa.bool_()
        if types == {int} and most < _DECIMAL:
            return pa.int64() if self.low >= -(2**63) and self.high < 2**63 else pa.decimal128(38, 0)
        if types in ({float}, {int, float}) and most <= _EXACT:
            return pa.float64()
        return pa.string() if types <= {str} and not self.broken else None


@dataclass(frozen=True)
class _Shape:
    fields: list[dict[str, str]]
    types: list[pa.DataType | None]


_SQL = {"bool": "BOOLEAN", "int64": "BIGINT", "double": "DOUBLE", "string": "VARCHAR"}


def _shape(path: Path) -> _Shape:
    """The columns of a table, with types that hold all their values. Raises _NoTable."""
    found: dict[str, Any] = {}
    columns: list[_Column] | None = None
    try:
        for batch in _batches(path, found):
            if columns is None:
                columns = [_Column() for _ in batch[0]]
            if any(len(row) != len(columns) for row in batch):
                raise _NoTable("its rows are not all of the same length")
            for column, values in zip(columns, zip(*batch, strict=True), strict=True):
                column.see(values)
    except OSError as e:
        raise StoreError(f"the bytes of a table cannot be read: {e}") from e
    names = found.get("columns")
    if not isinstance(names, list):
        raise _NoTable("it has no list of `columns`")
    if not names:
        raise _NoTable("it has no columns")
    columns = columns if columns is not None else [_Column() for _ in names]
    if len(names) != len(columns):
        raise _NoTable(f"it names {len(names)} columns, its rows have {len(columns)} values")
    texts = [_text(name) for name in names]
    types = [column.type for column in columns]
    fields = []
    for name, unique, kind in zip(texts, _unique(texts), types, strict=True):
        said = "VARCHAR" if kind is None else _SQL.get(str(kind), "DECIMAL(38,0)")
        fields.append({"name": name, "column": unique, "type": said} | ({"exact": "json"} if kind is None else {}))
    return _Shape(fields, types)


def _text(name: Any) -> str:
    """A column's name as a text that UTF-8 can spell: names may be numbers."""
    text = name if isinstance(name, str) else json.dumps(name, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _unique(names: list[str]) -> list[str]:
    """Names that SQL tells apart: `a`, `A`, `` become `a`, `A_1`, `column_2`; the first of twins keeps its name.

    >>> _unique(["a", "A", "", "a_1"])
    ['a', 'A_2', 'column_2', 'a_1']
    """
    taken = {name.casefold() for name in names}
    seen: set[str] = set()
    made = []
    for i, name in enumerate(names):
        given = name or f"column_{i}"
        number = 0
        while given.casefold() in seen or (number and given.casefold() in taken):
            number += 1
            given = f"{name or f'column_{i}'}_{number}"
        seen.add(given.casefold())
        made.append(given)
    return made


# -- writing --------------------------------------------------------------------------------------------------


def _write(source: Path, out: Path, shape: _Shape) -> None:
    kinds = [pa.string() if kind is None else kind for kind in shape.types]
    names = [field["column"] for field in shape.fields]
    said = {_FIELDS: json.dumps(shape.fields, ensure_ascii=False).encode()}
    schema = pa.schema([pa.field(n, k) for n, k in zip(names, kinds, strict=True)], metadata=said)
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        rows = size = 0
        for batch in _batches(source, {}):
            columns = list(zip(*batch, strict=True)) or [()] * len(kinds)
            arrays = [_array(c, t) for c, t in zip(columns, shape.types, strict=True)]
            table = pa.Table.from_arrays(arrays, schema=schema)
            waiting.append(table)
            rows, size = rows + table.num_rows, size + table.nbytes
            if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting, rows, size = [], 0, 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _array(values: tuple[Any, ...], kind: pa.DataType | None) -> pa.Array:
    if kind is None:
        return pa.array([None if v is None else _json(v) for v in values], pa.string())
    if pa.types.is_floating(kind):
        return pa.array([None if v is None else float(v) for v in values], kind)
    if pa.types.is_decimal(kind):
        return pa.array([None if v is None else Decimal(v) for v in values], kind)
    return pa.array(values, kind)


_encoded = json.JSONEncoder(ensure_ascii=False).encode


def _json(value: Any) -> str:
    text = _encoded(value)
    return text if text.isascii() or _SURROGATE.search(text) is None else json.dumps(value)
