"""`mirror push --to mlflow:sqlite:///FILE`: what is written is what MLflow's own store writes, also after kills, beside
others, and into files of other versions."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from commanding import Done, call

from mirror import open as open_mirror
from mirror.importers.to_mlflow import bulk, database
from mirror.records import FileEntry, RunKey
from mirror.store.blobs import incoming
from mirror.store.layout import Layout

pytest.importorskip("mlflow")
from killing import dying
from mlflow import MlflowClient
from test_push_mlflow import expected, lines, mirrored, rows_of
from tracking import text

pytestmark = pytest.mark.slow

FILE = "dir/tracking ☃.db"
HOSTILE = "k" * 5000, "a/../b", "ü ☃", "x" * 251, "//", "_hidden"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that a push made where there was none, and its folder."""
    folder = tmp_path_factory.mktemp("made")
    mirrored(folder / "m", "first", {"r": [{"_step": 1, "_timestamp": 5, "loss": 1.5}]}, config="{}")
    done = call("push", "--to", f"mlflow:sqlite:///{folder / FILE}", root=folder / "m")
    assert done.code == 0, done
    assert {path.name for path in (folder / FILE).parent.iterdir()} == {"tracking ☃.db", "mlartifacts"}
    client = MlflowClient(f"sqlite:///{folder / FILE}")
    (run,) = client.search_runs([client.get_experiment_by_name("team/first").experiment_id])
    assert run.data.metrics == {"loss": 1.5} and run.data.tags["mirror.path"] == "team/first/r"
    return folder / FILE


@pytest.fixture
def file(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty, tmp_path / "store.db"))


def push(root: Path, file: Path, *args: str, code: int = 0) -> Done:
    done = call("push", *args, "--to", f"mlflow:sqlite:///{file}", root=root)
    assert done.code == code, done
    assert "Traceback" not in done.err
    return done


def asked(file: Path, query: str, *params: Any) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query, params).fetchall()


def tables(file: Path, experiment: str) -> dict[str, list[Any]]:
    """What is stored of the runs of an experiment but for their ids, each row as often as it is there."""
    which = "join tags p on p.run_uuid = t.run_uuid and p.key = 'mirror.path' join runs r on r.run_uuid = t.run_uuid"
    which += " join experiments e using (experiment_id) where e.name = ? order by 1, 2, 3, 4, 5, 6"
    points = f"select p.value, t.key, t.step, t.timestamp, t.value, t.is_nan, typeof(t.value) from {{}} t {which}"
    pairs = f"select p.value, t.key, t.value, r.status, r.name, r.start_time, r.end_time from {{}} t {which}"
    return {name: asked(file, points.format(name), experiment) for name in ("metrics", "latest_metrics")} | {
        name: asked(file, pairs.format(name), experiment) for name in ("params", "tags")
    }


def corpus() -> dict[str, list[dict[str, Any]]]:
    """Besides hostile rows: 0 and NaN at once, in both orders and of either sign, steps and numbers at the limits."""
    at, rng = {"_timestamp": 1_700_000_000.5}, random.Random(5)
    ties: list[dict[str, Any]] = [{"_step": 3, **at, "zero": 0.0, "nan": math.nan, "down": 2.0, "up": -1e308}]
    ties += [{"_step": 3, **at, "zero": math.nan, "nan": 0.0, "down": math.nan, "up": math.inf}]
    ties += [{"_step": 3, **at, "zero": -0.0, "nan": -0.0, "down": 1.0, "up": -math.inf}]
    ties += [{"_step": 2**53 + 1, **at, "zero": 5e-324, "up": 2**63, "down": -1.5}]
    keys = [{"_step": i, "_timestamp": 1e9 - i, **{key: rng.random() for key in HOSTILE}} for i in range(20)]
    return {"ties": ties, "keys": keys, "none": []} | {f"r{i}": rows_of(i, 25) for i in range(3)}


