"""Compaction: the same content in fewer files, whatever happens on the way."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from killing import dying

from mirror.records import Fetched, FileEntry, Run, RunKey
from mirror.store import Reader, Writer
from mirror.store.catalog import FileRow, peek
from mirror.store.compact import due
from mirror.store.repair import repair
from mirror.store.segments import ORDER
from mirror.store.views import quoted

KEYS = ["loss", "Loss", "val/acc", "ü", "", "a.b", "_step", "zzz" * 50]


def key(n: int) -> RunKey:
    return RunKey("api.wandb.ai", f"id{n}", "team", f"p{n % 2}", f"run{n}")


def value(rnd: random.Random) -> Any:
    return rnd.choice([rnd.random(), rnd.randrange(10**20), "text " * rnd.randrange(9), None, [1, 2], {}, True])


def fill(root: Path, seed: int, commits: int) -> None:
    """A mirror of small commits: runs that grow, are changed, begin anew, and one that is still being fetched."""
    rnd = random.Random(seed)
    counts: dict[int, int] = {}
    with Writer(root) as w:
        for n in range(commits):
            run = rnd.randrange(6)
            w.put_run(Run(key(run), notes=str(n), config=json.dumps({"n": {"value": n}}), summary=json.dumps({"s": n})))
            if run not in counts or rnd.random() < 0.2:
                w.begin(key(run), "history")
                counts[run] = 0
            rows = [
                json.dumps({"_step": counts[run] + i} | {k: value(rnd) for k in rnd.sample(KEYS[:6], 3)} | {KEYS[7]: i})
                for i in range(rnd.randrange(1, 30))
            ]
            w.append(key(run), "history", rows)
            counts[run] += len(rows)
            done = Fetched("history", "rows", got=counts[run], total=counts[run])
            w.publish(key(run), "history", done)
            w.put_files(key(run), [FileEntry(f"f{n}.txt", n)])
            w.put_logs(key(run), [(n, None, None, f"line {n}")])
            w.commit()
        w.begin(key(0), "history")
        w.append(key(0), "history", ['{"_step": 0, "pending": 1}'])


def content(root: Path) -> dict[str, list[Any]]:
    """Every live row of every table, in an order of its own."""
    found = {}
    with Reader(root) as reader:
        db = reader.connect()
        for table in ("runs", "config", "summary", "metric", "history", "files", "logs", "projects", "sync_log"):
            name = f"raw.{table}_live" if table not in ("projects", "sync_log") else f"raw.{table}"
            columns = [d[0] for d in db.execute(f"select * from {name} limit 0").description or []]
            order = ", ".join(map(quoted, columns))
            found[table] = db.execute(f"select * from {name} order by {order}").fetchall()
    return found


def files(root: Path) -> list[FileRow]:
    catalog = peek(root)
    assert catalog is not None
    try:
        return catalog.files()
    finally:
        catalog.close()


@pytest.mark.parametrize("seed", range(4))
def test_everything_in_one_file_a_table_and_folder(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "m"
    fill(root, seed, 40)
    before = content(root)
    with Writer(root) as w:
        done = w.compact(everything=True)
        assert done.merged > done.made > 0
        assert w.compact(everything=True).merged == 0
        state = w.state(key(0), "history")
        assert (state.rows, state.pending) == (1, True)
    assert content(root) == before
    held = files(root)
    assert len({(f.table, f.path.rpartition("/")[0]) for f in held}) == len(held)
    for file in held:
        rows = pq.read_table(root / file.path)
        assert rows.num_rows == file.rows
        if order := ORDER.get(file.table):
            places = list(zip(*(rows[name].to_pylist() for name in order), strict=True))
            assert places == sorted(places)
    with Reader(root) as reader:
        listed = reader.snapshot.content["tables"]
        assert not any(listed[t]["superseded"] for t in ("runs", "config", "summary", "metric", "files", "logs"))
        assert reader.connect().execute("select count(*) from raw.runs").fetchone() == (len(before["runs"]),)
    with Writer(root) as w:  # what was being fetched goes on
        w.append(key(0), "history", ['{"_step": 1, "pending": 2}'])
        w.publish(key(0), "history", Fetched("history", "rows", got=2, total=2))
    with Reader(root) as reader:
        query = f"select value from history where run_id = '{key(0).run_id}' and key = 'pending' order by row"
        assert reader.connect().execute(query).fetchall() == [(1.0,), (2.0,)]


def test_a_compacted_mirror_can_be_repaired(tmp_path: Path) -> None:
    root = tmp_path / "m"
    fill(root, 9, 30)
    with Writer(root) as w:
        w.compact(everything=True)
    before = content(root)
    (root / "catalog.sqlite").unlink()
    (root / "snapshot.json").unlink()
    repair(root)
    assert content(root) == before


def test_rows_long_and_short_are_merged_in_order(tmp_path: Path) -> None:
    """Texts of 300 kB beside numbers: pieces are measured in bytes, too."""
    root, rnd = tmp_path / "m", random.Random(1)
    texts = ["x" * 300_000, "y" * 299_999]
    rows = [json.dumps({"_step": i, "a": rnd.random(), "t": texts[i % 2] if i % 7 == 0 else "s"}) for i in range(600)]
    with Writer(root) as w:
        for start in range(0, 600, 50):
            for n in (1, 2):
                w.put_run(Run(key(2 * n)))
                w.append(key(2 * n), "history", rows[start : start + 50])
            w.commit()
    before = content(root)
    with Writer(root) as w:
        w.compact(everything=True)
    assert content(root) == before
    assert sum(f.table == "history" for f in files(root)) == 1


def test_small_ones_are_merged_along_and_large_ones_wait(tmp_path: Path) -> None:
    def of(count: int, size: int) -> list[FileRow]:
        return [FileRow(f"data/history/1/{size}-{i}.parquet", "history", 1, size, "", [], 1) for i in range(count)]

    assert due(of(9, 10_000)) == []
    assert [len(g) for g in due(of(10, 10_000))] == [10]
    assert due(of(12, 5 << 20)) == []
    assert [len(g) for g in due(of(12, 5 << 20), most=128 << 20)] == [8]  # as many as may be open at once
    assert [len(g) for g in due(of(12, 1 << 20), most=128 << 20)] == [12]
    assert due(of(30, 120 << 20), most=128 << 20) == []

    def elsewhere(files: list[FileRow]) -> list[FileRow]:
        return [FileRow(f.path.replace("/1/", "/2/"), *list(f.__dict__.values())[1:]) for f in files]

    # Small ones of many projects become one, those of other projects are left alone as soon as they are not small.
    assert [len(g) for g in due(of(9, 10_000) + elsewhere(of(9, 10_000)))] == [18]
    assert due(of(9, 3 << 20) + elsewhere(of(9, 3 << 20)), most=128 << 20) == []


def test_killed_at_any_moment_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    root, rnd = tmp_path / "m", random.Random(5)
    fill(root, 3, 60)
    before = content(root)
    code = (
        "from mirror.store import Writer\n"
        "with Writer(sys.argv[1]) as w: sys.setprofile(count); w.compact(everything=True); print(steps())"
    )
    shutil.copytree(root, calm := tmp_path / "calm")
    ended, steps = dying(code, str(calm))
    assert ended == 0 and steps > 500 and content(calm) == before
    for n in range(6):
        at = rnd.randrange(1, steps // (1 if n > 2 else 2))
        ended, _ = dying(code, str(root), at=at, later=rnd.uniform(0.001, 0.02) if n % 3 == 2 else 0)
        assert ended or n, "the first has all steps before it"
        assert content(root) == before
    with Writer(root) as w:
        w.compact(everything=True)
        known = {str(p) for (p,) in w.catalog.db.execute("select path from files")}
    assert content(root) == before
    assert {str(p.relative_to(root)) for p in (root / "data").rglob("*.parquet*")} == known


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    root = tmp_path / "m"
    fill(root, 2, 15)
    before = content(root)

    def mirror(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mirror", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    done = mirror("compact", "--mirror", str(root))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Merged ") and " MB became " in done.stdout
    assert content(root) == before
    assert mirror("compact", "--mirror", str(root)).stdout == "There was nothing to merge.\n"
    nothing = mirror("compact", "--mirror", str(tmp_path / "none"))
    assert nothing.returncode == 1 and "does not exist" in nothing.stderr
    assert not (tmp_path / "none").exists()
