"""`kill -9` while a sync fetches exports, items and bytes, while replaced files are removed, and two starts at once
after it: nothing is lost or doubled, and what lies in the mirror's folder is what its catalog knows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from artifact_wire import Logging
from chance import seed
from contents import content, same
from killing import killed_at
from serving import Server, serving
from starting import Started, run_mirror
from syncing import Copy, log_run, logged, proxied, sampled
from test_compact import content as rows_of
from test_compact import fill

from mirror.store import Reader, Writer
from mirror.store.catalog import peek
from mirror.store.compact import vacuum

pytestmark = pytest.mark.slow
SEED = seed("MIRROR_KILL_SEED")
KILLS = 4
FILES = """mutation($r: String!, $f: [String!]!) { createRunFiles(input: {entityName: "local", projectName: "p",
    runName: $r, files: $f}) { files { name uploadUrl } } }"""
SWEEP = "mutation U($i: UpsertSweepInput!) { upsertSweep(input: $i) { sweep { id } } }"
REPORT = "mutation U($i: UpsertViewInput!) { upsertView(input: $i) { view { id } } }"
ARGS = ("local/p", "--files", "*")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("served") / "mirror", "--history-exports", "now") as server:
        for i in range(20):
            long = [row | {"_runtime": 0.5 + row["_runtime"] + 0.01} for row in logged(6000 if i < 2 else 20 * i)]
            log_run(server, "p", f"r{i:02}", long, system=sampled(5), summary={"n": i})
        for i in range(4):
            Logging(server, f"art{i}", {f"{n}.bin": b"%d %d" % (i, n) for n in range(10)}).all()
            config = json.dumps({"method": "grid", "parameters": {"a": {"values": [i]}}})
            where = {"entityName": "local", "projectName": "p"}
            server.graphql(SWEEP, i=where | {"config": config})
            server.graphql(REPORT, i=where | {"type": "runs", "spec": "{}", "displayName": f"report {i}"})
        for run in ("r05", "r06"):
            names = [f"f{n}.bin" for n in range(40)]
            for file in server.graphql(FILES, r=run, f=names)["createRunFiles"]["files"]:
                data = random.Random(file["name"] + run).randbytes(100_000)
                assert requests.put(file["uploadUrl"], data=data, timeout=30).ok
        yield server


def tidy(root: Path) -> None:
    """Every file below the root is one that the catalog, or a row, names; nothing is left of who was killed."""
    catalog = peek(root)
    assert catalog is not None
    known = {str(root / path) for (path,) in catalog.db.execute("select path from files")}
    catalog.close()
    with Reader(root) as reader:
        assert set(reader.files) <= known
        db = reader.connect()
        held = "select sha256 from files union all select sha256 from artifact_entries"
        held += " union all select manifest_sha256 from artifacts"
        named = {sha256 for (sha256,) in db.execute(held).fetchall() if sha256}
    assert {str(p) for p in (root / "data").rglob("*") if p.is_file()} == known
    assert {p.name for p in (root / "blobs").rglob("*") if p.is_file()} == named
    assert list(root.rglob("*.tmp")) == []
    assert list((root / "sessions").iterdir()) == []


def test_a_sync_of_everything_killed_at_random_moments(server: Server, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with proxied(server) as proxy:
        calm, copy = (Copy(tmp_path / name, proxy.url, server.key) for name in ("calm", "killed"))
        copy.env = {"MIRROR_FLUSH_SECONDS": "0.05", "TMPDIR": str(scratch)}
        run_mirror(calm.arguments(*ARGS), env=calm.environ(), check=True)
        truth = content(calm.root)
        assert len(truth["artifact_entries"]) == 40 and len(truth["sweeps"]) == len(truth["reports"]) == 4
        asked, kills = len(proxy.requests), 0
        for n in range(KILLS):
            at = chance.randrange(1, asked * 3 // (4 if n == 0 else 8))  # it goes on where it was killed
            killed = killed_at(
                proxy, at, lambda: Started(copy.arguments(*ARGS), env=copy.environ(), stderr=subprocess.DEVNULL)
            )
            kills += killed == -signal.SIGKILL
            if n % 3 == 1 and (copy.root / "catalog.sqlite").exists():  # two at once clean up after it
                code = "import sys; from mirror.store import Writer; Writer(sys.argv[1]).close()"
                both = [subprocess.Popen([sys.executable, "-c", code, str(copy.root)]) for _ in range(2)]
                assert [one.wait(300) for one in both] == [0, 0]
                assert list((copy.root / "sessions").iterdir()) == []
                if (copy.root / "data").exists():
                    catalog = peek(copy.root)
                    assert catalog is not None
                    known = {str(copy.root / path) for (path,) in catalog.db.execute("select path from files")}
                    catalog.close()
                    assert {str(p) for p in (copy.root / "data").rglob("*") if p.is_file()} == known
        print("kills", kills, "of", asked, "requests")
        assert kills
        finish(copy, scratch)
    same(content(copy.root), truth)
    tidy(copy.root)
    assert list(scratch.iterdir()) == []


def finish(copy: Copy, scratch: Path) -> None:
    """Two start at once where others died: one of them goes on, and cleans up."""
    (scratch / "mirror-export-of-the-dead").mkdir()
    for folder in scratch.iterdir():  # as if the kills were some minutes ago
        os.utime(folder, (1, 1))
    (copy.root / "sessions" / "0123456789ab.lock").touch()
    (copy.root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    (copy.root / "blobs" / "sha256" / "incoming-0.tmp").write_bytes(b"half")
    two = [subprocess.Popen(copy.command(*ARGS), env=copy.environ(), stderr=subprocess.PIPE) for _ in range(2)]
    said = [one.communicate(timeout=300)[1].decode() for one in two]
    assert 0 in [one.returncode for one in two], said
    assert all(one.returncode == 0 or "is being written by" in text for one, text in zip(two, said, strict=True)), said


def test_killed_while_replaced_files_are_removed(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    root = tmp_path / "m"
    fill(root, 3, 40)
    with Writer(root) as writer:
        writer.compact(everything=True)
    before = rows_of(root)
    code = (
        "import sys; from datetime import timedelta; from mirror.store import Writer\n"
        "from mirror.store.compact import vacuum\n"
        "with Writer(sys.argv[1]) as w:\n"
        "    print(1, flush=True); vacuum(w.layout, w.catalog, grace=timedelta(0)); print(2, flush=True)"
    )
    replaced = len(list((root / "data").rglob("*.parquet")))
    halfway = 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.01))
            process.kill()
            finished = b"2" in process.stdout.read()
        assert rows_of(root) == before
        left = len(list((root / "data").rglob("*.parquet")))
        halfway += not finished and left < replaced
        replaced = left
        if finished:
            break
    print("killed halfway", halfway)
    with Writer(root) as writer:
        vacuum(writer.layout, writer.catalog, grace=timedelta(0))
    assert rows_of(root) == before
    tidy(root)


def test_two_that_start_at_once_after_a_kill(tmp_path: Path) -> None:
    """A writer that was killed with segments that no catalog knows, and a commit that was not published."""
    root = tmp_path / "m"
    fill(root, 4, 10)
    code = (
        "import os, signal, sys; from mirror.store import Writer, commit, segments\n"
        "from mirror.records import Run, RunKey\n"
        "publish, commit.publish = commit.publish, lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "w = Writer(sys.argv[1])\n"
        "w.put_run(Run(RunKey('s', 'id', 'e', 'p', 'late')))\n"
        "w.layout.data.joinpath('runs', '0', w.session + '-999999.parquet').write_bytes(b'x')\n"
        "w.commit()"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(root)], timeout=300)
    assert killed.returncode == -9
    stray = list((root / "data").rglob("*-999999.parquet"))
    assert len(stray) == 1
    opening = "import sys; from mirror.store import Writer; Writer(sys.argv[1]).close()"
    several = [subprocess.Popen([sys.executable, "-c", opening, str(root)]) for _ in range(4)]
    assert [one.wait(300) for one in several] == [0] * 4
    found: list[Any] = Copy(root, "", "").sql("select run_id from runs where run_id = 'late'")
    assert found == [("late",)]  # its transaction was through
    with Writer(root) as writer:
        vacuum(writer.layout, writer.catalog, grace=timedelta(0))
    tidy(root)
