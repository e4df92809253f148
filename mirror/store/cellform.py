"""The form of cells: kinds, columns, and how a place in a row becomes a dotted key with border bits."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

KINDS = ("number", "int", "bool", "string", "null", "nonfinite", "list", "dict", "media", "empty")
"""Kinds of cells; schema/tables.sql tells what v and j hold for each."""

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

BORDERS = 62
"""Dots of a key that `path_id` can mark; a dictionary further in is kept whole."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]
Path = tuple[str, ...]
"""The names that lead to a value, from the outside in."""


class Paths:
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
        return self._dots[code] < BORDERS

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


def places(table: pa.Table) -> tuple[Ints, list[tuple[str, int]]]:
    """A code per cell of a table with key and path_id, and the (key, path_id) of every code."""
    key = table.column("key")
    if not pa.types.is_dictionary(key.type):
        key = key.dictionary_encode()
    key = key.unify_dictionaries().combine_chunks()
    names: list[str] = key.dictionary.to_pylist()
    name: Ints = key.indices.to_numpy().astype(np.int64)
    path_id: Ints = table.column("path_id").to_numpy()
    if not path_id.any():
        return name, [(n, 0) for n in names]
    bits, bit = np.unique(path_id, return_inverse=True)
    both = pc.dictionary_encode(pa.array(name * len(bits) + bit))
    pairs = [(names[b // len(bits)], int(bits[b % len(bits)])) for b in both.dictionary.to_pylist()]
    return both.indices.to_numpy().astype(np.int64), pairs


def kind_codes(table: pa.Table) -> Codes:
    """Column `kind` as indices into KINDS."""
    kind = table.column("kind")
    if not pa.types.is_dictionary(kind.type):
        kind = kind.dictionary_encode()
    kind = kind.unify_dictionaries().combine_chunks()
    if not len(kind):
        return np.zeros(0, np.int8)
    codes: Codes = pc.index_in(kind.dictionary, pa.array(KINDS)).to_numpy().astype(np.int8)
    found: Codes = codes[kind.indices.to_numpy()]
    return found


def path(key: str, path_id: int) -> Path:
    """The names a dotted key is made of: cut at the dots whose bit is set in `path_id`."""
    parts = key.split(".")
    names = [parts[0]]
    for i, part in enumerate(parts[1:]):
        if i < BORDERS and path_id >> i & 1:
            names.append(part)
        else:
            names[-1] += "." + part
    return tuple(json.loads(f'"{n}"') for n in names) if path_id < 0 else tuple(names)
