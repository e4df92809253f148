"""Logged rows as cells and back: the tall form in which history is kept, exact in both directions.

A logged row is one JSON object. `decode` turns a batch of rows into one Arrow table with a row per logged
cell; `rows_as_dicts` and `rows_as_json` rebuild the rows. schema/tables.sql (`history`) says what the columns
mean. Nested dictionaries are exploded into their leaves under dotted keys; bit i of `path_id` says that the
i-th dot of the key is such a border, so `{"a": {"b": 1}}` and `{"a.b": 1}` stay apart.

Rows are parsed by orjson and columns made by numpy; rows that orjson refuses or may have changed are found
and parsed once more by `jsontext.parse_exactly`, those rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, compress
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mirror.errors import SourceError
from mirror.store.cellform import (
    BOOL,
    CELLS,
    DICT,
    EMPTY,
    INT,
    KINDS,
    LIST,
    MEDIA,
    NONFINITE,
    NULL,
    NUMBER,
    STRING,
    Codes,
    Floats,
    Ints,
    Mask,
    Paths,
)  # fmt: skip
from mirror.store.jsontext import DOUBTFUL, Number, parse, parse_exactly, write
from mirror.store.jsontext import NONFINITE as NONFINITE_VALUES
from mirror.store.rebuild import rows_as_dicts, rows_as_json

__all__ = ["CELLS", "KINDS", "CellBatch", "decode", "fingerprint", "rows_as_dicts", "rows_as_json"]

_EXACT = 2.0**53  # up to here a double holds every integer
_YEAR_1, _YEAR_10000 = -62135596800e6, 253402300800e6  # microseconds; what Python's datetime can show


@dataclass(frozen=True)
class CellBatch:
    """Consecutive logged rows of one stream as cells. `table` has the columns of `CELLS`; `first_step` is
    the first `_step` seen, `last_step` the highest; `last_fingerprint` is `fingerprint` of the last row
    ("" without rows)."""

    rows: int
    table: pa.Table
    first_step: int | None
    last_step: int | None
    last_fingerprint: str

    @property
    def nbytes(self) -> int:
        """Memory of the table in bytes."""
        return int(self.table.nbytes)


def decode(rows: Sequence[str], string_is_nonfinite: Callable[[str], bool] | None = None) -> CellBatch:
    """Turn JSON texts of objects, in logged order, into cells.

    `string_is_nonfinite(key)` tells whether the strings "NaN", "Infinity" and "-Infinity" under that key
    are numbers that the wire spelled as strings (historyKeys says that the key never held a string);
    without it they stay strings. Raises SourceError for a row that is no JSON object.
    """
    objects, exact = _parse(rows)
    cells = _Cells(objects)
    if doubtful := cells.doubtful(rows, exact):
        for i in doubtful:
            objects[i] = _parse_exactly(rows[i], i)
        exact |= doubtful
        cells = _Cells(objects)
    try:
        table, first_step, last_step = cells.table(exact, string_is_nonfinite)
    except RecursionError as exc:
        raise SourceError("A row of a batch is nested hundreds of levels deep; it cannot be kept.", exc) from exc
    return CellBatch(len(rows), table, first_step, last_step, fingerprint(rows[-1]) if rows else "")


def fingerprint(row: str) -> str:
    """32 hex digits, equal for two rows exactly if they are the same JSON value: the order of keys does not
    count, `1` and `1.0` differ, NaN equals NaN. Raises SourceError if `row` is no JSON object."""
    try:
        value, exact = parse(row)
        text = write(value, exact, sort=True)
    except (ValueError, RecursionError) as exc:
        raise _no_object(row, 0, exc) from exc
    if type(value) is not dict:
        raise _no_object(row, 0, f"it is a {type(value).__name__}")
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _parse(rows: Sequence[str]) -> tuple[list[dict[str, Any]], set[int]]:
    """An object per row, and which rows took the exact parser."""
    objects: list[dict[str, Any]] = []
    exact: set[int] = set()
    for i, row in enumerate(rows):
        try:
            value = orjson.loads(row)
        except orjson.JSONDecodeError:
            value = _parse_exactly(row, i)
            exact.add(i)
        if type(value) is not dict:
            raise _no_object(row, i, f"it is a {type(value).__name__}")
        objects.append(value)
    return objects, exact


def _parse_exactly(row: str, i: int) -> Any:
    try:
        return parse_exactly(row)
    except (ValueError, RecursionError) as exc:
        raise _no_object(row, i, exc) from exc


def _no_object(row: str, i: int, why: object) -> SourceError:
    excerpt = row if len(row) <= 80 else row[:77] + "..."
    return SourceError(
        f"Row {i} of a batch is no JSON object ({why}): `{excerpt}`. "
        "The source sent a damaged line; sync again, and report it to who runs the source if it stays."
    )


def _dumps(values: list[Any], exact: list[bool]) -> list[bytes]:
    """JSON texts of strings, lists and dictionaries; `exact`: those the exact parser made."""
    try:
        return [write(v, e).encode() if e else orjson.dumps(v) for v, e in zip(values, exact, strict=True)]
    except orjson.JSONEncodeError:  # a lone surrogate, or nested deeper than orjson writes
        return [write(v, True).encode() for v in values]


_TYPES = {float: NUMBER, int: INT, bool: BOOL, str: STRING, type(None): NULL, list: LIST, dict: DICT}
_TYPES[Number] = EMPTY  # no value has that kind: it stands for Number until the text is looked at
_NESTED = -1  # a dictionary to be taken apart


class _Cells:
    """The cells of parsed rows, side by side: value, code of the value's type, code of its path, row."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.rows = len(objects)
        self.empty: Ints = np.flatnonzero([not value for value in objects])
        self.paths = Paths()
        self.values: list[Any] = []
        levels: list[tuple[Codes, Ints, Ints]] = []
        dicts, code, row = objects, np.empty(0, np.int64), np.arange(len(objects))
        while len(dicts) or not levels:  # a round per level of nesting, the rows themselves being the first
            lengths = np.fromiter(map(len, dicts), np.int64, len(dicts))
            names = list(chain.from_iterable(dicts))
            values = list(chain.from_iterable(map(dict.values, dicts)))
            if levels:
                code = self.paths.inner(np.repeat(code, lengths), names)
            elif dicts and names == list(dicts[0]) * len(dicts):  # all rows have the same keys, as is usual
                code = np.tile(self.paths.top(list(dicts[0])), len(dicts))
            else:
                code = self.paths.top(names)
            row = np.repeat(row, lengths)
            types = np.fromiter(map(_TYPES.__getitem__, map(type, values)), np.int8, len(values))
            dicts = []
            if DICT in types:
                at = np.flatnonzero(types == DICT)
                types[at] = list(map(self._kind, _where(values, types == DICT), code[at].tolist()))
                leaf = types != _NESTED
                dicts, values = _where(values, ~leaf), _where(values, leaf)
                levels.append((types[leaf], code[leaf], row[leaf]))
                code, row = code[~leaf], row[~leaf]
            else:
                levels.append((types, code, row))
            self.values += values
        self.types, self.code, self.row = map(np.concatenate, zip(*levels, strict=True))
        plain = self.types <= BOOL
        if plain.all():
            self.v: Floats = np.array(self.values, np.float64)
        else:
            self.v = np.full(len(self.values), np.nan)
            self.v[plain] = _where(self.values, plain)

    def _kind(self, value: dict[str, Any], code: int) -> int:
        """Whether a dictionary stays whole, as what, or is taken apart into its leaves."""
        return MEDIA if "_type" in value else _NESTED if value and self.paths.can_nest(code) else DICT

    def doubtful(self, rows: Sequence[str], exact: set[int]) -> set[int]:
        """Rows whose values orjson may have changed: a float that may have been an integer beyond 64 bit,
        a zero that may have been minus zero, either of them within a list or dictionary kept whole."""
        found = set(self.row[(self.types == NUMBER) & (np.abs(self.v) >= 2.0**63)].tolist())
        zero = np.unique(self.row[(self.types == INT) & (self.v == 0)]).tolist()
        look = {i for i in zero if "-0" in rows[i]}
        look.update(self.row[(self.types >= LIST) & (self.types <= MEDIA)].tolist())
        if more := sorted(look - found - exact):
            hit = pc.match_substring_regex(pa.array([rows[i] for i in more], pa.large_string()), DOUBTFUL)
            found.update(compress(more, hit.to_pylist()))
        return found - exact

    def table(
        self, exact: set[int], string_is_nonfinite: Callable[[str], bool] | None
    ) -> tuple[pa.Table, int | None, int | None]:
        """The cells as Arrow, with first and highest step. `exact`: rows that took the exact parser."""
        step, has_step = self._steps()
        ts, has_ts = self._times()
        kind = self.types.copy()
        has_v = self.types <= BOOL
        kind[has_v & ~np.isfinite(self.v)] = NONFINITE
        j = self._texts(kind, has_v, exact, string_is_nonfinite)
        code, row, v = self.code, self.row, self.v
        if n := len(self.empty):
            code, row = np.append(code, self.paths.top([""] * n)), np.append(row, self.empty)
            kind, v = np.append(kind, np.full(n, EMPTY, np.int8)), np.append(v, np.zeros(n))
            has_v = np.append(has_v, np.zeros(n, bool))
            j = pa.concat_arrays([j, pa.nulls(n, pa.string())])
        key, path_id = self.paths.columns(code)
        columns = [
            key,
            pa.array(path_id),
            pa.array(row),
            pa.array(step[row], mask=~has_step[row]),
            pa.array(ts[row], mask=~has_ts[row]).cast(CELLS.field("ts").type),
            pa.DictionaryArray.from_arrays(kind, pa.array(KINDS)),
            pa.array(v, mask=~has_v),
            j,
        ]
        seen = step[has_step]
        first, last = (int(seen[0]), int(seen.max())) if len(seen) else (None, None)
        return pa.Table.from_arrays(columns, schema=CELLS), first, last

    def _texts(
        self, kind: Codes, has_v: Mask, exact: set[int], string_is_nonfinite: Callable[[str], bool] | None
    ) -> pa.Array:
        """Column j; sets kind and value of what is not known by its type alone."""
        places: list[int] = []
        texts: list[bytes] = []
        for i in np.flatnonzero((self.types == INT) & (np.abs(self.v) >= _EXACT)).tolist():
            if abs(self.values[i]) > 1 << 53:
                has_v[i] = False
                places.append(i)
                texts.append(str(self.values[i]).encode())
        for i in np.flatnonzero(self.types == EMPTY).tolist():  # numbers of type Number
            text = self.values[i]
            kind[i] = NUMBER if any(c in text for c in ".eE") else INT
            if text == "-0":
                self.v[i], has_v[i] = -0.0, True
            else:
                places.append(i)
                texts.append(text.encode())
        if (strings := np.flatnonzero(self.types == STRING)).size:
            values = _where(self.values, self.types == STRING)
            places += strings.tolist()
            texts += _dumps(values, [False] * len(values))
            if string_is_nonfinite:
                for i, value in zip(strings.tolist(), values, strict=True):
                    if value in NONFINITE_VALUES and string_is_nonfinite(self.paths.key(self.code[i])):
                        kind[i], self.v[i], has_v[i] = NONFINITE, NONFINITE_VALUES[value], True
        whole = (self.types >= LIST) & (self.types <= MEDIA)
        if (at := np.flatnonzero(whole)).size:
            places += at.tolist()
            texts += _dumps(_where(self.values, whole), [r in exact for r in self.row[at].tolist()])
        index = np.full(len(kind), -1, np.int64)
        index[places] = np.arange(len(places))
        return pa.array(texts, pa.binary()).cast(pa.string()).take(pa.array(index, mask=index < 0))

    def _steps(self) -> tuple[Ints, Mask]:
        """`_step` of every row: integers, and integral floats, that an int64 holds."""
        step, known, at = self._of_rows("_step")
        v = self.v[at]
        small = (self.types[at] <= INT) & (np.abs(v) < _EXACT)
        good = small & (np.floor(v) == v)
        step[self.row[at[good]]], known[self.row[at[good]]] = v[good].astype(np.int64), True
        for i in at[~small].tolist():
            value = self.values[i]
            minus_zero = type(value) is Number and value == "-0"
            integral = type(value) is int or minus_zero or (type(value) is float and value.is_integer())
            if integral and -(1 << 63) <= int(value) < 1 << 63:
                step[self.row[i]], known[self.row[i]] = int(value), True
        return step, known

    def _times(self) -> tuple[Ints, Mask]:
        """`_timestamp` of every row in microseconds, where it is a number within the years 1 to 9999."""
        ts, known, at = self._of_rows("_timestamp")
        us = np.rint(self.v[at] * 1e6)
        good = (self.types[at] <= INT) & (us >= _YEAR_1) & (us < _YEAR_10000)
        at = self.row[at[good]]
        ts[at], known[at] = us[good].astype(np.int64), True
        return ts, known

    def _of_rows(self, key: str) -> tuple[Ints, Mask, Ints]:
        """A value for every row, whether it is known, and the cells of a key to take it from."""
        code = self.paths.find(key)
        at = np.flatnonzero(self.code == code) if code is not None else np.empty(0, np.int64)
        return np.zeros(self.rows, np.int64), np.zeros(self.rows, bool), at


def _where(values: list[Any], where: Mask) -> list[Any]:
    return values if where.all() else list(compress(values, where.tolist()))
