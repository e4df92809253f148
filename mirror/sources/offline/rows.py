"""History and summary records as JSON, fast: a log holds three such records for every logged row.

Both are lists of items, a path and the JSON text of a value each (wandb_internal.proto: HistoryRecord,
SummaryRecord). They are not parsed one by one: numpy finds the items of thousands of records side by side, and a
row of plain keys becomes JSON where it lies, since the bytes between its keys and values leave room for JSON's
punctuation. What is not that plain (nested keys, keys to be escaped, very long rows) goes by protobuf.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirror.sources.offline.protobuf import messages

HISTORY, SUMMARY = 0x12, 0x1A
"""Tags of Record.history and Record.summary (fields 2 and 3, length-delimited)."""

_NUM = 0x08
_UNKNOWN = 0xFF
_ITEM = 0x0A
_KEY, _NESTED_KEY = 0x0A, 0x12
_VALUE = (0x82, 0x01)
_STEP = 0x12
_LONG_RECORD = 16 << 10
"""Bytes of a record that is taken apart alone: a round of numpy a key pays off only for many records."""

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def tag(record: bytes) -> int:
    """The tag of what a record holds, if it stands right behind the record's number; else something above 127."""
    if len(record) < 4 or record[0] != _NUM:
        return _UNKNOWN
    p = 1
    while record[p] > 127 and p < len(record) - 2:
        p += 1
    return record[p + 1]


def canonical(record: bytes) -> bytes:
    """The same record with what it holds right behind its number: some writers put other fields before it."""
    if tag(record) < 128:
        return record
    found = messages().Record.FromString(record)
    found.ClearField("_info")
    found.ClearField("control")
    found.num = found.num or 1
    text: bytes = found.SerializeToString()
    return text


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
    """The varints at these places, and the places behind them. Lengths beyond 2^35 do not occur."""
    byte = buffer[at]
    value = (byte & 127).astype(np.int64)
    behind = at + 1
    more = byte > 127
    shift = 7
    while shift < 35 and more.any():
        byte = buffer[behind]
        value[more] |= (byte[more] & 127).astype(np.int64) << shift
        behind = behind + more
        more &= byte > 127
        shift += 7
    return value, behind


def _scan(records: Sequence[bytes]) -> _Items:
    """The items of history or summary records."""
    buffer = np.frombuffer(bytearray(b"".join(records) + bytes(32)), np.uint8)
    limit = len(buffer) - 16
    sizes = np.fromiter(map(len, records), np.int64, len(records))
    ends = np.cumsum(sizes)
    _, at = _varint(buffer, ends - sizes + 1)
    length, begin = _varint(buffer, at + 1)
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


# -- history --------------------------------------------------------------------------------------------------


def history(records: Sequence[bytes]) -> list[str]:
    """A JSON text for each history record, in order."""
    texts: list[str | None] = [None] * len(records)
    short = [i for i, record in enumerate(records) if len(record) < _LONG_RECORD]
    if short:
        for i, text in zip(short, _in_place([records[i] for i in short]), strict=True):
            texts[i] = text
    return [by_protobuf(records[i]) if text is None else text for i, text in enumerate(texts)]


def _in_place(records: Sequence[bytes]) -> list[str | None]:
    """The JSON texts of rows of plain keys, None for others."""
    items = _scan(records)
    buffer = items.buffer
    odd = items.odd
    odd |= (buffer[items.stop] != _STEP) | (items.stop >= items.end)  # this byte becomes the closing brace
    size, key = _varint(buffer, items.path + 1)
    special = np.concatenate([[0], np.cumsum((buffer < 32) | (buffer == ord('"')) | (buffer == ord("\\")))])
    plain = (items.keys == 1) & (special[key + size] == special[key])
    odd[items.record[~plain]] = True
    some = np.zeros(len(records), bool)
    some[items.record] = True
    odd |= ~some
    blank = items.start + 1
    while (inside := blank < key - 1).any():
        buffer[blank[inside]] = ord(" ")
        blank = blank + 1
    buffer[items.start] = ord(",")
    buffer[items.begin[some]] = ord("{")
    buffer[key - 1] = ord('"')
    buffer[items.path_end] = ord('"')
    buffer[items.path_end + 1] = ord(":")
    blank = items.path_end + 2
    while (inside := blank < items.value).any():
        buffer[blank[inside]] = ord(" ")
        blank = blank + 1
    buffer[items.stop[~odd]] = ord("}")
    whole = buffer.tobytes()
    return [
        None if bad else str(whole[a : b + 1], "utf-8")
        for bad, a, b in zip(odd.tolist(), items.begin.tolist(), items.stop.tolist(), strict=True)
    ]


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
        place[path[-1]] = item.value_json
    if "_step" not in row and found.HasField("step"):
        row["_step"] = str(found.step.num)
    return _joined(row)


def _joined(row: dict[str, Any]) -> str:
    parts = (f"{json.dumps(k)}:{_joined(v) if isinstance(v, dict) else v}" for k, v in row.items())
    return "{" + ",".join(parts) + "}"


# -- summary --------------------------------------------------------------------------------------------------


def last_updates(records: Sequence[bytes]) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """What remains of the updates of these summary records: a path and the JSON text of its value, None where it
    was removed. Of updates of one path only the last, in the order of these."""
    short: list[bytes] = []
    for record in records:
        if len(record) < _LONG_RECORD:
            short.append(record)
        else:
            yield from _fold(short)
            short = []
            yield from _changes(record)
    yield from _fold(short)


def _fold(records: Sequence[bytes]) -> Iterator[tuple[tuple[str, ...], str | None]]:
    if not records:
        return
    items = _scan(records)
    order = np.argsort(items.start, kind="stable")
    record = items.record[order]
    whole = items.buffer.tobytes()
    odd = np.flatnonzero(items.odd | (items.stop != items.end)).tolist()
    first = 0
    for i in [*odd, len(records)]:  # between records that remove something, or hold what is not known
        mine = order[np.searchsorted(record, first) : np.searchsorted(record, i)]
        for at in mine[_last(items, mine)].tolist():
            path = _path(whole[int(items.path[at]) : int(items.path_end[at])])
            yield path, str(whole[int(items.value[at]) : int(items.value_end[at])], "utf-8")
        if i < len(records):
            yield from _changes(records[i])
        first = i + 1


def _last(items: _Items, mine: Ints) -> Ints:
    """Which of these items are the last ones with their path, in order."""
    if not len(mine):
        return mine
    # Arrow compares the paths where they lie: every second piece between these borders is one.
    borders = np.column_stack([items.path[mine], items.path_end[mine]]).ravel().astype(np.int32)
    buffers = [None, pa.py_buffer(borders), pa.py_buffer(items.buffer)]
    pieces = pa.Array.from_buffers(pa.binary(), len(borders) - 1, buffers)
    codes = pieces.take(pa.array(np.arange(0, len(borders) - 1, 2))).dictionary_encode()
    last = np.zeros(len(codes.dictionary), np.int64)
    np.maximum.at(last, codes.indices.to_numpy(), np.arange(len(mine)))
    found: Ints = np.sort(last)
    return found


def _path(keys: bytes) -> tuple[str, ...]:
    item = messages().SummaryItem.FromString(keys)
    return tuple(item.nested_key) or (item.key,)


def _changes(record: bytes) -> Iterator[tuple[tuple[str, ...], str | None]]:
    summary = messages().Record.FromString(record).summary
    for item in summary.update:
        yield tuple(item.nested_key) or (item.key,), item.value_json
    for item in summary.remove:
        yield tuple(item.nested_key) or (item.key,), None
