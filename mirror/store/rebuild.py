"""Cells back to rows: the JSON texts or dicts that were logged, made by Arrow kernels, not cell by cell.

The text of a row is made of pieces: what stands before a value (a brace or comma, the key, the braces of
nested dictionaries that end or begin there), the value, and the closing braces. What stands before a value
depends on its path and on the path before it alone, so there are few different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mirror.store import cellform
from mirror.store.cellform import (
    BOOL,
    EMPTY,
    INT,
    LIST,
    MEDIA,
    NONFINITE,
    NULL,
    NUMBER,
    Floats,
    Ints,
    Mask,
    Path,
)  # fmt: skip
from mirror.store.jsontext import NONFINITE as NONFINITE_VALUES
from mirror.store.jsontext import parse_plainly, quoted

_TEXT = pa.large_string()  # texts of a whole batch may exceed the 2 GB that offsets of 32 bit reach
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
    fast, exact = orjson.loads, parse_plainly
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
    code, places = cellform.places(table)
    paths = [cellform.path(key, path_id) for key, path_id in places]
    rank = np.empty(len(paths), np.int64)
    rank[sorted(range(len(paths)), key=paths.__getitem__)] = np.arange(len(paths))
    row: Ints = table.column("row").to_numpy()
    order = np.lexsort((rank[code], row))
    code, row = code[order], row[order]
    first = np.concatenate([[True], row[1:] != row[:-1]])
    starts = np.flatnonzero(first)
    cells = table.select(["kind", "v", "j"]).take(pa.array(order))
    values, lenient, empty = _value_texts(cells, wire_spelling)

    before = np.concatenate([[-1], code[:-1]])
    before[first] = -1
    pairs = pc.dictionary_encode(pa.array((before + 1) * len(paths) + code))
    both = (divmod(pair, len(paths)) for pair in pairs.dictionary.to_pylist())
    heads = pa.array([_head(paths[b - 1] if b else None, paths[c]) for b, c in both], _TEXT)
    pieces = pc.binary_join_element_wise(heads.take(pairs.indices), values, _NOTHING)
    joined = pc.binary_join(pa.LargeListArray.from_arrays(np.append(starts, len(row)), pieces), _NOTHING)
    tails = pa.array(["}" * len(path) for path in paths], _TEXT)
    last = code[np.append(starts[1:], len(row)) - 1]
    texts = pc.binary_join_element_wise(joined, tails.take(pa.array(last)), _NOTHING)
    texts = pc.if_else(pa.array(empty[starts]), pa.scalar("{}", _TEXT), texts)
    return texts, np.logical_or.reduceat(lenient, starts)


def _head(before: Path | None, path: Path) -> str:
    """What to write before the value at `path` when the value before it was at `before`."""
    if before is None:
        return "".join(["{" + quoted(name) + ":" for name in path])
    same = 0
    while same < min(len(before), len(path)) - 1 and before[same] == path[same]:
        same += 1
    inner = "".join(["{" + quoted(name) + ":" for name in path[same + 1 :]])
    return "}" * (len(before) - same - 1) + "," + quoted(path[same]) + ":" + inner


def _value_texts(cells: pa.Table, wire_spelling: bool) -> tuple[pa.Array, Mask, Mask]:
    """JSON text of every value; which of them orjson would refuse or change; which are empty rows."""
    kind = cellform.kind_codes(cells)
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
        np.where(np.isnan(v[at]), 0, np.where(v[at] > 0, 1, 2)), NONFINITE_VALUES))  # fmt: skip
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
