"""Size: pages of wide runs are read a stretch at a time, many small syncs leave a mirror as fast as a large one, and
many readers see whole states while a sync writes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mirror.query.samples import thinned
from mirror.records import Fetched, Run, RunKey
from mirror.server.history import ahead
from mirror.server.history.ahead import ReadAhead
from mirror.server.shelf import Shelves
from mirror.store import Layout, Reader, Writer
from mirror.store.compact import FEW, vacuum

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


# -- many small syncs ---------------------------------------------------------------------------------------


def project_key(n: int) -> RunKey:
    return RunKey("a.example", f"s{n}", "me", f"p{n % 20}", f"r{n}")


def put_small(writer: Writer, n: int) -> None:
    key = project_key(n)
    writer.put_run(Run(key, name=f"r{n}", state="finished", config=json.dumps({"n": {"value": n}})))
    writer.append(key, "history", [json.dumps({"_step": s, "loss": n / (s + 1)}) for s in range(5)])
    writer.publish(key, "history", Fetched("history", "rows", got=5, total=5, complete=True))


def test_many_small_syncs_leave_a_mirror_like_that_of_a_large_one(tmp_path: Path) -> None:
    """40 syncs of one run each, each a session of its own, over 20 projects: as few files, as short a snapshot, the
    same answers; what was replaced goes away."""
    many, one, n = tmp_path / "many", tmp_path / "one", 40
    for i in range(n):
        with Writer(many) as writer:
            put_small(writer, i)
            writer.commit()
            writer._committer._stale = False  # mirror.duckdb is of no concern here, and costs the most
    with Writer(many) as writer:
        writer.compact()
        assert vacuum(writer.layout, writer.catalog, grace=timedelta(0)) > 20
        versions = writer.catalog.db.execute("select count(*) from streams where live = 0").fetchone()
        assert versions == (0,)
    with Writer(one) as writer:
        for i in range(n):
            put_small(writer, i)
    for root in (many, one):
        with Reader(root) as reader:
            found = reader.connect().execute("select run_id, step, value from history where key = 'loss'").fetchall()
            assert sorted(found) == sorted((f"r{i}", s, i / (s + 1)) for i in range(n) for s in range(5))
            content = reader.snapshot.content["tables"]
            assert all(len(table["files"]) < 4 * FEW for table in content.values()) or root is one
    tables = json.loads((many / "snapshot.json").read_text())["tables"]
    assert len(tables["history"]["files"]) < 2 * FEW  # and not one for each of 20 projects, or each sync
    on_disk = len(list((many / "data").rglob("*.parquet")))
    assert on_disk == sum(len(table["files"]) for table in tables.values())
    # Runs of one sync after the other are neighbours: what a file holds is said in a few ranges.
    assert max(len(file["rids"]) for table in tables.values() for file in table["files"]) <= 3
    assert (many / "snapshot.json").stat().st_size < 40_000


def test_numbers_that_no_run_got_are_given_back(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as first:
        rid = first.put_run(Run(project_key(1)))
        with Writer(root) as second:  # what another writer got in the meantime stays its own
            other = second.put_run(Run(project_key(2)))
    with Writer(root) as third:
        found = [third.put_run(Run(project_key(n))) for n in (3, 4)]
    assert len({rid, other, *found}) == 4 and found[1] == found[0] + 1 == other + 2


# -- readers beside a sync ----------------------------------------------------------------------------------

GRACE_SECONDS = 8.0
READER = """
import random, sys, threading, time
from pathlib import Path
from mirror.store import Reader

root, stop, threads, grace, pause = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:6])
asked, problems, slowest = [0] * threads, [], [0.0] * threads

