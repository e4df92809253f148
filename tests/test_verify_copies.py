"""Copies on another server that are kept true: what changed at the source since is sent again, and verified.

Two real servers. What a copy must be like is written down by hand, or read at the source.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from artifact_wire import Logging, md5
from commanding import Done, call
from damaging import rewrite, segment
from serving import Server, serving
from syncing import Copy, log_run, logged

import mirror

Pushed = Callable[..., Done]
Verified = Callable[..., tuple[Done, dict[str, Any]]]

UPSERT = "mutation U($i: UpsertSweepInput!) { upsertSweep(input: $i) { sweep { id name } } }"
SWEEPS = """query S($p: String!) { project(name: $p) { sweeps { edges { node {
    name displayName description config state runCount } } } } }"""
GRID = "method: grid\nparameters:\n  x:\n    values: [1, 2]\n"


@pytest.fixture(scope="module")
def there(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server things are sent to."""
    with serving(tmp_path_factory.mktemp("there") / "served", key=server.key) as found:
        yield found


@pytest.fixture(scope="module")
def copy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy") / "m", server.url, server.key)


@pytest.fixture
def push(there: Server, copy: Copy, monkeypatch: pytest.MonkeyPatch) -> Pushed:
    monkeypatch.setenv("MIRROR_DST_API_KEY", there.key)

    def run(*args: str, code: int = 0) -> Done:
        done = call("push", *args, "--to", there.url, root=copy.root)
        assert done.code == code and "Traceback" not in done.err, done
        return done

    return run


@pytest.fixture
def verify(there: Server, copy: Copy, monkeypatch: pytest.MonkeyPatch) -> Verified:
    monkeypatch.setenv("WANDB_API_KEY", there.key)

    def run(*args: str, against: str = there.url) -> tuple[Done, dict[str, Any]]:
        done = call("verify", *args, "--against", against, "--format", "json", root=copy.root)
        assert "Traceback" not in done.err, done
        return done, json.loads(done.out)["against"] if done.out else {}

    return run


def told(found: dict[str, Any]) -> set[tuple[str, ...]]:
    return {(one["where"].split("/", 2)[-1], one["stream"], one["key"]) for one in found["listed"]}


def sweep_of(server: Server, project: str, **fields: str) -> dict[str, str]:
    given = {"entityName": "local", "projectName": project} | fields
    found: dict[str, str] = server.graphql(UPSERT, i=given)["upsertSweep"]["sweep"]
    return found


def sweeps_there(server: Server, project: str) -> list[dict[str, Any]]:
    return [edge["node"] for edge in server.graphql(SWEEPS, p=project)["project"]["sweeps"]["edges"]]


def test_copies_of_sweeps_follow_their_originals(
    server: Server, there: Server, copy: Copy, push: Pushed, verify: Verified
) -> None:
    given = {"config": GRID, "displayName": "first", "description": "why"}
    sweep, other = sweep_of(server, "turn", **given, state="RUNNING"), sweep_of(server, "turn", **given, state="PAUSED")
    log_run(server, "turn", "one", logged(2), sweep=sweep["name"])
    copy.sync("local/turn")
    push("local/turn")
    before = {held["description"]: held for held in sweeps_there(there, "turn")}
    assert [held["state"] for held in before.values()] == ["FINISHED", "PAUSED"] and len(before) == 2

    changed = {"config": GRID.replace("2", "é"), "displayName": "second", "description": "", "state": "STOPPED"}
    sweep_of(server, "turn", id=sweep["id"], **changed)
    sweep_of(server, "turn", id=other["id"], displayName="")
    copy.sync("local/turn")
    done, found = verify("local/turn")
    names = ("name", "description", "state", "config")
    assert done.code == 1 and told(found) == {
        *((f"sweeps/{sweep['name']}", "sweeps", name) for name in names), (f"sweeps/{other['name']}", "sweeps", "name"),
    }  # fmt: skip
    push("local/turn")
    done, found = verify("local/turn")
    assert done.code == 0 and found["compared"]["sweeps"] == 2, found
    after = {held["name"]: held for held in sweeps_there(there, "turn")}
    first, second = before.values()
    assert after.keys() == {first["name"], second["name"]}  # the same copies
    mark = f"Copied from {copy.url.removeprefix('http://')}/local/turn/sweeps/{sweep['name']}"
    assert after[first["name"]] == first | changed | {"description": mark} and first["runCount"] == 1
    assert after[second["name"]] == second | {"displayName": ""}


