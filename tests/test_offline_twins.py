"""The same run from a log on disk and from a server: shown once, every stream from whoever has more of it.

Logs are written by hand, so that each side can lack what a test wants; the server is a real one, to which the same rows
were posted. What is expected is what was logged, or what the test left out of one side.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from logfiles import exit_record, row, run_record, write_log
from serving import Server
from starting import run_mirror
from syncing import Copy, log_run, proxied
from wandb.proto import wandb_internal_pb2 as pb

from mirror.store import Reader, Writer
from mirror.store.versions import run_of


def values(n: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows with everything a cell may be."""
    return [
        {
            "_step": i,
            "_timestamp": 1.7e9 + i + 0.123456,
            "x": i / 7,
            "whole": float(i),
            "big": 2**60 + i,
            "nested": {"a": i, "b.c": [1, {"z": 1, "y": None}]},
            "nan": float("nan") if i % 3 else "NaN",
        }
        for i in range(start, start + n)
    ]


def sample(i: int) -> bytes:
    record = pb.Record(num=3)
    record.stats.timestamp.FromSeconds(1_700_000_000 + 10 * i)
    item = record.stats.item.add()
    item.key, item.value_json = "cpu", json.dumps(10.5 + i)
    return bytes(record.SerializeToString())


def samples(n: int) -> list[dict[str, Any]]:
    """The same as the SDK sends them."""
    return [
        {"_wandb": True, "_timestamp": 1.7e9 + 10.0 * i, "_runtime": 10.0 * i, "system.cpu": 10.5 + i} for i in range(n)
    ]


def line(i: int) -> bytes:
    record = pb.Record(num=4)
    record.output_raw.timestamp.FromSeconds(1_700_000_000 + i)
    record.output_raw.line = f"line {i}\n"
    return bytes(record.SerializeToString())


def logged(rows: list[dict[str, Any]]) -> list[bytes]:
    return [row(r["_step"], **{k: v for k, v in r.items() if k != "_step"}) for r in rows]


class Case:
    """A run of its own in a folder and on the server, and a mirror."""

    def __init__(self, server: Server, place: Path, name: str, url: str) -> None:
        self.server, self.name, self.project, self.folder = server, name, f"p-{name}", place / "wandb"
        self.copy = Copy(place / "mirror", url, server.key)
        self.source = url.removeprefix("http://")

    def write(self, records: list[bytes], entity: str = "local", **fields: Any) -> None:
        write_log(self.folder, self.name, [run_record(self.name, self.project, entity, **fields), *records])

    def post(self, rows: list[dict[str, Any]], **more: Any) -> None:
        log_run(self.server, self.project, self.name, rows, **more)

    def sync_server(self) -> str:
        return self.copy.sync(f"local/{self.project}/{self.name}").stderr

    def sync_folder(self, *options: str) -> str:
        return self.copy.sync(str(self.folder), *options).stderr

    def shown(self) -> list[dict[str, Any]]:
        with Reader(self.copy.root) as reader:
            cursor = reader.connect().execute("select * from runs where run_id = ?", [self.name])
            names = [d[0] for d in cursor.description]
            return [dict(zip(names, found, strict=True)) for found in cursor.fetchall()]

    def only(self) -> dict[str, Any]:
        [run] = self.shown()
        return run

    def cells(self) -> list[tuple[Any, ...]]:
        """What `history` shows of the run."""
        query = "select row, key, path_id, step, ts, kind, value, j from history where run_id = ? order by all"
        return [tuple(map(repr, cell)) for cell in self.copy.sql(query, self.name)]