def look(me):
    last, began = 0, time.monotonic()
    while not stop.exists() or not asked[me]:
        try:
            began = time.monotonic()
            with Reader(root) as reader:
                db = reader.connect()
                db.execute("set enable_progress_bar = false")  # DuckDB takes `python -c` for somebody at a terminal
                for _ in range(2):  # the state stays as it is while it is open
                    said, = db.execute("select coalesce(sum(history_rows), 0)::bigint from runs").fetchone()
                    rows, total = db.execute(
                        "select count(*), coalesce(sum(value), 0)::bigint from history where key = 'n'").fetchone()
                    if said != rows or total != rows * (rows - 1) // 2:
                        problems.append(f"torn: {said} rows said, {rows} there, their sum {total}")
                if rows < last:
                    problems.append(f"went back from {last} to {rows} rows")
                last = rows
        except Exception as e:
            if time.monotonic() - began < grace / 2:  # a state that is held too long may lose its files
                problems.append(repr(e))
                return
        asked[me] += 1
        slowest[me] = max(slowest[me], time.monotonic() - began)
        if all(asked):
            Path(sys.argv[6]).touch()
        end = time.monotonic() + pause * random.random()
        while time.monotonic() < end and not stop.exists():
            time.sleep(0.2)

workers = [threading.Thread(target=look, args=(i,)) for i in range(threads)]
[w.start() for w in workers]
[w.join() for w in workers]
print(sum(asked), max(slowest), problems[:3])
"""


def read_beside_a_writer(root: Path, *, processes: int, threads: int, commits: int) -> tuple[int, float, int, int]:
    """Questions answered, the longest one in seconds, commits made (`commits` or more), files deleted meanwhile. Fails
    if a reader saw what never was, or lost a file within the period of grace.

    Row number i holds `n` = i, so every state of the mirror is known by its number of rows. All readers have looked
    before the writer ends. They pause so that it is not the readers who have all of the machine.
    """
    with Writer(root) as writer:
        writer.put_run(Run(KEY, name="r"))
        writer.append(KEY, "history", ['{"_step": 0, "n": 0}'])
    stop = root.with_name("stop")
    pause = processes * threads / 10
    looked = [root.with_name(f"looked{i}") for i in range(processes)]
    options = [str(root), str(stop), str(threads), str(GRACE_SECONDS), str(pause)]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, *options, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for path in looked
    ]
    rows, made, deleted, end = 1, 0, 0, time.monotonic() + 300
    try:
        with Writer(root) as writer:
            while time.monotonic() < end:
                if made >= commits and deleted and all(path.exists() for path in looked):
                    break
                lines = [json.dumps({"_step": i, "n": i}) for i in range(rows, rows + 7)]
                writer.append(KEY, "history", lines)
                writer.commit()
                rows, made = rows + 7, made + 1
                deleted += vacuum(writer.layout, writer.catalog, grace=timedelta(seconds=GRACE_SECONDS))
                time.sleep(0.05)
        stop.touch()
        outputs = [reader.communicate(timeout=300) for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
    answered, slowest = 0, 0.0
    for out, err in outputs:
        count, longest, problems = out.split(maxsplit=2) if out else ("0", "0", err)
        assert problems.strip() == "[]", problems
        answered, slowest = answered + int(count), max(slowest, float(longest))
    return answered, slowest, made, deleted


def test_readers_beside_a_sync_see_whole_states(tmp_path: Path) -> None:
    """8 processes of 3 threads, while small commits are made, merged and vacuumed."""
    answered, slowest, commits, deleted = read_beside_a_writer(tmp_path / "m", processes=8, threads=3, commits=20)
    print(f"{answered} questions, the slowest {slowest:.1f} s, {commits} commits, {deleted} files deleted")
    assert answered >= 24 and deleted


@pytest.mark.slow
def test_a_hundred_readers_beside_a_sync(tmp_path: Path) -> None:
    answered, slowest, commits, deleted = read_beside_a_writer(tmp_path / "m", processes=20, threads=5, commits=12)
    print(f"{answered} questions, the slowest {slowest:.1f} s, {commits} commits, {deleted} files deleted")
    assert answered >= 100 and deleted
