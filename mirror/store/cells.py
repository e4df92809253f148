"""Logged rows as cells and back: the tall form in which history is kept, exact in both directions.

A logged row is one JSON object. `decode` turns a batch of rows into one Arrow table with a row per logged
cell; `rows_as_dicts` and `rows_as_json` rebuild the rows. schema/tables.sql (`history`) says what the columns
mean. Nested dictionaries are exploded into their leaves under dotted keys; bit i of `path_id` says that the
i-th dot of the key is such a border, so `{"a": {"b": 1}}` and `{"a.b": 1}` stay apart.

Rows are parsed by orjson, columns are made by numpy. What orjson refuses (bare `NaN`, `1e400`, lone
surrogates, raw control characters) or silently changes (integers beyond 64 bit become floats, `-0` becomes
`0`) is found and parsed once more by the standard library, for the rows concerned only. A name that occurs
twice in one object keeps its last value, as in every JSON reader W&B's own client and server are made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from itertools import chain, compress
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mirror.errors import SourceError

KINDS = ("number", "int", "bool", "string", "null", "nonfinite", "list", "dict", "media", "empty")
NUMBER, INT, BOOL, STRING, NULL, NONFINITE, LIST, DICT, MEDIA, EMPTY = range(len(KINDS))

CELLS = pa.schema(
    [
        pa.field("key", pa.dictionary(pa.int32(), pa.string())),
        pa.field("path_id", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("step", pa.int64()),
        pa.field("ts", pa.timestamp("us", tz="UTC")),
        pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
        pa.field("v", pa.float64()),
        pa.field("j", pa.string()),
    ]
)
"""Columns of a batch of cells; `row` counts from 0 within the batch."""

ESCAPED = -(1 << 63)
"""The sign bit of `path_id`: the key holds a lone surrogate, which no UTF-8 column can, and is kept as the
inside of a JSON string (with escapes)."""

_TEXT = pa.large_string()  # texts of a whole batch may exceed the 2 GB that offsets of 32 bit reach
_DEEPEST = 62  # bits of path_id that can mark a dot
_EXACT = 2.0**53  # up to here a double holds every integer
_DOUBTFUL = r"[^0-9.][0-9]{19}|-0[^.0-9eE]"  # integers that may leave 64 bit, minus zero
_NONFINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_FIRST_US, _LAST_US = -62135596800 * 10**6, 253402300799999999  # years 1 to 9999, in microseconds

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]


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


class _Number(str):
    """The text of a number that neither a Python int of at most 64 bit nor a finite double stands for."""

    __slots__ = ()


def decode(rows: Sequence[str], string_is_nonfinite: Callable[[str], bool] | None = None) -> CellBatch:
    """Turn JSON texts of objects, in logged order, into cells.

    `string_is_nonfinite(key)` tells whether the strings "NaN", "Infinity" and "-Infinity" under that key
    are numbers that the wire spelled as strings (historyKeys says that the key never held a string);
    without it they stay strings. Raises SourceError for a row that is no JSON object.
    """
    objects: list[dict[str, Any]] = []
    exact: set[int] = set()
    _parse(rows, objects, exact)
    cells = _Cells(objects)
    doubtful = cells.doubtful(rows, exact)
    if doubtful:
        for i in doubtful:
            objects[i] = _parse_exactly(rows[i], i)
        exact |= doubtful
        cells = _Cells(objects)
    table, first_step, last_step = cells.table(exact, string_is_nonfinite)
    return CellBatch(len(rows), table, first_step, last_step, fingerprint(rows[-1]) if rows else "")


def fingerprint(row: str) -> str:
    """32 hex digits, equal for two rows exactly if they are the same JSON value: the order of keys does not
    count, `1` and `1.0` differ, NaN equals NaN. Raises SourceError if `row` is no JSON object."""
    value: dict[str, Any]
    text: bytes | None = None
    if not re.search(_DOUBTFUL, row):
        try:
            value = orjson.loads(row)
            if type(value) is dict:
                text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            pass  # lenient tokens, or nested deeper than orjson writes
    if text is None:
        text = _text(_parse_exactly(row, 0), sort=True).encode()
    return blake2b(text, digest_size=16).hexdigest()


# Parsing


def _parse(rows: Sequence[str], objects: list[dict[str, Any]], exact: set[int]) -> None:
    """Append an object per row; note in `exact` which rows took the exact parser."""
    loads = orjson.loads
    append = objects.append
    for i, row in enumerate(rows):
        try:
            value = loads(row)
        except orjson.JSONDecodeError:
            value = _parse_exactly(row, i)
            exact.add(i)
        if type(value) is not dict:
            raise _no_object(row, i, f"it is a {type(value).__name__}")
        append(value)


def _parse_exactly(row: str, i: int) -> dict[str, Any]:
    try:
        value = _EXACTLY.decode(row)
    except ValueError as exc:
        raise _no_object(row, i, str(exc)) from exc
    except RecursionError as exc:
        raise _no_object(row, i, "it is nested too deep") from exc
    if type(value) is not dict:
        raise _no_object(row, i, f"it is a {type(value).__name__}")
    return value


def _no_object(row: str, i: int, why: str) -> SourceError:
    excerpt = row if len(row) <= 80 else row[:77] + "..."
    return SourceError(
        f"Row {i} of a batch is no JSON object ({why}): `{excerpt}`. "
        "The source sent a damaged line; sync again, and report it to who runs the source if it stays."
    )


def _exact_int(text: str) -> int | _Number:
    return int(text) if len(text) < 20 and text != "-0" else _Number(text)


def _exact_float(text: str) -> float | _Number:
    value = float(text)
    return value if abs(value) != float("inf") else _Number(text)


_EXACTLY = json.JSONDecoder(
    strict=False, parse_int=_exact_int, parse_float=_exact_float, parse_constant=_NONFINITE.__getitem__
)


def _python_int(text: str) -> int:
    return int(text) if len(text) < 4300 else int(Decimal(text))  # Python refuses longer texts


_PYTHON = json.JSONDecoder(strict=False, parse_int=_python_int)


def _text(value: Any, *, sort: bool = False) -> str:
    """JSON text of a value made by the exact parser; numbers are written as orjson writes them."""
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        items = sorted(value.items()) if sort else value.items()
        return "{" + ",".join([f"{_quoted(k)}:{_text(v, sort=sort)}" for k, v in items]) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_text(v, sort=sort) for v in value]) + "]"
    if isinstance(value, float) and value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return orjson.dumps(value).decode()


def _quoted(text: str) -> str:
    try:
        return orjson.dumps(text).decode()
    except orjson.JSONEncodeError:  # a lone surrogate: escape it
        return json.dumps(text)


def _dumps(values: list[Any], exact: list[bool]) -> list[bytes]:
    """JSON texts of strings, lists and dictionaries; `exact`: those the exact parser made."""
    try:
        return [_text(v).encode() if e else orjson.dumps(v) for v, e in zip(values, exact, strict=True)]
    except orjson.JSONEncodeError:  # a lone surrogate, or nested deeper than orjson writes
        return [_text(v).encode() for v in values]


# Rows to cells

_TYPES = {float: NUMBER, int: INT, bool: BOOL, str: STRING, type(None): NULL, list: LIST, dict: DICT}
_TYPES[_Number] = EMPTY  # no value has that kind: it stands for _Number until the text is looked at
_NESTED = -1  # a dictionary to be taken apart


class _Cells:
    """The cells of parsed rows, side by side: value, code of the value's type, code of its path, row."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.rows = len(objects)
        self.empty: Ints = np.flatnonzero([not value for value in objects])
        self.paths = _Paths()
        self.values: list[Any] = []
        levels: list[tuple[Codes, Ints, Ints]] = []
        dicts, code, row = objects, np.empty(0, np.int64), np.arange(len(objects))
        while len(dicts) or not levels:  # a round per level of nesting, the rows themselves being the first
            lengths = np.fromiter(map(len, dicts), np.int64, len(dicts))
            names = list(chain.from_iterable(dicts))
            values = list(chain.from_iterable(map(dict.values, dicts)))
            code = self.paths.inner(np.repeat(code, lengths), names) if levels else self.paths.top(names)
            row = np.repeat(row, lengths)
            types = np.fromiter(map(_TYPES.__getitem__, map(type, values)), np.int8, len(values))
            if DICT in types:
                at = np.flatnonzero(types == DICT)
                types[at] = list(map(self._kind, _where(values, types == DICT), code[at].tolist()))
            leaf = types != _NESTED
            levels.append((types[leaf], code[leaf], row[leaf]))
            self.values += _where(values, leaf)
            dicts, code, row = _where(values, ~leaf), code[~leaf], row[~leaf]
        self.types, self.code, self.row = map(np.concatenate, zip(*levels, strict=True))
        plain = self.types <= BOOL
        self.v: Floats = np.full(len(self.values), np.nan)
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
            hit = pc.match_substring_regex(pa.array([rows[i] for i in more], _TEXT), _DOUBTFUL)
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
        for i in np.flatnonzero(self.types == EMPTY).tolist():  # numbers of type _Number
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
                    if value in _NONFINITE and string_is_nonfinite(self.paths.key(self.code[i])):
                        kind[i], self.v[i], has_v[i] = NONFINITE, _NONFINITE[value], True
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
        good = (self.types[at] <= INT) & (np.abs(v) < 2.0**63) & (np.floor(v) == v)
        at, v = at[good], v[good]
        step[self.row[at]], known[self.row[at]] = v.astype(np.int64), True
        for i in at[(np.abs(v) >= _EXACT) & (self.types[at] == INT)].tolist():
            step[self.row[i]] = self.values[i]
        return step, known

    def _times(self) -> tuple[Ints, Mask]:
        """`_timestamp` of every row in microseconds, where it is a number within the years 1 to 9999."""
        ts, known, at = self._of_rows("_timestamp")
        us = np.rint(self.v[at] * 1e6)
        good = (self.types[at] <= INT) & (us >= _FIRST_US) & (us <= _LAST_US)
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


