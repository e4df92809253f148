"""`mirror purge`: nothing of what was removed is left anywhere below the root, and nothing else is touched."""

from __future__ import annotations

import base64
import hashlib
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

from mirror.errors import LockedError, NotFoundError
from mirror.importers.account import Account
from mirror.importers.ledger import Ledger
from mirror.paths import parse
from mirror.records import (
    Artifact,
    ArtifactEntry,
    ArtifactUse,
    Failure,
    Fetched,
    FileEntry,
    ItemKey,
    Project,
    Report,
    Run,
    RunKey,
    Sweep,
    SyncReport,
)
from mirror.store import Reader, Writer
from mirror.store.catalog import now
from mirror.store.locks import FileLock
from mirror.store.purge import purge
from mirror.store.repair import repair

CANARY = "c4n4ry"
MESSAGE = f"no run `{CANARY}run` in `team/keep`"


def key(project: str, name: str) -> RunKey:
    return RunKey("api.wandb.ai", f"id-{project}-{name}", "team", project, name)


def blob(root: Path, text: str) -> str:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    path = root / "blobs" / "sha256" / sha256[:2] / sha256
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return sha256


def put_run(w: Writer, project: str, name: str, word: str) -> None:
    k = key(project, name)
    sha256 = blob(w.layout.root, f"bytes of {word}")
    both = blob(w.layout.root, "bytes that two runs have")
    config, summary = json.dumps({word: {"value": word}}), json.dumps({f"s-{word}": word})
    w.put_run(Run(k, name=word, notes=word, config=config, summary=summary, metadata=json.dumps({"p": word})))
    w.append(k, "history", [json.dumps({"_step": i, f"m-{word}": word, "loss": i}) for i in range(50)])
    w.append(k, "system", [json.dumps({"_timestamp": i, f"x-{word}": i}) for i in range(5)])
    w.publish(k, "history", Fetched("history", "rows", got=50, total=50))
    w.put_files(k, [FileEntry(word, 1, sha256=sha256), FileEntry("b", 1, sha256=both)])
    w.put_logs(k, [(0, None, None, f"line {word}")])
    w.quarantine(Failure(k, "files", f"error {word}", 1, now()))


def fill(root: Path) -> None:
    """Two runs in each of two projects; those whose names hold the canary are to go."""
    with Writer(root) as w:
        for project, runs in (("keep", ("good", CANARY + "run")), (CANARY + "project", ("x", "y"))):
            marked = CANARY in project
            for name in runs:
                word = f"{CANARY}-{name}" if marked or CANARY in name else f"plain-{name}"
                put_run(w, project, name, word)
                w.commit()
                put_run(w, project, name, word + "2")  # an older version, to be compacted or not
                w.commit()
            word = CANARY if marked else "plain"
            where = ItemKey("api.wandb.ai", f"item-{project}", "team", project)
            w.put_project(Project("api.wandb.ai", "team", project, description=word))
            w.put_item(Sweep(where, word, name=word, config=f"method: grid\nname: {word}"))
            w.put_item(Report(where, word, spec=json.dumps({"t": word})))
            manifest = blob(root, f"manifest of {word}")
            used = [ArtifactUse("team", "keep", CANARY + "run"), ArtifactUse("team", "keep", "good")]
            w.put_item(
                Artifact(
                    where, "model", f"art-{word}", 0, "COMMITTED", aliases=(word,), manifest_sha256=manifest,
                    entries=[ArtifactEntry(word, sha256=blob(root, f"entry of {word}"))],
                    uses=used if not marked else [], run_entity="team", run_project="keep", run_id=CANARY + "run",
                )
            )  # fmt: skip
            w.log_sync(SyncReport("api.wandb.ai", "team", project, now(), now(), "ok", 2, 2, message=word))
            w.commit()
            _sent(root, where.storage_id, f"team/{project}/art-{word}", "artifact")
            for name in runs:
                _sent(root, key(project, name).storage_id, f"team/{project}/{name}", "run")
        w.log_sync(SyncReport("api.wandb.ai", "team", "keep", now(), now(), "ok", 2, 2, message=MESSAGE))
        for n in range(25):  # something to compact, so that replaced files lie around
            k = key("keep", f"more{n}")
            w.put_run(Run(k, name=f"more{n}"))
            w.commit()


