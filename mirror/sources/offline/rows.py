"""History and summary records as JSON, fast: a log holds three such records for every logged row.

Both are lists of items, a path and the JSON text of a value each (wandb_internal.proto: HistoryRecord,
SummaryRecord). They are not parsed one by one: numpy finds the items of thousands of records side by side, and a
row of plain keys becomes JSON where it lies, since the bytes between its keys and values leave room for JSON's
punctuation. What is not that plain (nested keys, keys to be escaped, very long rows) goes by protobuf.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirror.sources.offline.protobuf import decoded, messages

_HISTORY, _SUMMARY = 0x12, 0x1A
"""Tags of Record.history and Record.summary (fields 2 and 3, length-delimited)."""

_NUM = 0x08
_ITEM = 0x0A
_KEY, _NESTED_KEY = 0x0A, 0x12
_VALUE = (0x82, 0x01)
_STEP = 0x12
_LONG_RECORD = 16 << 10
"""Bytes of a record that is taken apart alone: a round of numpy a key pays off only for many records."""
_PADDING = 32
_SPECIAL = re.compile(rb'[\x00-\x1f"\\]')
"""What JSON escapes in a string."""

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Path = tuple[str, ...]
Update = tuple[Path, "str | None"]
"""A path and the JSON text of its value, None where it was removed."""


class Records:
    """Some records of a log, in order. `unknown` of them are no records at all."""

    def __init__(self, records: Sequence[bytes]) -> None:
        self.unknown = 0
        self._load(records)
        if (odd := np.flatnonzero(self._tags > 127)).size:
            # Some writers put other fields before what a record holds.
            ordered: list[bytes | None] = list(records)
            for i in odd.tolist():
                ordered[i] = _in_order(records[i])
            self.unknown = ordered.count(None)
            self._load([record for record in ordered if record is not None])

    def _load(self, records: Sequence[bytes]) -> None:
        self._records = records
        self._buffer: Bytes = np.frombuffer(bytearray(b"".join(records) + bytes(_PADDING)), np.uint8)
        self._sizes = np.fromiter(map(len, records), np.int64, len(records))
        self._ends = np.cumsum(self._sizes)
        starts = self._ends - self._sizes
        _, self._tag_at = _varint(self._buffer, starts + 1)
        plain = (self._sizes > 3) & (self._buffer[starts] == _NUM) & (self._tag_at < self._ends)
        self._tags = np.where(plain, self._buffer[np.minimum(self._tag_at, len(self._buffer) - 1)], 255)

    def _of(self, tag: int) -> tuple[Ints, Mask]:
        """Which records have a tag, and which of these are short."""
        found = np.flatnonzero(self._tags == tag)
        return found, self._sizes[found] < _LONG_RECORD

    def others(self) -> Iterator[bytes]:
        """The records that are neither history nor summary."""
        for i in np.flatnonzero((self._tags != _HISTORY) & (self._tags != _SUMMARY)).tolist():
            yield self._records[i]

    def history(self) -> list[str]:
        """A JSON text for each logged row."""
        found, short = self._of(_HISTORY)
        texts = dict(zip(found[short].tolist(), self._in_place(found[short]), strict=True)) if short.any() else {}
        return [texts.get(i) or by_protobuf(self._records[i]) for i in found.tolist()]

    def summary(self) -> Iterator[Update]:
        """What remains of the updates of the summary: of those of one path the last, in the order of these."""
        found, short = self._of(_SUMMARY)
        first = 0
        for i in [*np.flatnonzero(~short).tolist(), len(found)]:
            if i > first:
                yield from self._last_updates(found[first:i])
            if i < len(found):
                yield from _updates(self._records[int(found[i])])
            first = i + 1

    def _in_place(self, which: Ints) -> list[str | None]:
        """The JSON texts of rows of plain keys, None for others."""
        items = _scan(self._buffer, self._tag_at[which], self._ends[which])
        buffer, odd = self._buffer, items.odd
        odd |= (buffer[items.stop] != _STEP) | (items.stop >= items.end)  # this byte becomes the closing brace
        size, key = _varint(buffer, items.path + 1)
        order = np.argsort(items.start, kind="stable")
        codes, paths = _distinct(items, order)
        special = np.fromiter((_SPECIAL.search(path[2:]) is not None for path in paths), bool, len(paths))
        odd[items.record[(items.keys > 1) | (key + size != items.path_end)]] = True
        odd[items.record[order[special[codes]]]] = True
        some = np.zeros(len(which), bool)
        some[items.record] = True
        odd |= ~some
        _blank(buffer, items.start + 1, key - 1)
        _blank(buffer, items.path_end + 2, items.value)
        buffer[items.start] = ord(",")
        buffer[items.begin[some]] = ord("{")
        buffer[key - 1] = ord('"')
        buffer[items.path_end] = ord('"')
        buffer[items.path_end + 1] = ord(":")
        buffer[items.stop[~odd]] = ord("}")
        whole = buffer.tobytes()
        return [
            None if bad else str(whole[a : b + 1], "utf-8")
            for bad, a, b in zip(odd.tolist(), items.begin.tolist(), items.stop.tolist(), strict=True)
        ]

    def _last_updates(self, which: Ints) -> Iterator[Update]:
        items = _scan(self._buffer, self._tag_at[which], self._ends[which])
        order = np.argsort(items.start, kind="stable")
        record = items.record[order]
        odd = np.flatnonzero(items.odd | (items.stop != items.end)).tolist()
        first = 0
        for i in [*odd, len(which)]:  # between records that remove something, or hold what is not known
            mine = order[np.searchsorted(record, first) : np.searchsorted(record, i)]
            codes, paths = _distinct(items, mine)
            last = np.zeros(len(paths), np.int64)
            np.maximum.at(last, codes, np.arange(len(mine)))
            for n in np.argsort(last).tolist():
                at = int(mine[last[n]])
                yield _path(paths[n]), str(self._buffer[items.value[at] : items.value_end[at]].tobytes(), "utf-8")
            if i < len(which):
                yield from _updates(self._records[int(which[i])])
            first = i + 1


@dataclass
class _Items:
    """Items of many records in `buffer`: the record of each, where it begins, where its path and its value are, how
    many keys the path has. Each record's items lie from `begin` to `stop`, all it holds ends at `end`; `odd` are
    records of which not everything up to `stop` could be read."""

    buffer: Bytes
    record: Ints
    start: Ints
    path: Ints
    path_end: Ints
    value: Ints
    value_end: Ints
    keys: Ints
    begin: Ints
    stop: Ints
    end: Ints
    odd: Mask


def _varint(buffer: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """The varints at these places, and the places behind them."""
    byte = buffer[at]
    value = (byte & 127).astype(np.int64)
    behind = at + 1
    more = byte > 127
    shift = 7
    while shift < 63 and more.any():
        byte = buffer[behind]
        value[more] |= (byte[more] & 127).astype(np.int64) << shift
        behind = behind + more
        more &= byte > 127
        shift += 7
    return value, behind


def _scan(buffer: Bytes, tag_at: Ints, ends: Ints) -> _Items:
    """The items of history or summary records, which have their tags at `tag_at`."""
    limit = len(buffer) - _PADDING // 2
    length, begin = _varint(buffer, tag_at + 1)
    end = begin + length
    odd = end > ends
    stop = begin.copy()
    record = np.flatnonzero(~odd)
    pos = begin[record]
    found: list[tuple[Ints, ...]] = []
    while True:
        live = (pos < end[record]) & (buffer[pos] == _ITEM)
        stop[record] = pos
        record, pos = record[live], pos[live]
        if not len(record):
            break
        size, path = _varint(buffer, pos + 1)
        item_end = path + size
        at, keys = path, np.zeros(len(path), np.int64)
        while True:
            key = ((buffer[at] == _KEY) | (buffer[at] == _NESTED_KEY)) & (at < item_end)
            if not key.any():
                break
            size, behind = _varint(buffer, at + 1)
            at = np.minimum(np.where(key, behind + size, at), limit)
            keys += key
        size, value = _varint(buffer, at + 2)
        good = (buffer[at] == _VALUE[0]) & (buffer[at + 1] == _VALUE[1])
        good &= (value + size == item_end) & (item_end <= end[record]) & (keys > 0)
        odd[record[~good]] = True
        found.append(tuple(a[good] for a in (record, pos, path, at, value, item_end, keys)))
        record, pos = record[good], item_end[good]
    empty = np.empty(0, np.int64)
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)] if found else [empty] * 7
    record, start, path, path_end, value, value_end, keys_of = columns
    return _Items(buffer, record, start, path, path_end, value, value_end, keys_of, begin, stop, end, odd)


def _blank(buffer: Bytes, start: Ints, end: Ints) -> None:
    """Write blanks between these places, a few bytes each."""
    while (inside := start < end).any():
        buffer[start[inside]] = ord(" ")
        start = start + 1


def _in_order(record: bytes) -> bytes | None:
    """The same record with what it holds right behind its number, None if it is none."""
    found = decoded(record)
    if found is None:
        return None
    found.ClearField("_info")
    found.ClearField("control")
    found.num = found.num or 1
    text: bytes = found.SerializeToString()
    return text


def by_protobuf(record: bytes) -> str:
    """The JSON text of one history record, whatever is in it."""
    found = messages().Record.FromString(record).history
    row: dict[str, Any] = {}
    for item in found.item:
        path = list(item.nested_key) or [item.key]
        place = row
        for name in path[:-1]:
            inner = place.get(name)
            if not isinstance(inner, dict):
                inner = place[name] = {}
            place = inner
        place[path[-1]] = _value_of(item)
    if "_step" not in row and found.HasField("step"):
        row["_step"] = str(found.step.num)
    return _joined(row)


def _value_of(item: Any) -> str:
    """The JSON text of an item's value, which newer logs may hold by its type."""
    if item.value_json or "value" not in item.DESCRIPTOR.oneofs_by_name:
        return str(item.value_json)
    kind = item.WhichOneof("value")
    if kind in (None, "none"):
        return "null"
    return str(item.json) if kind == "json" else json.dumps(getattr(item, kind))