@pytest.fixture
def case(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    return Case(server, tmp_path, f"r{abs(hash(request.node.name)) % 10**9}", server.url)


def from_log_alone(case: Case) -> list[tuple[Any, ...]]:
    """The cells of the log in a mirror of its own: there is nothing it could be merged with."""
    alone = Case(case.server, case.folder.parent / "alone", case.name, case.server.url)
    alone.folder = case.folder
    alone.sync_folder()
    return alone.cells()


BOTH_WAYS = pytest.mark.parametrize("first", ["server", "folder"])


def sync_both(case: Case, first: str) -> str:
    syncs: dict[str, Callable[[], str]] = {"server": case.sync_server, "folder": case.sync_folder}
    return syncs.pop(first)() + next(iter(syncs.values()))()


@BOTH_WAYS
def test_the_log_of_a_crashed_run_gives_the_tail_that_the_server_lacks(case: Case, first: str) -> None:
    """And goes on doing so: no later sync of either side changes anything."""
    case.write(logged(values(80)) + [sample(i) for i in range(6)] + [line(i) for i in range(7)])
    case.post(values(50), system=samples(4), finish=False)
    sync_both(case, first)
    run = case.only()
    url = next(case.folder.glob("*/*.wandb")).as_uri()
    assert json.loads(run["origin"]) == {"history": url, "system": url, "logs": url}
    assert run["source"] == case.source and run["entity"] == "local"
    assert (run["history_rows"], run["history_total"], run["system_rows"], run["logs_rows"]) == (80, 50, 6, 7)
    assert "the server had 50 rows" in run["history_note"] and run["history_complete"]
    assert case.cells() == from_log_alone(case)
    assert case.copy.sql("select count(*) from system_metrics where key = 'system.cpu'") == [(6,)]
    assert [text for (text,) in case.copy.sql("select text from logs order by line")] == [f"line {i}" for i in range(7)]
    assert case.copy.sql("select key, n, last_step from metrics where key = 'x'") == [("x", 80, 79)]
    held = case.copy.files()
    for _ in range(2):
        for again in (case.sync_server, case.sync_folder):
            again()
            assert case.only()["origin"] == run["origin"]
    assert case.copy.files() == held


@BOTH_WAYS
def test_a_log_that_is_the_beginning_of_what_the_server_has_adds_nothing(case: Case, first: str) -> None:
    case.write(logged(values(50)) + [sample(i) for i in range(3)])
    case.post(values(80), system=samples(5))
    sync_both(case, first)
    run = case.only()
    assert run["origin"] is None and (run["history_rows"], run["system_rows"]) == (80, 5)
    [(rows, into, rid)] = case.copy.sql(
        "select history_rows, merged_into, rid from raw.runs where source = 'offline' order by gen desc limit 1"
    )
    assert (rows, into) == (50, run["rid"]), "the log's own rows stay"
    count = "select count(distinct row) from raw.history where rid = ?"
    assert case.copy.sql(count, rid) == [(50,)]
    held = case.copy.files()
    sync_both(case, first)
    assert case.copy.files() == held


def test_equal_runs_are_the_servers(case: Case) -> None:
    case.write([*logged(values(30)), exit_record()])
    case.post(values(30))
    stderr = sync_both(case, "server")
    path = f"`local/{case.project}/{case.name}`"
    assert f"1 of these runs are mirrored from {case.source}, too ({path}): they are shown once" in stderr
    assert case.only()["origin"] is None and case.only()["history_road"] != "log"


def test_a_run_and_a_log_that_contradict_each_other_are_both_shown(case: Case) -> None:
    rows = values(30)
    case.post(rows[:20] + [r | {"x": -1.5} for r in rows[20:]])
    case.write(logged(rows))
    stderr = sync_both(case, "server")
    assert "contradict each other: 10 rows are on the server alone, 10 in the log alone" in stderr
    shown = {run["source"]: run for run in case.shown()}
    assert shown.keys() == {case.source, "offline"} and shown["offline"]["history_rows"] == 30
    assert "contradict" not in sync_both(case, "server"), "said once"


def test_what_only_shares_a_name_is_kept_apart(case: Case) -> None:
    case.post(values(20, start=5))
    case.write(logged(values(20)))
    assert "but other first rows" in sync_both(case, "folder") + case.sync_folder()
    assert len(case.shown()) == 2


def test_a_server_that_gets_more_than_the_log_had_is_followed(case: Case) -> None:
    """The log is ahead of a run that goes on; then the server has everything, then the log has more again."""
    case.write(logged(values(40)))
    case.post(values(30), finish=False)
    sync_both(case, "server")
    assert case.only()["history_rows"] == 40 and "history" in json.loads(case.only()["origin"])
    case.post(values(25, start=30), offset=30, finish=False)
    case.sync_server()
    assert case.only()["history_rows"] == 55 and case.only()["origin"] is None
    whole = case.cells()
    case.write(logged(values(60)))
    case.sync_folder()
    assert case.only()["history_rows"] == 60 and "history" in json.loads(case.only()["origin"])
    assert case.cells() == from_log_alone(case) and len(case.cells()) > len(whole)


def test_a_log_that_grows_is_gone_on_with(case: Case) -> None:
    """What was copied is not copied again."""
    case.post(values(10), finish=False)
    gens = []
    for n in (20, 30, 31):
        case.write(logged(values(n)))
        sync_both(case, "server") if n == 20 else case.sync_folder()
        assert case.only()["history_rows"] == n
        gens += case.copy.sql("select history_gen from raw.live")
    assert len(set(gens)) == 1
    assert case.cells() == from_log_alone(case)


def test_a_tag_edited_at_the_server_arrives_without_the_streams_of_the_log(case: Case) -> None:
    case.write(logged(values(40)) + [line(i) for i in range(5)])
    case.post(values(30))
    sync_both(case, "server")
    gen = case.copy.sql("select history_gen, logs_gen from raw.live")
    case.server.upsert(case.project, case.name, tags=["good"])
    case.sync_server()
    run = case.only()
    assert run["tags"] == ["good"] and (run["history_rows"], run["logs_rows"]) == (40, 5)
    assert case.copy.sql("select history_gen, logs_gen from raw.live") == gen
    held = case.copy.files()
    case.sync_server()
    assert case.copy.files() == held


def test_files_of_the_folder_are_shown_if_the_server_has_fewer(case: Case) -> None:
    case.write(logged(values(5)))
    files = next(case.folder.glob("*")) / "files"
    files.mkdir()
    (files / "model.bin").write_bytes(b"abc")
    case.post(values(5))
    sync_both(case, "server")
    assert json.loads(case.only()["origin"]).keys() == {"files"}
    assert case.copy.sql("select name, size from files") == [("model.bin", 3)]


def test_a_fork_s_log_lacks_the_rows_of_its_parent(case: Case) -> None:
    """Which a server puts before its own."""
    case.post(values(20))
    fork = pb.Record.FromString(run_record(case.name, case.project, "local"))
    fork.run.branch_point.run, fork.run.branch_point.value, fork.run.branch_point.metric = "parent", 11, "_step"
    write_log(case.folder, case.name, [bytes(fork.SerializeToString()), *logged(values(8, start=12))])
    sync_both(case, "server")
    assert case.only()["origin"] is None and case.only()["history_rows"] == 20


def test_bytes_of_the_folder_are_those_of_the_servers_run(case: Case) -> None:
    """Files that are the same in both need not be downloaded."""
    case.write(logged(values(5)))
    files = next(case.folder.glob("*")) / "files"
    files.mkdir()
    (files / "model.bin").write_bytes(b"abc")
    (files / "only-here.bin").write_bytes(b"abcd")
    case.post(values(5))
    upload(case, {"model.bin": b"abc", "only-there.bin": b"x"})
    sync_both(case, "server")
    assert case.only()["origin"] is None
    case.sync_folder("--all-bytes")
    held = dict(case.copy.sql("select name, sha256 from files"))
    sha256 = hashlib.sha256(b"abc").hexdigest()
    assert held == {"model.bin": sha256, "only-there.bin": None}
    found = {p.read_bytes() for p in (case.copy.root / "blobs").rglob("*") if p.is_file()}
    assert found == {b"abc", b"abcd"}
    before = case.copy.files()
    case.sync_folder("--all-bytes")
    assert case.copy.files() == before


def upload(case: Case, files: dict[str, bytes]) -> None:
    query = """mutation C($p: String!, $r: String!, $f: [String!]!) {
      createRunFiles(input: {entityName: "local", projectName: $p, runName: $r, files: $f}) { files { name uploadUrl } }
    }"""
    made = case.server.graphql(query, p=case.project, r=case.name, f=[*files])["createRunFiles"]["files"]
    for file in made:
        assert requests.put(file["uploadUrl"], data=files[file["name"]], timeout=300).ok


def test_repair_after_a_lost_catalog_keeps_runs_merged(case: Case) -> None:
    case.write(logged(values(40)) + [sample(i) for i in range(3)])
    case.post(values(30))
    sync_both(case, "server")
    before, cells = case.only(), case.cells()
    (case.copy.root / "catalog.sqlite").unlink()
    done = run_mirror(["repair", "--mirror", str(case.copy.root)], check=True)
    assert "catalog" in done.stdout + done.stderr
    after = case.only()
    assert {k: after[k] for k in ("rid", "origin", "history_rows", "system_rows")} == {
        k: before[k] for k in ("rid", "origin", "history_rows", "system_rows")
    }
    sync_both(case, "server")
    assert case.only()["origin"] == before["origin"] and case.cells() == cells
    held = case.copy.files()
    sync_both(case, "folder")
    assert case.copy.files() == held


def test_purge_takes_the_copy_along(case: Case) -> None:
    rows = [r | {"canary": "sesame-oil"} for r in values(40)]
    case.write(logged(rows), entity="somebody")
    case.post(rows[:30])
    sync_both(case, "server")
    assert len(case.shown()) == 1
    run_mirror(["purge", f"local/{case.project}/{case.name}", "--yes", "--mirror", str(case.copy.root)], check=True)
    assert case.copy.sql("select count(*) from raw.runs") == case.copy.sql("select count(*) from raw.history") == [(0,)]
    assert not [p for p in case.copy.root.rglob("*") if p.is_file() and b"sesame-oil" in p.read_bytes()]


def test_a_log_is_shown_by_itself_once_the_server_s_run_is_deleted(case: Case) -> None:
    case.write(logged(values(20)))
    case.post(values(20))
    other = Case(case.server, case.folder.parent, f"{case.name}x", case.server.url)
    other.project = case.project
    other.post(values(3))
    case.copy.sync(f"local/{case.project}")
    case.sync_folder()
    assert len(case.shown()) == 1
    query = "mutation D($id: ID!) { deleteRun(input: {id: $id}) { clientMutationId } }"
    case.server.graphql(query, id=case.only()["storage_id"])
    for _ in range(2):
        case.copy.sync(f"local/{case.project}", "--accept-deletions")
    shown = {run["source"]: run["deleted_at"] is None for run in case.shown()}
    assert shown == {case.source: False, "offline": True}


def test_a_run_that_moved_to_another_project_stays_merged(case: Case) -> None:
    case.write(logged(values(30)))
    case.post(values(20))
    sync_both(case, "server")
    with Reader(case.copy.root) as reader:
        cursor = reader.connect().execute("select * from raw.runs_live")
        held = run_of(dict(zip([d[0] for d in cursor.description], cursor.fetchone() or (), strict=True)))
    with Writer(case.copy.root) as writer:  # what a sync that sees the run moved does
        writer.put_run(replace(held, key=replace(held.key, project="elsewhere")))
    case.write(logged(values(31)))
    case.sync_folder()
    assert case.only()["project"] == "elsewhere" and case.only()["history_rows"] == 31


def test_of_several_servers_somebody_has_to_say_which_one(case: Case, server: Server) -> None:
    case.write(logged(values(40)))
    case.post(values(30))
    with proxied(server) as proxy:
        other = Case(server, case.folder.parent, case.name, proxy.url)
        case.sync_server()
        other.sync_server()
        stderr = case.sync_folder()
        assert "may be that of" in stderr and "--base-url" in stderr
        assert len(case.shown()) == 3
        case.sync_folder("--base-url", proxy.url)
        shown = {run["source"]: run for run in case.shown()}
        assert shown.keys() == {case.source, other.source}
        assert shown[other.source]["history_rows"] == 40 and shown[case.source]["history_rows"] == 30
        case.sync_server()
        case.sync_folder()
        assert {run["source"]: run["history_rows"] for run in case.shown()} == {other.source: 40, case.source: 30}


def test_runs_without_rows_are_told_by_when_they_were_started(case: Case) -> None:
    """And kept apart where that is not known."""
    case.post([])
    case.write([exit_record()])
    assert "neither rows nor the times" in sync_both(case, "server")
    assert len(case.shown()) == 2
    record = pb.Record(num=2)
    record.environment.started_at.FromSeconds(1_700_000_001)
    record.environment.writer_id = "w1"
    config = {"_wandb": {"value": {"e": {"w1": {"startedAt": "2023-11-14T22:13:21Z"}}}}}
    case.server.upsert(case.project, case.name, config=json.dumps(config))
    shutil.rmtree(case.folder)
    case.write([bytes(record.SerializeToString()), exit_record()])
    sync_both(case, "server")
    assert len(case.shown()) == 1