def _sent(root: Path, storage_id: str, path: str, kind: str) -> None:
    """What an importer notes of something it sent, once well and once not."""
    for error in (None, "broken"):
        account = Account(path, path, "f", error=error)
        places = {"destination": "there", "namespace": path.rpartition("/")[0]}
        Ledger(root, kind).write(account, source="api.wandb.ai", storage_id=storage_id, **places)


def traces(root: Path, word: str = CANARY) -> list[str]:
    """Where a word still stands: in names and bytes of files, and in the decoded content of Parquet files."""
    found = []
    forms = [word.encode(), base64.b64encode(word.encode())[:-2]]
    for path in root.rglob("*"):
        if word in path.name:
            found.append(f"name {path}")
        if path.is_file():
            data = path.read_bytes()
            found += [f"bytes {path}" for form in forms if form in data]
            if path.suffix == ".parquet":
                content = str(pq.read_table(path).to_pylist()) + str(pq.read_metadata(path).metadata)
                found += [f"content {path}"] if word in content else []
    return found


def content(root: Path) -> dict[str, list[Any]]:
    """What is left of the things that are to be kept."""
    found = {}
    with Reader(root) as reader:
        db = reader.connect()
        for view in VIEWS:
            rows = db.execute(f"select * from {view}").fetchall()
            texts = [repr(row) for row in rows]
            if view in ("artifacts", "sync_log"):  # rows of other things that name the run lose its name, and stay
                texts = [text.replace(repr(MESSAGE), "None").replace(repr(f"{CANARY}run"), "None") for text in texts]
            found[view] = sorted(text for text in texts if CANARY not in text)
    ledgers = [line for path in root.glob("*_*.jsonl") for line in path.read_text().splitlines()]
    found["ledgers"] = sorted(line for line in ledgers if CANARY not in line)
    assert found["ledgers"]
    return found


VIEWS = (
    "runs", "config", "summary", "metrics", "history", "system_metrics", "files", "logs", "projects", "sweeps",
    "reports", "artifacts", "artifact_entries", "artifact_uses", "sync_log", "quarantine",
)  # fmt: skip
PATHS = [parse(f"team/keep/{CANARY}run"), parse(f"team/{CANARY}project")]


def test_no_trace_is_left_and_nothing_else_is_touched(tmp_path: Path) -> None:
    root = tmp_path / "m"
    fill(root)
    before = content(root)
    assert len(traces(root)) > 20
    blobs = {p.read_text() for p in (root / "blobs").rglob("*") if p.is_file()}
    done = purge(root, PATHS)
    assert traces(root) == []
    assert content(root) == before
    assert (done.runs, done.items) == (3, 3) and done.files > 0 and done.bytes > 0
    left = {p.read_text() for p in (root / "blobs").rglob("*") if p.is_file()}
    assert left == {b for b in blobs if CANARY not in b} and "bytes that two runs have" in left
    [line] = (root / "purge.log").read_text().splitlines()
    assert json.loads(line)["runs"] == 3
    with Writer(root) as w:  # the catalog agrees with the data
        w.put_run(Run(key("keep", "good"), name="renamed"))
    repair(root)
    assert traces(root) == []


def test_what_was_purged_can_come_again_under_a_new_number(tmp_path: Path) -> None:
    root = tmp_path / "m"
    fill(root)
    with Reader(root) as reader:
        [(highest,)] = reader.connect().execute("select max(rid) from runs").fetchall()
    purge(root, PATHS)
    with Writer(root) as w:
        put_run(w, "keep", CANARY + "run", "back")
    with Reader(root) as reader:
        [(rid, rows)] = reader.connect().execute("select rid, history_rows from runs where name = 'back'").fetchall()
    assert rid > highest and rows == 50