USE = "mutation U($i: UseArtifactInput!) { useArtifact(input: $i) { artifact { id } } }"
UPDATE = """mutation($id: ID!, $m: JSONString) {
    updateArtifact(input: {artifactID: $id, metadata: $m}) { artifact { id } } }"""
DESCRIBE = """mutation($id: ID!, $d: String) {
    updateArtifactSequence(input: {artifactSequenceID: $id, description: $d}) { artifactCollection { id } } }"""
VERSIONS = """query($p: String!, $c: String!) { project(name: $p, entityName: "local") {
    artifactCollection(name: $c) { id artifacts(first: 9) {
    edges { node { id versionIndex usedBy { edges { node { name } } } } } } } } }"""


def versions(server: Server, project: str, collection: str) -> tuple[str, dict[int, dict[str, Any]]]:
    """The id of a collection, and its versions by number."""
    held = server.graphql(VERSIONS, p=project, c=collection)["project"]["artifactCollection"]
    return held["id"], {edge["node"]["versionIndex"]: edge["node"] for edge in held["artifacts"]["edges"]}


def logs(server: Server, project: str, run_id: str, collection: str, data: bytes) -> str:
    """The id of a version that a run logs."""
    where = {"entityName": "local", "projectName": project}
    made = Logging(server, collection, {"x": data}, **where, runName=run_id, historyStep="3")
    made.project = where
    made.all()
    return made.id


def uses(server: Server, project: str, run_id: str, artifact_id: str) -> None:
    run = {"entityName": "local", "projectName": project, "runName": run_id}
    server.graphql(USE, i=run | {"artifactID": artifact_id})


def test_artifacts_of_single_runs_and_who_used_them(
    server: Server, there: Server, copy: Copy, push: Pushed, verify: Verified
) -> None:
    for project, names in (("solo", ("one", "two", "bare")), ("far", ("maker", "late"))):
        for name in names:
            log_run(server, project, name, logged(2))
    first, second = (logs(server, "solo", "one", "data", b"%d" % n) for n in range(2))
    far = logs(server, "far", "maker", "other", b"far")
    uses(server, "solo", "two", second)
    uses(server, "solo", "one", far)
    copy.sync("local/solo", "local/far", "--all-bytes")
    push("local/far", "local/solo", "--verify")

    def artifacts_of(*paths: str, code: int = 0, against: Server = there) -> tuple[Any, set[tuple[str, ...]]]:
        done, found = verify(*paths, against=against.url)
        assert done.code == code, found
        return found["compared"].get("artifacts"), told(found)

    assert artifacts_of("local/solo/one") == (3, set()) and artifacts_of("local/solo/two") == (1, set())
    assert artifacts_of("local/solo/bare") == (None, set()) and artifacts_of("local/solo") == (2, set())
    assert artifacts_of("local/solo/one", against=server) == (3, set())
    copied = versions(there, "solo", "data")[1]
    there.graphql(UPDATE, id=copied[1]["id"], m='{"n": 2}')
    wrong = {("data:v1", "artifacts", "metadata")}
    assert artifacts_of("local/solo/one", code=1) == (3, wrong) and artifacts_of("local/solo/two", code=1) == (1, wrong)
    there.graphql(UPDATE, id=copied[1]["id"], m="{}")

    # A run of another project used what was sent before it, and a collection has a description now.
    uses(server, "far", "late", first)
    sequence = versions(server, "solo", "data")[0]
    server.graphql(DESCRIBE, id=sequence, d="rows")
    copy.sync("local/solo", "local/far")
    wrong = {("data:v0", "artifacts", "used by"), ("data", "collections", "description")}
    assert artifacts_of("local/solo", code=1)[1] == wrong
    push("local/solo")
    assert artifacts_of("local/solo") == (2, set())
    users = versions(there, "solo", "data")[1][0]["usedBy"]["edges"]
    assert [edge["node"]["name"] for edge in users] == ["late"]
    server.graphql(DESCRIBE, id=sequence, d="")
    copy.sync("local/solo")
    push("local/solo")
    assert artifacts_of("local/solo") == (2, set())