def test_it_is_what_mlflows_own_store_writes(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, other = tmp_path / "m", Path(shutil.copy(file, tmp_path / "other.db"))
    runs = corpus()
    mirrored(root, "same", runs, config='{"lr": {"value": 0.1}}')
    monkeypatch.setattr(bulk, "BATCH", 17)
    said = push(root, file).err
    assert "Note:" not in said
    monkeypatch.setattr(database, "TRIED", frozenset())
    said = push(root, other).err
    assert "goes through" in said or "go through MLflow's own store" in said
    mine, theirs = (tables(one, "team/same") for one in (file, other))
    assert all(mine.values()) and mine == theirs

    client = MlflowClient(f"sqlite:///{file}")
    copies = client.search_runs([client.get_experiment_by_name("team/same").experiment_id])
    for copy in copies:
        name = copy.data.tags["mirror.path"].rpartition("/")[2]
        keys = {}
        if "mirror/keys.json" in {entry.path for entry in client.list_artifacts(copy.info.run_id, "mirror")}:
            local = client.download_artifacts(copy.info.run_id, "mirror/keys.json", str(tmp_path))
            keys = json.loads(Path(local).read_text())
        found = [
            (point.timestamp, point.step, keys.get(key, key), text(point.value))
            for key in copy.data.metrics
            for point in client.get_metric_history(copy.info.run_id, key)
        ]
        assert sorted(found) == sorted(expected(runs[name]).elements()), name
    assert len(copies) == len(runs)


_KILLED = """
import sqlite3, threading
from mirror.importers.to_mlflow import bulk
from mirror.cli import main

bulk.BATCH = 100
connect, one_by_one = sqlite3.connect, threading.Lock()

def step():
    with one_by_one:
        count(None, "c_call", None)

def counted(file, *args, **more):
    connection = connect(file, *args, **more)
    if "store.db" in str(file):
        connection.set_progress_handler(step, 50)
    return connection

sqlite3.connect = sqlite3.dbapi2.connect = counted
main()
"""
"""A push that dies when the database has done so much: in the middle of a transaction, or of reading back."""


def test_a_push_that_was_killed_goes_on(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, calm, twin = tmp_path / "m", tmp_path / "calm", tmp_path / "calm store.db"
    runs = {
        f"r{i}": [{"_step": j, "_timestamp": 1e9 + j, **{f"k{k}": i + j / 7 + k for k in range(12)}} for j in range(n)]
        for i, n in enumerate([60, 3, 20, 0])
    }
    mirrored(root, "killed", runs)
    shutil.copytree(root, calm)
    shutil.copy(file, twin)

    whole = itertools.count()
    connect = sqlite3.connect

    def counted(file: Any, *args: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(file, *args, **more)
        if "store.db" in str(file):
            connection.set_progress_handler(lambda: next(whole) < 0, 50)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "BATCH", 100)
        for module in (sqlite3, sqlite3.dbapi2):
            patch.setattr(module, "connect", counted)
        push(calm, twin)
    points, steps = [], next(whole)
    for part in (0.2, 0.45):
        options = "push", "-q", "--to", f"mlflow:sqlite:///{file}", "--mirror", str(root), "--workers", "2"
        assert dying(_KILLED, *options, at=int(steps * part))[0] == -signal.SIGKILL
        points += asked(file, "select count(*) from metrics")[0]
    assert 1 < points[0] < 997 and points[0] <= points[1], points  # one was there before
    push(root, file)
    assert tables(file, "team/killed") == tables(twin, "team/killed")
    there = [(*row[1:4], row[0]) for row in tables(file, "team/killed")["metrics"]]
    logged = [
        (f"k{k}", row["_step"], round(row["_timestamp"] * 1000), f"team/killed/{run_id}")
        for run_id, rows in runs.items()
        for row in rows
        for k in range(12)
    ]
    assert sorted(there) == sorted(logged)
    assert len(lines(root, "successes")) == len(runs) and not lines(root, "failures")


def test_a_locked_database_is_waited_for(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "m"
    mirrored(root, "locked", {run_id: rows_of(ord(run_id), 10) for run_id in "abc"})
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("begin immediate")
        with monkeypatch.context() as patch:
            patch.setattr(database, "PATIENCE", 0.2)
            failed = push(root, file, code=1).err
        assert f"`{file}` is locked by another program: run the same command again when it is done" in failed
        assert not (root / "run_successes.jsonl").exists()
        waits = threading.Event()
        connect = sqlite3.connect

        def watched(*args: Any, **more: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **more)
            connection.set_trace_callback(lambda statement: waits.set() if "begin imm" in statement else None)
            return connection

        monkeypatch.setattr(sqlite3, "connect", watched)

        def let_go() -> None:
            waits.wait(300)
            other.execute("rollback")

        thread = threading.Thread(target=let_go)
        thread.start()
        push(root, file)
        thread.join(300)
    assert len(asked(file, "select 1 from runs where experiment_id > 1")) == 3


def test_files_of_others(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "m"
    mirrored(root, "any", {"a": rows_of(1, 3)})
    before = tmp_path / "before.db"
    asked_revision = asked(file, "select version_num from alembic_version")[0][0]
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("update alembic_version set version_num = 'acf3f17fdcc7'")
        connection.execute("drop table jobs")
        connection.commit()
    shutil.copy(file, before)
    said = push(root, file, code=1).err
    assert "has the schema `acf3f17fdcc7`" in said and asked_revision in said and "mlflow db upgrade" in said
    assert file.read_bytes() == before.read_bytes()
    file.write_bytes(b"no database at all" * 1000)
    assert "cannot be read as an MLflow store" in push(root, file, code=1).err
    file.unlink()
    said = push(root, file, "--dry-run").out
    assert "team/any" in said and not file.exists()
    (tmp_path / "plain").touch()
    assert "cannot open" in push(root, tmp_path / "plain" / "x.db", code=1).err
    assert not (root / "run_successes.jsonl").exists()


def test_artifacts_go_where_the_experiment_keeps_them(file: Path, tmp_path: Path) -> None:
    root, names = tmp_path / "m", ("plot.png", "a b/ü☃.txt", "deep/er/x", "../out", "empty")
    mirrored(root, "files", {"a": rows_of(1, 3)}, config='{"lr": {"value": 1}}')
    contents = {name: b"" if name == "empty" else random.Random(name).randbytes(3000) for name in names}
    entries = []
    for name, content in contents.items():
        with incoming(Layout(root).blobs) as out:
            out.write(content)
            entries.append(FileEntry(name, len(content), sha256=out.keep().sha256))
    with open_mirror(root, write=True) as m:
        m.put_files(RunKey("api.wandb.ai", "files a", "team", "files", "a"), entries)
    said = push(root, file).out
    (line,) = [line for line in said.splitlines() if line.split()[:2] == ["lost", "files"]]
    assert "../out" in line
    client = MlflowClient(f"sqlite:///{file}")
    (run,) = client.search_runs([client.get_experiment_by_name("team/files").experiment_id])
    assert Path(run.info.artifact_uri).is_relative_to(file.parent.parent) or "mlartifacts" in run.info.artifact_uri
    for name in names:
        if name != "../out":
            local = client.download_artifacts(run.info.run_id, name, str(tmp_path))
            assert Path(local).read_bytes() == contents[name]

    client.create_experiment("served", "mlflow-artifacts:/7")
    said = push(root, file, "--remap", "team/files=served").out
    assert "kept by its server alone: send to that server" in said
    (run,) = client.search_runs([client.get_experiment_by_name("served").experiment_id])
    assert (
        len(asked(file, "select 1 from metrics where run_uuid = ?", run.info.run_id)) == expected(rows_of(1, 3)).total()
    )