def _joined(row: dict[str, Any]) -> str:
    parts = (f"{json.dumps(k)}:{_joined(v) if isinstance(v, dict) else v}" for k, v in row.items())
    return "{" + ",".join(parts) + "}"


def _distinct(items: _Items, order: Ints) -> tuple[Ints, list[bytes]]:
    """The distinct paths of some items, which are in the order of the log, and which of these each has."""
    if not len(order):
        return order, []
    # Arrow compares the paths where they lie: every second piece between these borders is one.
    borders = np.column_stack([items.path[order], items.path_end[order]]).ravel().astype(np.int32)
    buffers = [None, pa.py_buffer(borders), pa.py_buffer(items.buffer)]
    pieces = pa.Array.from_buffers(pa.binary(), len(borders) - 1, buffers)
    encoded = pieces.take(pa.array(np.arange(0, len(borders) - 1, 2))).dictionary_encode()
    codes: Ints = encoded.indices.to_numpy()
    return codes, encoded.dictionary.to_pylist()


def _path(keys: bytes) -> Path:
    item = messages().SummaryItem.FromString(keys)
    return tuple(item.nested_key) or (item.key,)


def _updates(record: bytes) -> Iterator[Update]:
    summary = messages().Record.FromString(record).summary
    for item in summary.update:
        yield tuple(item.nested_key) or (item.key,), item.value_json
    for item in summary.remove:
        yield tuple(item.nested_key) or (item.key,), None
