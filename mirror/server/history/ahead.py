"""Rows read ahead of a client that pages through a run.

Cells lie sorted by key, so a range of rows is a look at every key of the run, however short it is: a client that takes
10,000 keys a dozen rows at a time makes a server read all of the run for every page. Where a range begins at which the
one before has ended, a longer stretch is read at once, and the ranges that follow are answered from it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate

from mirror.records import Stream
from mirror.server.history.small_runs import Rows, scan
from mirror.server.index import Place
from mirror.server.shelf import Shelf

STRETCH_BYTES = 32 << 20
"""What a stretch may weigh: its cells, at `_CELL_BYTES` each, and its texts."""
_CELL_BYTES = 64
_HELD_BYTES = 64 << 20
_MOST_TIMES = 64
_FOLLOWED = 1000
_LAST = (1 << 63) - 1

Name = tuple[int, Stream, int, int]
"""rid, stream, generation and its rows: as long as these are the same, so are the rows."""


@dataclass
class _Stretch:
    """All rows with first <= `_step` < end."""

    first: int
    end: int
    rows: Rows
    nbytes: int


class ReadAhead:
    """The stretches that clients are paging through, one a run, the least used ones forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stretches: OrderedDict[Name, _Stretch] = OrderedDict()
        self._ends: OrderedDict[Name, tuple[int, int]] = OrderedDict()

    def rows(self, shelf: Shelf, place: Place, stream: Stream, first: int, end: int) -> list[str] | None:
        """The rows with first <= `_step` < end, if they were read ahead or it is time to do so; else None."""
        name = _name(place, stream)
        with self._lock:
            held = self._stretches.get(name)
            last_end, nbytes = self._ends.get(name, (None, 0))
            if held is not None and held.first <= first and end <= held.end:
                self._stretches.move_to_end(name)
            else:
                held = None
        if held is None and last_end == first:
            held = self._read(shelf, place, stream, first, end, nbytes)
        return held.rows.within(first, end) if held is not None else None

    def answered(self, place: Place, stream: Stream, end: int, texts: list[str]) -> None:
        """Note that a range was answered, so that the one after it is known as such."""
        name = _name(place, stream)
        with self._lock:
            self._ends[name] = (end, sum(map(len, texts)))
            self._ends.move_to_end(name)
            while len(self._ends) > _FOLLOWED:
                self._ends.popitem(last=False)
            if (held := self._stretches.get(name)) is not None and held.end <= end:
                del self._stretches[name]  # nothing of it will be asked for again

    def _read(self, shelf: Shelf, place: Place, stream: Stream, first: int, end: int, nbytes: int) -> _Stretch | None:
        """Read a stretch of about as many pages of `nbytes` as it may hold; None if it would hold one alone."""
        times = min(STRETCH_BYTES // (2 * nbytes) if nbytes else _MOST_TIMES, _MOST_TIMES)
        if times < 2:
            return None
        until = _end(shelf, place, stream, first, end, min(first + times * (end - first), _LAST))
        if until is None:
            return None
        read = scan(shelf, [place], stream, f"c.step >= {first} and c.step < {until}")[place.rid]
        made = _Stretch(first, until, read, sum(map(len, read.texts)))
        with self._lock:
            self._stretches[_name(place, stream)] = made
            self._stretches.move_to_end(_name(place, stream))
            while sum(s.nbytes for s in self._stretches.values()) > _HELD_BYTES and len(self._stretches) > 1:
                self._stretches.popitem(last=False)
        return made


def _name(place: Place, stream: Stream) -> Name:
    if stream == "history":
        return place.rid, stream, place.history_gen, place.history_rows
    return place.rid, stream, place.system_gen, place.system_rows


def _end(shelf: Shelf, place: Place, stream: Stream, first: int, least: int, most: int) -> int | None:
    """Where a stretch should end that begins at `first`, between two steps; None if it is too heavy even so."""
    query = (
        f"select step, count(*) * {_CELL_BYTES} + coalesce(sum(strlen(j)), 0) from {shelf.cells(place, stream)} "
        f"and step >= {first} and step < {most} group by step order by step"
    )
    weighed = shelf.connect().execute(query).fetchall()
    for (step, _), held in zip(weighed, accumulate(int(w) for _, w in weighed), strict=True):
        if held > STRETCH_BYTES:
            return int(step) if step >= least else None
    return most
