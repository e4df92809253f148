"""Results as files: csv, tsv, json, jsonl, parquet, arrow. Streamed, so that memory stays flat at any size.

csv            NULL is empty, an empty string `""` (in a table of one column both are `""`: readers skip blank
               lines); NaN, Infinity, -Infinity; times in ISO 8601, UTC with Z; lists and structs as JSON
tsv            as csv, but NULL is `\\N` and tab, newline, return, backslash are `\\t \\n \\r \\\\`
json, jsonl    NaN and infinities are the strings "NaN", "Infinity", "-Infinity"; times are strings as in csv
parquet, arrow NaN and infinities are IEEE 754's; HUGEINT, what sum() of integers gives, is DECIMAL(38, 0)

Integers and decimals keep all their digits everywhere, floats have the shortest digits that read back the same.
Columns of DuckDB's type JSON are embedded as JSON in json and jsonl. Columns of the same name are told apart where
a format needs it (`a`, `a_1`).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from mirror.errors import MirrorError, UsageError
from mirror.query.text import jsonable, nonfinite, plain, safe

if TYPE_CHECKING:
    import pyarrow

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "arrow")
BINARY = ("parquet", "arrow")
_SUFFIXES = {".feather": "arrow", ".ndjson": "jsonl", ".ipc": "arrow", ".pq": "parquet"} | {f".{f}": f for f in FORMATS}


class Rows(Protocol):
    """What can be written: `mirror.query.sql.Result` is one."""

    columns: list[str]
    types: list[str]

    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...

    def batches(self, rows: int = ...) -> pyarrow.RecordBatchReader: ...


def format_of(path: Path) -> str:
    """The format that a file name asks for; UsageError if it asks for none."""
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise UsageError(f"cannot tell a format from `{path.name}`: add --format {'|'.join(FORMATS)}")
    return found


def write(rows: Rows, format: str, out: IO[bytes], *, terminal: bool = False, seekable: bool = False) -> int:
    """Write all rows to a binary stream, and say how many there were. `terminal` makes text harmless, too.

    Arrow goes out as a file where `seekable` (Feather, what `polars.read_ipc` reads), else as a stream.
    """
    if format in BINARY:
        return _WRITERS[format](rows, out, seekable)
    shown: Callable[[str], str] = safe if terminal else str
    count = 0
    for line in _LINES[format](rows, shown):
        out.write(line)
        count += 1
    return max(count - (format in ("csv", "tsv")) - (2 if format == "json" else 0), 0)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is whole, and not at all if writing it fails."""
    ordinary = path.is_file() or not path.exists()  # not a pipe, not /dev/null
    target = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") if ordinary else path
    try:
        with target.open("xb" if ordinary else "wb") as out:
            yield out
            if ordinary:
                out.flush()
                os.fsync(out.fileno())
        if ordinary:
            target.replace(path)
    except OSError as e:
        raise MirrorError(f"cannot write `{path}`: {e.strerror or e}; choose another file with -o") from e
    finally:
        if ordinary:
            target.unlink(missing_ok=True)


def unique(names: Iterable[str]) -> list[str]:
    """Names with a number behind those that occurred before.

    >>> unique(["a", "a", "b"])
    ['a', 'a_1', 'b']
    """
    taken: dict[str, None] = {}
    for name in names:
        found, n = name, 0
        while found in taken:
            n += 1
            found = f"{name}_{n}"
        taken[found] = None
    return list(taken)


# -- text ---------------------------------------------------------------------------------------------------


_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_SPECIAL = re.compile(r'[,"\r\n]')


def _field(kind: str, protected: Callable[[str], str]) -> Callable[[Any], str]:
    """The shortest road from a value of a DuckDB type to a field: exports are millions of values long."""
    if kind in _INTEGERS:
        return str
    if kind in ("DOUBLE", "FLOAT"):
        return lambda value: repr(value) if value - value == 0 else nonfinite(value)
    return protected if kind == "VARCHAR" else lambda value: protected(plain(value))


def _csv(rows: Rows, shown: Callable[[str], str]) -> Iterator[bytes]:
    null = "" if len(rows.columns) > 1 else '""'  # readers skip blank lines

    def quoted(text: str) -> str:
        text = shown(text)
        if text and not _SPECIAL.search(text) and text[0] != " " != text[-1]:
            return text
        return '"' + text.replace('"', '""') + '"'

    yield (",".join(map(quoted, rows.columns)) + "\n").encode()
    fields = [_field(kind, quoted) for kind in rows.types]
    for row in rows:
        line = [null if value is None else field(value) for value, field in zip(row, fields, strict=True)]
        yield (",".join(line) + "\n").encode()


_TSV_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _tsv(rows: Rows, shown: Callable[[str], str]) -> Iterator[bytes]:
    def escaped(text: str) -> str:
        return shown(text.translate(_TSV_ESCAPES))

    yield ("\t".join(map(escaped, rows.columns)) + "\n").encode()
    fields = [_field(kind, escaped) for kind in rows.types]
    for row in rows:
        line = ["\\N" if value is None else field(value) for value, field in zip(row, fields, strict=True)]
        yield ("\t".join(line) + "\n").encode()


def _jsonl(rows: Rows, shown: Callable[[str], str]) -> Iterator[bytes]:
    for text in _objects(rows):
        yield (shown(text.decode()).encode() if shown is safe else text) + b"\n"


def _json(rows: Rows, shown: Callable[[str], str]) -> Iterator[bytes]:
    yield b"["
    separator = b"\n"
    for text in _objects(rows):
        yield separator + (shown(text.decode()).encode() if shown is safe else text)
        separator = b",\n"
    yield b"\n]\n"


def _objects(rows: Rows) -> Iterator[bytes]:
    import orjson

    names = unique(rows.columns)
    # What orjson writes by itself is left to it.
    changed = [
        (i, orjson.Fragment if kind == "JSON" else jsonable)
        for i, kind in enumerate(rows.types)
        if kind not in {*_INTEGERS, "VARCHAR", "BOOLEAN"}
    ]
    for row in rows:
        values = list(row)
        for i, convert in changed:
            if values[i] is not None:
                values[i] = convert(values[i])
        yield orjson.dumps(dict(zip(names, values, strict=True)), default=plain)


_LINES = {"csv": _csv, "tsv": _tsv, "json": _json, "jsonl": _jsonl}


# -- columns ------------------------------------------------------------------------------------------------


_GROUP_ROWS, _GROUP_BYTES = 1 << 17, 64 << 20


def _parquet(rows: Rows, out: IO[bytes], seekable: bool) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, batches = _named(rows)
    count = 0
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in batches:
            waiting.append(batch)
            count += batch.num_rows
            # Every batch a row group of its own would be slow to read, and heavy where there are many columns.
            if sum(b.num_rows for b in waiting) >= _GROUP_ROWS or sum(b.nbytes for b in waiting) >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))
    return count


def _arrow(rows: Rows, out: IO[bytes], seekable: bool) -> int:
    import pyarrow as pa

    schema, batches = _named(rows)
    count = 0
    with (pa.ipc.new_file if seekable else pa.ipc.new_stream)(out, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _named(rows: Rows) -> tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]:
    import pyarrow as pa

    names = unique(rows.columns)
    found = rows.batches()
    schema = pa.schema([field.with_name(name) for field, name in zip(found.schema, names, strict=True)])
    return schema, (batch.rename_columns(names) for batch in found)


_WRITERS = {"parquet": _parquet, "arrow": _arrow}