def test_killed_at_any_moment_it_is_not_done_or_can_be_finished(tmp_path: Path) -> None:
    rnd = random.Random(11)
    code = (
        "from mirror.store.purge import purge; from mirror.paths import parse\n"
        "sys.setprofile(count); purge(sys.argv[1], [parse(p) for p in sys.argv[2:]]); print(steps())"
    )
    root = tmp_path / "m"
    fill(root)
    before = content(root)
    paths = [p.text for p in PATHS]
    shutil.copytree(root, calm := tmp_path / "calm")
    ended, steps = dying(code, str(calm), *paths)
    assert ended == 0 and steps > 500
    for n in range(5):
        at = rnd.randrange(steps // 4, steps)
        ended, _ = dying(code, str(root), *paths, at=at, later=rnd.uniform(0.001, 0.02) if n % 3 == 2 else 0)
        assert ended or n, "the first has all steps before it"
        with Writer(root):  # what a dead purge left is finished or undone
            pass
        assert content(root) == before
        with Reader(root) as reader:
            names = {name for (name,) in reader.connect().execute("select distinct project from runs").fetchall()}
        if not any(CANARY in name for name in names):
            assert traces(root) == []
            break
    else:
        purge(root, PATHS)
    assert traces(root) == [] and content(root) == before
    with Writer(root) as w:
        known = {str(p) for (p,) in w.catalog.db.execute("select path from files")}
    assert {str(p.relative_to(root)) for p in (root / "data").rglob("*.parquet*")} == known


def test_bytes_that_no_row_names_any_more_go_and_those_of_live_lines_stay(tmp_path: Path) -> None:
    root = tmp_path / "m"
    fill(root)
    k = key("keep", CANARY + "run")
    with Writer(root) as w:
        for text in (f"older {CANARY}", f"newer {CANARY}"):
            w.put_files(k, [FileEntry("f", len(text), sha256=blob(root, text))])
            w.commit()
        w.compact(everything=True)
        rid = w.known(k.source, k.entity, k.project)[k.storage_id].rid
        w.put_files(
            k,
            [
                FileEntry("f", 1, sha256=blob(root, f"newer {CANARY}")),
                shared := FileEntry("s", 6, sha256=blob(root, "shared")),
            ],
        )
    taken = {str(rid): f"taken {CANARY}", "99999": "another run's"}
    for name, text in taken.items():
        (root / "live" / name).mkdir()
        line = json.dumps({"name": "f", "sha256": blob(root, text)}) + "\n"
        (root / "live" / name / "files.jsonl").write_text(line)
    with (root / "live" / "99999" / "files.jsonl").open("a") as lines:
        lines.write(json.dumps({"name": "g", "sha256": shared.sha256}) + "\n")
    killed = blob(root, f"a download that was killed: {CANARY}")
    other = FileLock(root / "sessions" / "0123456789ab.lock")  # somebody writes, and may want it
    assert other.acquire(wait=False)
    purge(root, PATHS[1:])
    assert (root / "blobs" / "sha256" / killed[:2] / killed).exists()
    other.release(remove=True)
    purge(root, PATHS[:1])
    assert traces(root) == []
    left = {p.read_text() for p in (root / "blobs").rglob("*") if p.is_file()}
    assert {"another run's", "shared"} <= left


def test_it_refuses_what_is_not_there_and_a_mirror_that_is_served(tmp_path: Path) -> None:
    root = tmp_path / "m"
    fill(root)
    before = sorted(p for p in (root / "data").rglob("*.parquet"))
    for path in ("team/keep/nobody", "nobody", "team/nothing"):
        with pytest.raises(NotFoundError, match="holds nothing of `"):
            purge(root, [parse(path)])
    lock = FileLock(root / "live" / "serve.lock")
    assert lock.acquire(wait=False)
    with pytest.raises(LockedError, match="stop it"):
        purge(root, PATHS)
    lock.release()
    assert sorted(p for p in (root / "data").rglob("*.parquet")) == before


def test_the_command_asks_first(tmp_path: Path) -> None:
    root = tmp_path / "m"
    fill(root)

    def mirror(*args: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mirror", "purge", "--mirror", str(root), *args]
        return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=300, check=False)

    paths = [p.text for p in PATHS]
    assert mirror(*paths, "--dry-run").stdout == "Would remove 3 runs and 1 whole projects.\n"
    refused = mirror(*paths, answer="n\n")
    assert refused.returncode != 0 and traces(root)
    unknown = mirror("team/nobody", "--yes")
    assert unknown.returncode == 1 and "holds nothing of `team/nobody`" in unknown.stderr
    done = mirror(*paths, answer="y\n")
    assert done.returncode == 0 and done.stdout.startswith("Removed 3 runs and 1 whole projects"), done
    assert traces(root) == []