def test_runs_whose_lineage_the_mirror_does_not_know_are_not_deletable(
    server: Server, copy: Copy, verify: Verified
) -> None:
    for project, name in (("kin", "one"), ("kin", "two"), ("kin", "three"), ("elsewhere", "maker")):
        log_run(server, project, name, logged(2))
    own, foreign = logs(server, "kin", "one", "mine", b"1"), logs(server, "elsewhere", "maker", "other", b"2")
    copy.sync("local/kin", "--all-bytes")

    def reasons(*paths: str) -> dict[str, Any]:
        done = call("verify", *paths, "--against", server.url, "--deletable", "--format", "json", root=copy.root)
        return {one["run"].rsplit("/", 1)[1]: one["reasons"] for one in json.loads(done.out)["deletable"]}

    assert reasons("local/kin") == {"one": [], "two": [], "three": []} and reasons("local/kin/one") == {"one": []}
    uses(server, "kin", "two", own)
    uses(server, "kin", "three", foreign)
    found = reasons("local/kin")
    assert found["one"] == ["1 differences were found"]  # what it logged is used, and the mirror does not know
    assert found["two"] == ["it used local/kin/mine:v0, which the mirror does not know: `mirror sync local/kin`"]
    unknown = "it used local/elsewhere/other:v0, which the mirror does not know: `mirror sync local/elsewhere`"
    assert found["three"] == [unknown]
    copy.sync("local/kin")
    assert reasons("local/kin") == {"one": [], "two": [], "three": [unknown]}
    assert reasons("local/kin/three") == {"three": [unknown]}
    copy.sync("local/elsewhere")
    assert reasons("local/kin") == {"one": [], "two": [], "three": []}


def test_copies_of_runs_that_were_rewound_or_forked_are_as_their_originals(
    server: Server, copy: Copy, push: Pushed, verify: Verified
) -> None:
    rewind = "mutation R($i: RewindRunInput!) { rewindRun(input: $i) { rewoundRun { historyLineCount } } }"
    log_run(server, "branches", "rewound", logged(9))
    point = {"runName": "rewound", "entityName": "local", "projectName": "branches", "metricName": "_step"}
    assert server.graphql(rewind, i=point | {"metricValue": 5})["rewindRun"]["rewoundRun"]["historyLineCount"] == 6
    for name in ("rewound", "forked"):  # the SDK puts the point into the config of both
        config = {"_wandb": {"value": {"branch_point": {"run_id": "rewound", "step": 5}}}}
        log_run(server, "branches", name, logged(2), offset=6, config=json.dumps(config))
    copy.sync("local/branches")
    push("local/branches")
    done, found = verify("local/branches")
    assert done.code == 0 and found["compared"]["rows"] == 16, found


PROJECT = "query P($p: String!) { project(name: $p) { description } }"
DESCRIPTION = """mutation($p: String!, $d: String) {
    upsertModel(input: {entityName: "local", name: $p, description: $d}) { inserted } }"""


