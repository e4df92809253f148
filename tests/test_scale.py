"""Size: pages of wide runs are read a stretch at a time, many small syncs leave a mirror as fast as a large one, and
many readers see whole states while a sync writes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mirror.query.samples import thinned
from mirror.records import Fetched, Run, RunKey
from mirror.server.history import ahead
from mirror.server.history.ahead import ReadAhead
from mirror.server.shelf import Shelves
from mirror.store import Layout, Writer

KEY = RunKey("a.example", "s1", "me", "p", "r")


def hostile_steps() -> list[int | None]:
    """Dense, with a gap, repeated, started anew, far away, and rows without a step."""
    return [*range(300), *range(5000, 5200), 5199, 5199, *range(100, 180), None, 10**12, None, 10**12 + 5]


def put(root: Path, rows: list[dict[str, Any]]) -> int:
    with Writer(root) as writer:
        rid = writer.put_run(Run(KEY, name="r", state="finished"))
        writer.append(KEY, "history", [json.dumps(row) for row in rows])
        writer.publish(KEY, "history", Fetched("history", "rows", got=len(rows), total=len(rows), complete=True))
        return rid


def within(rows: list[dict[str, Any]], first: int, end: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["_step"] is not None and first <= row["_step"] < end]


def test_pages_that_follow_each_other_are_read_a_stretch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page holds what was logged; few of them are a look at the segments."""
    monkeypatch.setattr(ahead, "STRETCH_BYTES", 60_000)
    monkeypatch.setattr(ahead, "_HELD_BYTES", 100_000)
    numbers = random.Random(5)
    rows = [{"_step": s} | {f"k{i}": numbers.random() for i in range(20)} for s in hostile_steps()]
    rid = put(tmp_path / "m", rows)
    shelf = Shelves(Layout(tmp_path / "m")).newest()
    place = shelf.index.get(rid)
    assert place is not None
    reads = 0
    real = ahead.scan

    def counted(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        return real(*args)

    monkeypatch.setattr(ahead, "scan", counted)
    held, pages, answered = ReadAhead(), 0, 0
    for low, high, width in ((0, 300, 7), (5000, 5200, 7), (5190, 5210, 1), (90, 190, 3)):
        for first in range(low, high, width):
            expected = within(rows, first, first + width)
            found = held.rows(shelf, place, "history", first, first + width)
            if found is not None:
                assert [json.loads(text) for text in found] == expected, (first, width)
                answered += 1
            held.answered(place, "history", first + width, [json.dumps(row) for row in expected])
            pages += 1
            assert sum(s.nbytes for s in held._stretches.values()) <= 100_000
    assert answered > 0.9 * pages and reads < 0.3 * pages, (pages, answered, reads)


def test_a_page_that_follows_no_other_is_not_read_ahead(tmp_path: Path) -> None:
    rid = put(tmp_path / "m", [{"_step": s, "x": s} for s in range(100)])
    shelf = Shelves(Layout(tmp_path / "m")).newest()
    place = shelf.index.get(rid)
    assert place is not None
    held = ReadAhead()
    for first, end in ((0, 10), (50, 60), (20, 30), (59, 70)):
        assert held.rows(shelf, place, "history", first, end) is None
        held.answered(place, "history", end, ["{}"])


def test_rows_that_came_since_are_in_the_next_page(tmp_path: Path) -> None:
    """What was read ahead of a run is not taken for the run once more rows are held."""
    root = tmp_path / "m"
    rows = [{"_step": s, "x": s} for s in range(100)]
    rid = put(root, rows)
    shelves, held = Shelves(Layout(root)), ReadAhead()
    place = shelves.newest().index.get(rid)
    assert place is not None
    held.answered(place, "history", 10, ['{"_step": 9}'])
    assert held.rows(shelves.newest(), place, "history", 10, 20) is not None
    with Writer(root) as writer:
        writer.append(KEY, "history", ['{"_step": 25, "x": "new"}'])
        writer.publish(KEY, "history", Fetched("history", "rows", got=101, total=101, complete=True))
    later = shelves.newest().index.get(rid)
    assert later is not None
    assert held.rows(shelves.newest(), later, "history", 20, 30) is None  # nothing is known of what precedes it
    held.answered(later, "history", 20, ['{"_step": 19}'])
    found = held.rows(shelves.newest(), later, "history", 20, 30)
    assert found is not None and [json.loads(t)["x"] for t in found] == [*range(20, 30), "new"]
    assert thinned(found, 3) == [found[0], found[5], found[-1]]