class _Paths:
    """Codes for paths (where a cell sits in its row), each with its dotted key and border bits."""

    def __init__(self) -> None:
        self._top: dict[str, int] = {}
        self._inner: dict[tuple[int, str], int] = {}
        self._keys: list[str] = []
        self._bits: list[int] = []
        self._dots: list[int] = []

    def top(self, names: list[str]) -> Ints:
        for name in dict.fromkeys(names):
            if name not in self._top:
                self._top[name] = self._add(name, 0)
        return np.fromiter(map(self._top.__getitem__, names), np.int64, len(names))

    def inner(self, parents: Ints, names: list[str]) -> Ints:
        pairs = list(zip(parents.tolist(), names, strict=True))
        for pair in dict.fromkeys(pairs):
            if pair not in self._inner:
                parent, name = pair
                border = 1 << self._dots[parent]
                self._inner[pair] = self._add(f"{self._keys[parent]}.{name}", self._bits[parent] | border)
        return np.fromiter(map(self._inner.__getitem__, pairs), np.int64, len(pairs))

    def _add(self, key: str, bits: int) -> int:
        self._keys.append(key)
        self._bits.append(bits)
        self._dots.append(key.count("."))
        return len(self._keys) - 1

    def can_nest(self, code: int) -> bool:
        return self._dots[code] < _DEEPEST

    def find(self, key: str) -> int | None:
        return self._top.get(key)

    def key(self, code: int) -> str:
        return self._keys[code]

    def columns(self, code: Ints) -> tuple[pa.Array, Ints]:
        """The columns key and path_id of cells with these path codes."""
        names: dict[str, int] = {}
        name_of = np.empty(len(self._keys), np.int32)
        bits_of = np.empty(len(self._keys), np.int64)
        for i, (key, bits) in enumerate(zip(self._keys, self._bits, strict=True)):
            try:
                key.encode()
            except UnicodeEncodeError:
                key, bits = json.dumps(key)[1:-1], bits | ESCAPED
            name_of[i] = names.setdefault(key, len(names))
            bits_of[i] = bits
        key_column = pa.DictionaryArray.from_arrays(name_of[code], pa.array(names, pa.string()))
        return key_column, bits_of[code]


