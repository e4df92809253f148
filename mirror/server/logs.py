"""Console lines of a run, by number: from segments, then from the spool."""

from __future__ import annotations

from datetime import datetime

from mirror.server.look import Found, Look
from mirror.server.shelf import Shelf
from mirror.store.console import parsed
from mirror.store.live import live_logs

Line = tuple[int, datetime | None, str | None, str]
"""Number, time, level, text."""


def count(look: Look, found: Found) -> int:
    if found.live and look.home.live:
        try:
            return look.home.live.spool.count(found.rid, "logs")
        except KeyError:  # drained meanwhile
            pass
    if found.live:
        lines = _live(look, found)
        return max(lines[-1][0] + 1 if lines else 0, _stored_count(look.home.shelves.newest(), found.rid))
    assert found.stored
    return found.stored.place.logs_rows


def page(look: Look, found: Found, start: int, first: int) -> tuple[list[Line], bool]:
    """`first` lines from number `start` on, and whether there are more."""
    lines = _live(look, found) if found.live else []
    shelf = look.home.shelves.newest() if found.live else look.shelf
    stored = _stored(shelf, found.rid, start, first + 1)
    rewritten = {line[0] for line in lines}
    both = [line for line in stored if line[0] not in rewritten] + [line for line in lines if line[0] >= start]
    both.sort(key=lambda line: line[0])
    return both[:first], len(both) > first


def last(look: Look, found: Found, n: int) -> tuple[list[Line], int, bool]:
    """The last `n` lines, the number of the first of them, and False: nothing follows."""
    start = max(0, count(look, found) - max(0, n))
    lines, _ = page(look, found, start, max(0, n))
    return lines, start, False


def _live(look: Look, found: Found) -> list[Line]:
    try:
        return [(n, *parsed(text)) for n, text in live_logs(look.home.layout.live / str(found.rid))]
    except FileNotFoundError:
        return []


def _stored_count(shelf: Shelf, rid: int) -> int:
    place = shelf.index.get(rid)
    return place.logs_rows if place else 0


def _stored(shelf: Shelf, rid: int, start: int, limit: int) -> list[Line]:
    place = shelf.index.get(rid)
    if place is None:
        return []
    query = (
        f"select line, ts, level, text from {shelf.relation('logs', [rid])} "
        f"where gen = {place.logs_gen} and line >= {start} order by line limit {limit}"
    )
    found: list[Line] = shelf.connect().execute(query).fetchall()
    return found