def test_projects_without_runs_are_known_to_have_been_sent(
    server: Server, there: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", there.key)
    copy = Copy(tmp_path / "m", server.url, server.key)
    for project in ("bare", "never", "apart"):
        server.graphql(DESCRIPTION, p=project, d="first")
    copy.sync("local/bare", "local/never", "local/apart")
    there.graphql(DESCRIPTION, p="never-here", d="of others")
    remap = ["--remap", "local/bare=local/sent", "--remap", "local/never=local/never-here"]
    push = ["push", "local/bare", "local/never", "--to", there.url, *remap]
    assert call(*push, root=copy.root).code == 0

    def said(project: str) -> str:
        description: str = there.graphql(PROJECT, p=project)["project"]["description"]
        return description

    assert (said("sent"), said("never-here")) == ("first", "of others")
    done = call("verify", "--against", there.url, root=copy.root)
    assert done.code == 0 and "1 projects that neither came from there nor went there" in done.err, done

    server.graphql(DESCRIPTION, p="bare", d="second")
    at_origin = ["verify", "local/bare", "--against", server.url]
    done = call(*at_origin, root=copy.root)
    assert done.code == 1 and all(text in done.out for text in ("description", '"first"', '"second"')), done
    copy.sync("local/bare")
    assert call(*at_origin, root=copy.root).code == 0
    assert call(*push, root=copy.root).code == 0 and (said("sent"), said("never-here")) == ("second", "of others")


VIEW = """mutation($s: String!) { upsertView(input: {entityName: "local", projectName: "own", type: "runs",
    name: "v", displayName: "title", spec: $s}) { view { id } } }"""


def test_what_belongs_to_runs_and_stands_elsewhere_is_not_waved_through(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep, a collection and a report that changed since, and bytes that are those of another entry."""
    monkeypatch.setenv("WANDB_API_KEY", server.key)
    copy = Copy(tmp_path / "m", server.url, server.key)
    log_run(server, "own", "logs", logged(2))
    sweep = sweep_of(server, "own", config=GRID)
    log_run(server, "own", "tries", logged(2), sweep=sweep["name"])
    for data in (b"0", b"1"):
        logs(server, "own", "logs", "data", data)
    server.graphql(VIEW, s='{"blocks": [1]}')
    copy.sync("local/own", "--all-bytes")

    def reasons(*paths: str) -> dict[str, Any]:
        done = call("verify", *paths, "--against", server.url, "--deletable", "--format", "json", root=copy.root)
        return {one["run"].rsplit("/", 1)[1]: one["reasons"] for one in json.loads(done.out)["deletable"]}

    one = ["1 differences were found"]
    assert reasons("local/own") == {"logs": [], "tries": []}
    sweep_of(server, "own", id=sweep["id"], config=GRID.replace("2", "3"))
    assert reasons("local/own") == {"logs": [], "tries": one} and reasons("local/own/tries") == {"tries": one}
    server.graphql(DESCRIBE, id=versions(server, "own", "data")[0], d="rows")
    assert reasons("local/own") == {"logs": one, "tries": one}
    copy.sync("local/own")
    server.graphql(VIEW, s='{"blocks": [2]}')
    report = ["1 differences were found in reports of its project"]
    assert reasons("local/own") == {"logs": report, "tries": report}
    copy.sync("local/own")
    assert reasons("local/own") == {"logs": [], "tries": []}

    zero, one_ = (hashlib.sha256(data).hexdigest() for data in (b"0", b"1"))

    def exchanged(table: Any) -> Any:
        i = table.schema.get_field_index("sha256")
        held = [one_ if name == zero else name for name in table["sha256"].to_pylist()]
        return table.set_column(i, table.schema.field(i), pa.array(held, pa.string()))

    rewrite(copy.root, segment(copy.root, "artifact_entries", zero, "sha256"), exchanged)
    done = call("verify", "--format", "json", root=copy.root)
    (found,) = json.loads(done.out)["store"]["listed"]
    assert (done.code, found["stream"], found["key"]) == (1, "blob", one_), found
    assert (found["here"], found["there"]) == (f"md5 {md5(b'1')}", f"md5 {md5(b'0')} as listed")
    assert "the mirror itself is damaged" in str(reasons("local/own")["logs"])


def test_a_run_that_nobody_named_is_noted_and_no_difference(
    there: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", there.key)
    root = tmp_path / "m"
    with mirror.open(root, write=True) as m:
        key = mirror.RunKey("logs", "1", "local", "unnamed", "d73m0stu")
        m.put_projects([mirror.Project("logs", "local", "unnamed")])
        m.put_runs([mirror.Run(key, state="finished", config="{}")])
        m.put_history(key, [{"_step": 0, "x": 1}])
        m.put_files(key, [])
    pushed = call("push", "local/unnamed", "--to", there.url, "--verify", root=root)
    said = next(line for line in pushed.out.splitlines() if line.split()[:2] == ["changed", "name"])
    assert pushed.code == 0 and "no difference" in pushed.out and "nobody named" in said, pushed
    there.upsert("unnamed", "d73m0stu", displayName="brave-lion-3")
    assert call("verify", "--against", there.url, root=root).code == 0


def test_times_of_console_lines_and_makers_of_artifacts_are_to_be_here(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that lost them is no proof that the original can go."""
    monkeypatch.setenv("WANDB_API_KEY", server.key)
    copy = Copy(tmp_path / "m", server.url, server.key)
    log_run(server, "kept", "one", logged(2), finish=False)
    line = json.dumps({"level": "info", "ts": "2026-01-01T00:00:00.000000", "content": "hello"})
    assert server.stream("kept", "one", files={"output.log": {"offset": 0, "content": [line]}}).ok
    assert server.stream("kept", "one", complete=True, exitcode=0).ok
    logs(server, "kept", "one", "data", b"1")
    copy.sync("local/kept", "--all-bytes")

    def reasons(table: str, column: str) -> str:
        root = tmp_path / column
        shutil.copytree(copy.root, root)

        def forget(held: Any) -> Any:
            i = held.schema.get_field_index(column)
            return held.set_column(i, held.schema.field(i), pa.nulls(len(held), held.schema.field(i).type))

        for path in (root / "data" / table).rglob("*.parquet"):
            rewrite(root, path, forget)
        done = call("verify", "--against", server.url, "--deletable", "--format", "json", root=root)
        found = json.loads(done.out)
        assert done.code == 1 and found["store"]["ok"], found
        return str(found["deletable"][0]["reasons"])

    assert "1 differences were found" in reasons("logs", "ts")
    assert "1 differences were found" in reasons("artifacts", "created_at")
    assert "it logged local/kept/data:v0, which the mirror does not know" in reasons("artifacts", "run_id")


def test_descriptions_that_are_null_are_none(
    server: Server, there: Server, copy: Copy, push: Pushed, verify: Verified
) -> None:
    given = {"lr": {"value": 0.1}, "deep": {"value": {"desc": None}}, "said": {"desc": None, "value": None}}
    log_run(server, "described", "r", logged(2), config=json.dumps(given))
    copy.sync("local/described")
    push("local/described")
    query = '{ project(name: "described", entityName: "local") { run(name: "r") { config } } }'
    config = json.loads(there.graphql(query)["project"]["run"]["config"])

    there.upsert("described", "r", config=json.dumps({key: found | {"desc": None} for key, found in config.items()}))
    done, found = verify("local/described")
    assert done.code == 0 and told(found) == set(), found
    changed = {"lr": {"value": 0.1, "desc": "rate"}, "deep": {"value": {}}, "said": {"value": 0}}
    there.upsert("described", "r", config=json.dumps(config | changed))
    done, found = verify("local/described")
    pointers = ("/lr/desc", "/deep/value/desc", "/said/value")
    assert done.code == 1 and told(found) == {("r", "config", pointer) for pointer in pointers}, found