# Cells to rows

_NOTHING = pa.scalar("", _TEXT)


def rows_as_json(table: pa.Table) -> Iterator[str]:
    """The rows of a table of cells (columns key, path_id, row, kind, v, j; any order; one generation of one
    run) as JSON texts, in order of `row`. Numbers keep their type, non-finite ones the spelling of the
    wire. Keys come sorted."""
    texts, _ = _rebuild(table, wire_spelling=True)
    yield from texts.to_pylist()


def rows_as_dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The same rows as dicts: ints stay int of any size, floats float, NaN and the infinities are floats
    however the wire spelled them. A number beyond every double (1e400) becomes an infinity, as in `json`."""
    texts, lenient = _rebuild(table, wire_spelling=False)
    fast, exact = orjson.loads, _PYTHON.decode
    for text, slow in zip(texts.to_pylist(), lenient.tolist(), strict=True):
        if not slow:
            try:
                yield fast(text)
                continue
            except orjson.JSONDecodeError:  # a lone surrogate in a string
                pass
        yield exact(text)


def _rebuild(table: pa.Table, wire_spelling: bool) -> tuple[pa.Array, Mask]:
    """JSON text of every row, and which rows orjson would not read as they are."""
    if not len(table):
        return pa.array([], _TEXT), np.zeros(0, bool)
    code, paths = _path_codes(table)
    rank = np.empty(len(paths), np.int64)
    rank[sorted(range(len(paths)), key=paths.__getitem__)] = np.arange(len(paths))
    row: Ints = table.column("row").to_numpy()
    order = np.lexsort((rank[code], row))
    code, row = code[order], row[order]
    first = np.concatenate([[True], row[1:] != row[:-1]])
    starts = np.flatnonzero(first)
    cells = table.select(["kind", "v", "j"]).take(pa.array(order))
    values, lenient, empty = _value_texts(cells, wire_spelling)

    # What stands before a value depends on its path and on the path before it: few different pairs.
    before = np.concatenate([[-1], code[:-1]])
    before[first] = -1
    pairs = pc.dictionary_encode(pa.array((before + 1) * len(paths) + code))
    heads = pa.array(
        [_head(paths[p // len(paths) - 1] if p >= len(paths) else None, paths[p % len(paths)])
         for p in pairs.dictionary.to_pylist()],
        _TEXT,
    )  # fmt: skip
    pieces = pc.binary_join_element_wise(heads.take(pairs.indices), values, _NOTHING)
    joined = pc.binary_join(pa.LargeListArray.from_arrays(np.append(starts, len(row)), pieces), _NOTHING)
    ends = np.append(starts[1:], len(row)) - 1
    tails = pa.array(["}" * len(path) for path in paths], _TEXT)
    texts = pc.binary_join_element_wise(joined, tails.take(pa.array(code[ends])), _NOTHING)
    texts = pc.if_else(pa.array(empty[starts]), pa.scalar("{}", _TEXT), texts)
    return texts, np.logical_or.reduceat(lenient, starts)


def _path_codes(table: pa.Table) -> tuple[Ints, list[tuple[str, ...]]]:
    """A code per cell, and the path (names from the outside in) of every code."""
    key = table.column("key")
    if not pa.types.is_dictionary(key.type):
        key = key.dictionary_encode()
    key = key.unify_dictionaries().combine_chunks()
    names: list[str] = key.dictionary.to_pylist()
    name: Ints = key.indices.to_numpy().astype(np.int64)
    path_id: Ints = table.column("path_id").to_numpy()
    if not path_id.any():
        return name, [(n,) for n in names]
    kinds, inverse = np.unique(path_id, return_inverse=True)
    both = pc.dictionary_encode(pa.array(name * len(kinds) + inverse))
    paths = [_path(names[b // len(kinds)], int(kinds[b % len(kinds)])) for b in both.dictionary.to_pylist()]
    return both.indices.to_numpy().astype(np.int64), paths


def _path(key: str, path_id: int) -> tuple[str, ...]:
    """The names a dotted key is made of: cut at the dots whose bit is set in `path_id`."""
    parts = key.split(".")
    names = [parts[0]]
    for i, part in enumerate(parts[1:]):
        if i < _DEEPEST and path_id >> i & 1:
            names.append(part)
        else:
            names[-1] += "." + part
    return tuple(json.loads(f'"{n}"') for n in names) if path_id < 0 else tuple(names)


def _head(before: tuple[str, ...] | None, path: tuple[str, ...]) -> str:
    """What to write before the value at `path` when the value before it was at `before`."""
    if before is None:
        return "".join(["{" + _quoted(name) + ":" for name in path])
    same = 0
    while same < min(len(before), len(path)) - 1 and before[same] == path[same]:
        same += 1
    inner = "".join(["{" + _quoted(name) + ":" for name in path[same + 1 :]])
    return "}" * (len(before) - same - 1) + "," + _quoted(path[same]) + ":" + inner


def _value_texts(cells: pa.Table, wire_spelling: bool) -> tuple[pa.Array, Mask, Mask]:
    """JSON text of every value; which of them orjson would refuse or change; which are empty rows."""
    codes = pc.index_in(cells.column("kind").cast(pa.string()), pa.array(KINDS))
    kind: Codes = codes.combine_chunks().to_numpy().astype(np.int8)
    v: Floats = cells.column("v").to_numpy()
    j = cells.column("j").combine_chunks().cast(_TEXT)
    has_j: Mask = j.is_valid().to_numpy(zero_copy_only=False)
    if not wire_spelling:
        has_j &= kind != NONFINITE
    parts: list[pa.Array] = []
    places: list[Ints] = []

    def put(where: Mask, make: Callable[[Ints], pa.Array]) -> None:
        at = np.flatnonzero(where)
        if len(at):
            places.append(at)
            parts.append(make(at))

    put(has_j, lambda at: j.take(pa.array(at)))
    put(~has_j & (kind == NUMBER), lambda at: _float_texts(v[at]))
    put(~has_j & (kind == INT), lambda at: _int_texts(v[at]))
    put(~has_j & (kind == BOOL), lambda at: _choose(v[at] != 0, ["false", "true"]))
    put(~has_j & (kind == NONFINITE), lambda at: _choose(
        np.where(np.isnan(v[at]), 0, np.where(v[at] > 0, 1, 2)), list(_NONFINITE)))  # fmt: skip
    put(~has_j & ((kind == NULL) | (kind == EMPTY)), lambda at: _choose(kind[at] == EMPTY, ["null", ""]))
    place = np.empty(len(kind), np.int64)
    place[np.concatenate(places)] = np.arange(len(kind))
    texts = parts[0] if len(parts) == 1 else pa.concat_arrays(parts).take(pa.array(place))
    lenient = (kind == NONFINITE) | has_j & (kind <= INT)
    whole = np.flatnonzero((kind >= LIST) & (kind <= MEDIA))
    if len(whole):
        found = pc.match_substring_regex(j.take(pa.array(whole)), r"NaN|Infinity|[^0-9.][0-9]{19}")
        lenient[whole[found.to_numpy(zero_copy_only=False)]] = True
    return texts, lenient, kind == EMPTY


def _float_texts(v: Floats) -> pa.Array:
    """Shortest texts that give the same doubles; always with a point or an exponent, so floats stay floats.

    orjson writes the whole array at once; its commas give the offsets of an Arrow array."""
    text = orjson.dumps(np.ascontiguousarray(v), option=orjson.OPT_SERIALIZE_NUMPY)
    raw = np.frombuffer(text, np.uint8)[1:]
    comma = (raw == ord(",")) | (raw == ord("]"))
    offsets = np.zeros(len(v) + 1, np.int64)
    offsets[1:] = np.flatnonzero(comma) - np.arange(len(v))
    return pa.LargeStringArray.from_buffers(len(v), pa.py_buffer(offsets), pa.py_buffer(raw[~comma]))


def _int_texts(v: Floats) -> pa.Array:
    texts = pa.array(v.astype(np.int64)).cast(_TEXT)
    minus = np.signbit(v) & (v == 0)
    return pc.if_else(pa.array(minus), pa.scalar("-0", _TEXT), texts) if minus.any() else texts


def _choose(index: npt.NDArray[Any], words: Iterable[str]) -> pa.Array:
    return pa.array(words, _TEXT).take(pa.array(index.astype(np.int8)))
