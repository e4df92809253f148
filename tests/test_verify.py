"""`mirror verify`: damage is found and named, in the mirror's own files and between the mirror and a real server.

One server holds the project `p`, and `q`: a copy of it whose runs differ in one thing each. The mirror holds `p`.
What must be found is written down beside the change, by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from artifact_wire import Logging
from commanding import Done, call
from damaging import rewrite, segment
from liar import Answer, Request
from serving import Server, serving
from syncing import Copy, log_run, logged, operation_of, proxied, sampled

import mirror

CONFIG = {"lr": {"value": 0.1}, "opt": {"value": {"name": "adam", "betas": [0.9, 0.999]}}, "seed": {"value": 2**53 + 1}}
SUMMARY: dict[str, Any] = {"loss": 0.25, "best": math.nan, "deep": {"a": {"b": 1}}, "big": 2**70}
HOSTILE = [
    '{"_step":0,"f":1.0,"z":-0.0,"iz":-0,"tiny":5e-324,"a":{"b":1},"a.b":2,"":3}',
    '{"_step":1,"nan":NaN,"text":"NaN","l":[NaN,"NaN",18446744073709551616]}',
    '{"_step":1,"same":"step","again":true}',
    '{"_step":1,"s":"\\ud800 alone","\\udfff":1,"t":{"_type":"histogram","values":[1],"bins":[0,1]}}',
    '{"_step":5}',
    '{"_step":9007199254740993,"x":null,"\\u001b[31m":"\\u202e"}',
    '{"noStep":1}',
    "{}",
]
FILES = {"a.txt": b"the bytes", "dir/\u00e4 b.bin": bytes(range(256)) * 40}
CREATE = """mutation($e: String!, $p: String!, $r: String!, $f: [String!]!) {
    createRunFiles(input: {entityName: $e, projectName: $p, runName: $r, files: $f}) { files { uploadUrl } } }"""


def upload(server: Server, project: str, run_id: str, name: str, data: bytes) -> None:
    found = server.graphql(CREATE, e="local", p=project, r=run_id, f=[name])["createRunFiles"]
    assert requests.put(found["files"][0]["uploadUrl"], data=data, timeout=180).ok


def log(server: Server, project: str, name: str, rows: list[Any], **more: Any) -> None:
    given: dict[str, Any] = {"config": json.dumps(CONFIG), "summary": SUMMARY, "displayName": name, "tags": ["t", "ü"]}
    given |= {"system": sampled(12), "notes": "n"} | more
    console = given.pop("console", ["line one", "line \x1b[31mtwo"])
    log_run(server, project, name, rows, finish=False, **given)
    assert server.stream(project, name, files={"output.log": {"offset": 0, "content": console}}).ok
    assert server.stream(project, name, complete=True, exitcode=0).ok
    for file, data in FILES.items():
        upload(server, project, name, file, data)


def repeated() -> list[dict[str, Any]]:
    return [{"_step": step, "x": 10 * step + i} for step in range(4) for i in range(5)]


def swapped(rows: list[Any], i: int) -> list[Any]:
    return [*rows[:i], rows[i + 1], rows[i], *rows[i + 2 :]]


def changed(n: int, **values: Any) -> list[dict[str, Any]]:
    rows = logged(300)
    rows[n] |= values
    return rows


def lacking(rows: list[Any], i: int) -> list[Any]:
    return rows[:i] + rows[i + 1 :]


SAME: dict[str, list[Any]] = {
    "value": logged(300), "lost": logged(300), "lost2": repeated(), "swapped": repeated(), "key": logged(300),
    "type": logged(300), "config": logged(3), "summary": logged(3), "system": logged(3), "console": logged(3),
    "file": logged(3), "name": logged(3), "hostile": HOSTILE, "norows": [], "respelled": [{"_step": 0, "x": 2.0}],
    "gone": logged(3),
}  # fmt: skip
OTHER: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "value": (changed(123, loss=0.5), {}),
    "lost": (lacking(logged(300), 200), {}),
    "lost2": (lacking(repeated(), 7), {}),
    "swapped": (swapped(repeated(), 11), {}),
    "key": (changed(299, extra="new"), {}),
    "type": (changed(0, epoch="0"), {}),
    "config": (logged(3), {"config": json.dumps(CONFIG | {"opt": {"value": {"name": "adam", "betas": [0.9, 0.99]}}})}),
    "summary": (logged(3), {"summary": SUMMARY | {"deep": {"a": {"b": 2}}, "big": 2**70 + 1}}),
    "system": (logged(3), {"system": [*sampled(11), sampled(1, 11)[0] | {"system.cpu": 0.0}]}),
    "console": (logged(3), {"console": ["line one", "line 2"]}),
    "name": (logged(3), {"displayName": "other", "tags": ["t"]}),
    "hostile": (HOSTILE, {}),
    "norows": ([], {}),
    "respelled": ([{"_step": 0, "x": 2}], {}),
    "file": (logged(3), {}),
}
FOUND = {
    ("value", "history", 123, 123, "loss", "0.008064516129032258", "0.5"),
    ("lost", "history", 200, 200, "", "{row}", "(nothing)"),
    ("lost2", "history", 7, 1, "", "{row}", "(nothing)"),
    ("swapped", "history", 11, 2, "(order)", "rows 11 and 12", "rows 12 and 11"),
    ("key", "history", 299, 299, "extra", "(nothing)", '"new"'),
    ("type", "history", 0, 0, "epoch", "0", '"0"'),
    ("config", "config", None, None, "/opt/value/betas", "[0.9,0.999]", "[0.9,0.99]"),
    ("summary", "summary", None, None, "/deep/a/b", "1", "2"),
    ("summary", "summary", None, None, "/big", str(2**70), str(2**70 + 1)),
    ("system", "system metrics", 11, None, "system.cpu", "21.5", "0.0"),
    ("console", "console", 1, None, "", '[null, null, "line \\u001b[31mtwo"]', '[null, null, "line 2"]'),
    ("name", "attributes", None, None, "name", '"name"', '"other"'),
    ("name", "attributes", None, None, "tags", '["t", "ü"]', '["t"]'),
    ("gone", "run", None, None, "local/q/gone", "the run", "(nothing)"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("verify") / "served") as found:
        for name, rows in SAME.items():
            log(found, "p", name, rows)
        for name, (rows, more) in OTHER.items():
            log(found, "q", name, rows, **{"displayName": name} | more)
        upload(found, "q", "file", "a.txt", b"the byteS")
        for project in ("p", "q"):
            where = {"entityName": "local", "projectName": project}
            for n in range(2):
                made = Logging(found, "data", {"x.bin": b"%d" % n, "y": b"same"}, **where, metadata='{"n": 1.5}')
                made.project = where
                made.all()
        made = Logging(found, "data", {"x.bin": b"more"}, entityName="local", projectName="p")
        made.project = {"entityName": "local", "projectName": "p"}
        made.all()
        yield found


@pytest.fixture(scope="module")
def copy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    copy = Copy(tmp_path_factory.mktemp("copy") / "m", server.url, server.key)
    copy.sync("local/p", "--files", "*")
    return copy


@pytest.fixture
def verify(server: Server, copy: Copy, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WANDB_API_KEY", server.key)

    def run(*args: str, root: Path = copy.root) -> tuple[Done, dict[str, Any]]:
        done = call("verify", *args, "--format", "json", root=root)
        assert "Traceback" not in done.err, done.err
        return done, json.loads(done.out) if done.out else {}

    return run


def listed(found: dict[str, Any]) -> set[tuple[Any, ...]]:
    """What was found, with whole rows cut down to the word."""
    rows = set()
    for one in found["listed"]:
        here = "{row}" if one["stream"] == "history" and one["here"].startswith("{") else one["here"]
        rows.add((one["where"].split("/")[-1], *(one[n] for n in ("stream", "row", "step", "key")), here, one["there"]))
    return rows


# -- against a server ---------------------------------------------------------------------------------------------


def test_an_untouched_copy_has_no_difference(server: Server, verify: Any) -> None:
    done, found = verify("--against", server.url)
    assert done.code == 0, found
    compared = found["against"]["compared"]
    assert found["against"]["not_compared"] == {} and found["against"]["respelled"] == 0
    assert compared["runs"] == len(SAME) and compared["artifacts"] == 3 and compared["artifact entries"] == 5
    assert compared["rows"] == sum(map(len, SAME.values())) + 12 * len(SAME)
    assert compared["files"] >= 2 * len(SAME) and compared["console lines"] == 2 * len(SAME)


def test_every_change_on_the_other_side_is_found_and_named(server: Server, verify: Any) -> None:
    done, found = verify("--against", server.url, "--remap", "local/p=local/q")
    rows = listed(found["against"])
    files = {row for row in rows if row[1] == "files"}
    artifacts = {row for row in rows if row[1].startswith("artifact")}
    assert rows - files - artifacts == FOUND
    assert [(row[0], row[4]) for row in files] == [("file", "a.txt")]
    assert artifacts == {("data:v2", "artifacts", None, None, "", "the version", "(nothing)")} | {
        ("data:v1", "artifacts", None, None, "aliases", "[]", '["latest"]')
    }
    assert done.code == 1 and found["against"]["respelled"] == 1
    assert found["against"]["differences"] == len(FOUND) + 3


def test_differences_are_bounded_and_counted(server: Server, verify: Any) -> None:
    _, found = verify("--against", server.url, "--remap", "local/p=local/q", "--listed", "3")
    assert len(found["against"]["listed"]) == 3 and found["against"]["differences"] == len(FOUND) + 3


def test_one_run_is_compared_alone(server: Server, verify: Any) -> None:
    _, found = verify("local/p/value", "--against", server.url, "--remap", "local/p=local/q")
    assert listed(found["against"]) == {row for row in FOUND if row[0] == "value"}
    assert found["against"]["compared"]["runs"] == 1


def test_what_is_said_to_people(server: Server, copy: Copy, verify: Any) -> None:
    done = call("verify", "--against", server.url, "--remap", "local/p=local/q", root=copy.root)
    assert done.code == 1 and f"{len(FOUND) + 3} differences in" in done.out
    assert "\x1b" not in done.out and "1 values are equal and spelled in another way" in done.out


def test_edits_at_the_source_are_found(server: Server, copy: Copy, verify: Any) -> None:
    """A project of its own, changed after the sync: a config leaf, a file's byte, a run less, a run more."""
    for name in ("one", "two"):
        log(server, "edited", name, logged(5))
    copy.sync("local/edited")
    assert verify("local/edited", "--against", server.url)[0].code == 0
    server.upsert("edited", "one", config=json.dumps(CONFIG | {"lr": {"value": 0.2}}))
    upload(server, "edited", "one", "a.txt", b"the byteS")
    two = server.upsert("edited", "two")["id"]
    server.graphql("mutation($id: ID!) { deleteRun(input: {id: $id}) { clientMutationId } }", id=two)
    log(server, "edited", "three", [])
    _, found = verify("local/edited", "--against", server.url)
    rows = {row[:2] + row[4:] for row in listed(found["against"])}
    files = {row for row in rows if row[1] == "files"}
    assert rows - files == {
        ("one", "config", "/lr/value", "0.1", "0.2"),
        ("two", "run", "", "the run", "(nothing)"),
        ("three", "run", "", "(nothing)", "the run"),
    }
    assert [row[:3] for row in files] == [("one", "files", "a.txt")]


SWEEP = """mutation($id: ID, $c: String!) { upsertSweep(input: {id: $id, entityName: "local", projectName: "items",
    config: $c}) { sweep { id name } } }"""
VIEW = """mutation($s: String!) { upsertView(input: {entityName: "local", projectName: "items", type: "runs",
    name: "v", displayName: "title", spec: $s}) { view { id } } }"""


def test_sweeps_and_reports_are_compared_at_their_source(server: Server, copy: Copy, verify: Any) -> None:
    log_run(server, "items", "one", logged(1))
    config = "method: grid\nparameters:\n  x:\n    values: [1, 2]\n"
    sweep = server.graphql(SWEEP, c=config)["upsertSweep"]["sweep"]
    server.graphql(VIEW, s='{"blocks": [1]}')
    copy.sync("local/items")
    done, found = verify("local/items", "--against", server.url)
    compared = found["against"]["compared"]
    assert (done.code, compared["sweeps"], compared["reports"]) == (0, 1, 1)
    server.graphql(SWEEP, id=sweep["id"], c=config.replace("2", "3"))
    server.graphql(VIEW, s='{"blocks": [2]}')
    server.graphql(SWEEP, c=config)
    _, found = verify("local/items", "--against", server.url)
    said = [(one["stream"], one["key"], one["there"]) for one in found["against"]["listed"]]
    assert sorted(said) == [
        ("reports", "spec", json.dumps('{"blocks": [2]}')),
        ("sweeps", "", "the sweep"),
        ("sweeps", "config", json.dumps(config.replace("2", "3"))),
    ]


def test_runs_that_were_pushed_are_proven(server: Server, copy: Copy, verify: Any) -> None:
    """Repeated steps, rows without any, keys no UTF-8 holds: moved rows are taken for what they say they were."""
    runs = ["local/p/hostile", "local/p/lost2", "local/p/value", "local/p/norows"]
    remap = ["--remap", "local/p=local/sent"]
    pushed = call("push", *runs, "--to", server.url, *remap, root=copy.root)
    assert pushed.code == 0, pushed
    done, found = verify(*runs, "--against", server.url, *remap)
    assert done.code == 0, found["against"]
    moved = found["against"]["compared"]["rows with another step that say so"]
    # All of `repeated` but its first row; of HOSTILE the second and third row of step 1 and the two without a step.
    assert moved == len(repeated()) - 1 + 4


def test_keys_are_those_of_an_import(server: Server, verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "e" * 40)
    monkeypatch.setenv("MIRROR_SRC_API_KEY", server.key)
    monkeypatch.setenv("MIRROR_DST_API_KEY", "f" * 40)
    done, _ = verify("local/p/norows", "--against", server.url)
    assert "API key" not in done.err, done.err
    elsewhere = server.url.replace("127.0.0.1", "localhost")  # no run of the mirror came from a server of that name
    done, _ = verify("local/p/norows", "--against", elsewhere)
    assert done.code == 1 and "does not accept the API key from MIRROR_DST_API_KEY" in done.err


@pytest.fixture(scope="module")
def there(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another server, to which things are sent."""
    with serving(tmp_path_factory.mktemp("there") / "served", key=server.key) as found:
        yield found


RUN = "query R($n: String!) { project(name: $p) { run(name: $n) { id config } } }".replace("($n", "($p: String!, $n")
DELETE = "mutation($id: ID!) { deleteRun(input: {id: $id}) { clientMutationId } }"
CHANGE_SWEEP = """mutation($id: ID, $c: String, $s: String) { upsertSweep(input: {id: $id, config: $c, state: $s}) {
    sweep { id name } } }"""
THERE = """query { project(name: "new") { sweeps { edges { node { id name description config state } } }
    allViews(viewType: "runs") { edges { node { id name spec } } } } }"""


def test_what_was_sent_is_found_under_the_names_the_ledger_tells(
    server: Server, there: Server, copy: Copy, verify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project under another name, a run under another id, a sweep and a report with ids of the destination."""
    monkeypatch.setenv("MIRROR_DST_API_KEY", there.key)
    config = "method: grid\nparameters:\n  x:\n    values: [1, 2]\n"
    log_run(server, "life", "apart", logged(1))
    sweep = server.graphql(SWEEP.replace("items", "life"), c=config)["upsertSweep"]["sweep"]
    for name in ("one", "two"):
        log_run(server, "life", name, logged(3), sweep=sweep["name"], config=json.dumps(CONFIG))
    run_id = server.graphql(RUN, p="life", n="two")["project"]["run"]["id"]
    content = {"blocks": [{"u": f"{server.url}/local/life/runs/two", "selections": {"tree": [run_id]}}]}
    server.graphql(VIEW.replace("items", "life"), s=json.dumps(content))
    copy.sync("local/life")
    push = ["push", "local/life", "--to", there.url, "--remap", "local/life=local/new"]
    assert call(*push, root=copy.root).code == 0
    there.graphql(DELETE, id=there.graphql(RUN, p="new", n="two")["project"]["run"]["id"])
    again = call(*push, "--deleted-suffix", "-2", "--verify", root=copy.root)
    assert again.code == 0 and "no difference" in again.out and "1 runs under another name" in again.out, again

    done, found = verify("--against", there.url)
    compared = found["against"]["compared"]
    assert done.code == 0, found["against"]
    names = ("runs", "runs under another name", "sweeps", "runs in copies of sweeps", "reports", "rows")
    assert [compared[name] for name in names] == [3, 1, 1, 2, 1, 7]
    assert "left out" in done.err
    # A sweep that no run was sent of yet goes, too; verified before that, it is missing.
    server.graphql(SWEEP.replace("items", "life"), c=config)
    copy.sync("local/life")
    done, found = verify("--against", there.url)
    assert [(one["stream"], one["here"]) for one in found["against"]["listed"]] == [("sweeps", "the sweep")]
    assert call(*push, root=copy.root).code == 0 and verify("--against", there.url)[0].code == 0
    # Elsewhere than the ledger says, there is nothing.
    done, found = verify("local/life", "--against", there.url, "--remap", "local/life=local/nowhere")
    assert done.code == 1 and found["against"]["listed"][0]["key"] == "local/nowhere"

    held = there.graphql(THERE)["project"]
    made = next(e["node"] for e in held["sweeps"]["edges"] if e["node"]["description"].endswith(sweep["name"]))
    assert made["name"] != sweep["name"] and made["config"] == config
    there.graphql(CHANGE_SWEEP, id=made["id"], c=config.replace("2", "3"), s="STOPPED")
    there.upsert("new", "one", sweep="")
    spec = json.loads(held["allViews"]["edges"][0]["node"]["spec"])
    assert spec["blocks"][0]["u"] == f"{there.url}/local/new/runs/two-2"
    changed = json.dumps(content).replace("two", "one")
    there.graphql(VIEW.replace("items", "new"), s=changed)
    told = json.loads(there.graphql(RUN, p="new", n="two-2")["project"]["run"]["config"])
    told["mirror_origin"]["value"]["created_at"] = "2001-01-01T00:00:00Z"
    there.upsert("new", "two-2", config=json.dumps(told))
    told = json.loads(there.graphql(RUN, p="new", n="apart")["project"]["run"]["config"])
    there.upsert("new", "apart", config=json.dumps({k: v for k, v in told.items() if k != "mirror_origin"}))
    done, found = verify("--against", there.url)
    said = {(one["where"].split("/", 2)[2], one["stream"], one["key"]) for one in found["against"]["listed"]}
    assert said == {
        (f"sweeps/{sweep['name']}", "sweeps", "config"),
        (f"sweeps/{sweep['name']}", "sweeps", "state"),
        ("one", "attributes", "sweep"),
        ("two", "attributes", "created_at"),
        ("apart", "config", "mirror_origin"),
        ("reports/v", "reports", "spec"),
    }


def state_of(server: Server, project: str, run_id: str) -> str:
    query = "query S($p: String!, $n: String!) { project(name: $p) { run(name: $n) { state } } }"
    return str(server.graphql(query, p=project, n=run_id)["project"]["run"]["state"])


def test_states_that_no_exit_code_says_are_set_where_the_server_takes_them(
    server: Server, copy: Copy, verify: Any
) -> None:
    states = ["killed", "crashed", "preempted", "pending", "running", "failed"]
    for state in states:
        log_run(server, "states", state, logged(2), finish=state == "failed")
        server.upsert("states", state, state=state)
    copy.sync("local/states")
    remap = ["--remap", "local/states=local/states2"]
    pushed = call("push", "local/states", "--to", server.url, *remap, root=copy.root)
    assert pushed.code == 0, pushed
    assert {state: state_of(server, "states2", state) for state in states} == dict(zip(states, states, strict=True))
    said = next(line for line in pushed.out.splitlines() if line.split()[:2] == ["changed", "state"])
    assert said.split()[2] == "1" and "`running`" in said

    def refuses(request: Request) -> Answer | None:
        asks = operation_of(request) == "UpsertBucket" and "state" in request.json["variables"]
        return Answer(400, {"errors": [{"message": "no such state"}]}) if asks else None

    with proxied(server) as proxy:
        proxy.before = refuses
        remap = ["--remap", "local/states=local/states3"]
        pushed = call("push", "local/states", "--to", proxy.url, *remap, root=copy.root)
    assert pushed.code == 0, pushed
    there = {state: state_of(server, "states3", state) for state in states}
    assert there == {"killed": "failed", "crashed": "running", "preempted": "preempted", "pending": "running",
                     "running": "running", "failed": "failed"}  # fmt: skip
    said = next(line for line in pushed.out.splitlines() if line.split()[:2] == ["changed", "state"])
    assert said.split()[2] == "4"


def test_a_pushed_run_that_lost_something_is_found(server: Server, copy: Copy, verify: Any) -> None:
    said = "mirror_origin/step"
    rows = [row | {"_step": i} | ({said: row["_step"]} if i else {}) for i, row in enumerate(repeated())]
    rows[13]["x"] = 99
    del rows[17]
    log(server, "lossy", "lost2", rows, config=json.dumps(CONFIG | {"mirror_origin": {"value": {"path": "p/lost2"}}}))
    _, found = verify("local/p/lost2", "--against", server.url, "--remap", "local/p=local/lossy")
    assert {row for row in listed(found["against"]) if row[1] == "history"} == {
        ("lost2", "history", 13, 13, "x", "23", "99"),
        ("lost2", "history", 17, 17, "", "{row}", "(nothing)"),
    }


def test_points_of_mlflow_are_found_in_the_rows_made_of_them(server: Server, tmp_path: Path, verify: Any) -> None:
    """A row for each point in the mirror, in the order of their times; several at one step, one value changed there."""
    points = [("a", 0, 1.5, 10), ("b", 0, 2.5, 11), ("a", 0, 3.5, 12), ("a", 7, math.nan, 13), ("b", 3, -1.0, 14)]
    points.append(("system/cpu_utilization_percentage", 0, 50.5, 15))  # which goes to a stream of its own
    root = tmp_path / "mlflow"
    with mirror.open(root, write=True) as m:
        key = mirror.RunKey("mlflow:here", "1", "mlflow", "exp", "r1")
        m.put_projects([mirror.Project("mlflow:here", "mlflow", "exp", storage_id="1")])
        m.put_runs([mirror.Run(key, name="n", state="finished", config='{"lr":{"value":"0.1"}}')])
        m.put_history(key, [{"_step": step, "_timestamp": 1.7e9 + at, name: v} for name, step, v, at in points])
        m.put_files(key, [])
    remap = ["--remap", "mlflow/exp=local/fromml"]
    pushed = call("push", "mlflow/exp", "--to", server.url, *remap, root=root)
    assert pushed.code == 0, pushed
    done, found = verify("--against", server.url, *remap, root=root)
    assert done.code == 0 and found["against"]["compared"]["points"] == len(points), found
    rows: list[Any] = [
        {
            "_step": 0,
            "_timestamp": 1.7e9 + 10,
            "a": 1.5,
            "b": 2.5,
            "mirror_origin/times": json.dumps({"b": 1.7e9 + 11}),
        },
        {"_step": 1, "_timestamp": 1.7e9 + 12, "a": 3.75, "mirror_origin/step": 0},
        {"_step": 3, "_timestamp": 1.7e9 + 14, "b": -1.0},
        {"_step": 8, "_timestamp": 1.7e9 + 13.5, "a": math.nan, "mirror_origin/step": 7},
    ]
    log_run(server, "badml", "r1", rows, displayName="n", config='{"mirror_origin":{"value":{"path":"x"}}}')
    _, found = verify("--against", server.url, "--remap", "mlflow/exp=local/badml", root=root)
    said = [(one["step"], one["key"], one["here"], one["there"]) for one in found["against"]["listed"]]
    assert [one for one in said if one[0] is not None] == [
        (0, "a", "3.5 at 1700000012.0", "3.75 at 1700000012.0"),
        (0, "system/cpu_utilization_percentage", "50.5 at 1700000015.0", "(nothing)"),
        (7, "a", "NaN at 1700000013.0", "NaN at 1700000013.5"),
    ]


def test_deletable_says_why_not(server: Server, copy: Copy, verify: Any) -> None:
    log_run(server, "mixed", "good", logged(4))
    log_run(server, "mixed", "running", logged(4), finish=False)
    log_run(server, "mixed", "bytes", logged(4))
    upload(server, "mixed", "bytes", "weights", b"12345")
    log_run(server, "mixed", "differs", logged(4), config=json.dumps(CONFIG))
    copy.sync("local/mixed")
    server.upsert("mixed", "differs", config=json.dumps(CONFIG | {"lr": {"value": 3}}))
    _, found = verify("local/mixed", "--against", server.url, "--deletable")
    said = {
        one["run"].split("/")[-1]: (one["deletable"], one["bytes_held"], one["reasons"]) for one in found["deletable"]
    }
    assert said["good"] == (True, True, [])
    assert said["running"] == (False, True, ["it is running"])
    assert said["bytes"][:2] == (False, False) and "--all-bytes" in said["bytes"][2][0]
    assert said["differs"] == (False, True, ["1 differences were found"])


def test_what_must_not_be_deleted_is_not_called_deletable(server: Server, tmp_path: Path, verify: Any) -> None:
    """Tried with a server that lies, artifacts without bytes, artifacts logged since, a row that comes in between."""
    with proxied(server) as proxy:
        copy = Copy(tmp_path / "m", proxy.url, server.key)
        for name in ("logs", "alone"):
            log_run(server, "fool", name, logged(6), summary={"best": 7})

        def artifact(n: int) -> None:
            where = {"entityName": "local", "projectName": "fool"}
            made = Logging(server, "data", {"x": b"%d" % n, "y": b"same"}, **where, runName="logs")
            made.project = where
            made.all()

        def verdicts(*paths: str, ok: bool = True) -> dict[str, list[str]]:
            done, found = verify(*(paths or ["local/fool"]), "--against", proxy.url, "--deletable", root=copy.root)
            assert (done.code == 0) is ok, (done, found)
            return {one["run"].rsplit("/", 1)[1]: one["reasons"] for one in found["deletable"]}

        artifact(0)
        copy.sync("local/fool")
        assert verdicts() == {
            "logs": ["the bytes of 2 files are not held: `mirror sync local/fool --all-bytes`"],
            "alone": [],
        }
        copy.sync("local/fool", "--all-bytes")
        assert verdicts() == {"logs": [], "alone": []}
        assert verdicts("local/fool/alone") == {"alone": []} and verdicts("local/fool/logs") == {"logs": []}

        def lie(old: str, new: str) -> None:
            proxy.after = lambda request, body: json.loads(json.dumps(body).replace(old, new))

        lie("0.16666666666666666", "0.16666666666666669")
        assert verdicts(ok=False) == {"logs": ["1 differences were found"], "alone": ["1 differences were found"]}
        run_id = server.graphql(RUN, p="fool", n="alone")["project"]["run"]["id"]
        lie(run_id, run_id[:-3] + "AAA")  # the run was deleted and made again
        assert verdicts(ok=False)["alone"] and not verdicts(ok=False)["logs"]
        proxy.reset()

        def late(request: Request) -> None:
            if operation_of(request) == "RunsByName":  # the last question, after all was read
                server.stream("fool", "alone", files={"wandb-history.jsonl": {"offset": 6, "content": ['{"_step":9}']}})
                server.stream("fool", "alone", complete=True, exitcode=0)

        proxy.before = late
        assert verdicts(ok=False) == {"logs": [], "alone": ["it changed at the server while it was compared"]}
        proxy.reset()
        assert verdicts(ok=False) == {"logs": [], "alone": ["1 differences were found"]}
        copy.sync("local/fool", "--all-bytes")
        assert verdicts() == {"logs": [], "alone": []}
        artifact(1)
        assert "it logged local/fool/data:v1, which the mirror does not know" in str(verdicts(ok=False)["logs"])
        copy.sync("local/fool", "--all-bytes")
        blob = next(path for path in (copy.root / "blobs").rglob("*") if path.is_file() and path.read_bytes() == b"1")
        data = blob.read_bytes()
        blob.unlink()
        assert all("the mirror itself is damaged" in reasons[0] for reasons in verdicts(ok=False).values())

        blob.write_bytes(data)
        to_itself = ["local/fool", "--to", server.url, "--remap", "local/fool=local/fooled"]
        assert call("push", *to_itself, root=copy.root).code == 0
        done, found = verify("--against", server.url, "--deletable", root=copy.root)
        assert done.code == 0 and found["against"]["compared"]["runs"] == 2, found
        reason = f"a copy was compared, not the original at {copy.url.removeprefix('http://')}"
        assert [one["reasons"] for one in found["deletable"]] == [[reason]] * 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--deletable"], "add --against"),
        (["--remap", "a/b=c/d"], "add --against"),
        (["--against", "nonsense"], "no http or https URL"),
        (["--against", "http://127.0.0.1:9", "--remap", "a=b"], "is no namespace"),
        (["nobody/nothing"], "holds nothing of"),
    ],
)
def test_wrong_calls(verify: Any, args: list[str], message: str) -> None:
    done, _ = verify(*args)
    assert done.code in (1, 2) and message in done.err, done


def test_a_server_that_serves_the_mirror_itself_proves_nothing(copy: Copy, verify: Any) -> None:
    with serving(copy.root, "--read-only", key="k" * 40) as itself, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", itself.key)
        done, _ = verify("--against", itself.url)
    assert done.code == 2 and "serves this very mirror" in done.err


# -- the mirror itself --------------------------------------------------------------------------------------------


@pytest.fixture
def store(copy: Copy, tmp_path: Path) -> Path:
    """A copy of the mirror that may be damaged."""
    import shutil

    root = tmp_path / "m"
    shutil.copytree(copy.root, root)
    return root


def test_an_untouched_mirror_is_whole(verify: Any, store: Path) -> None:
    done, found = verify(root=store)
    assert done.code == 0 and found["store"]["compared"]["rows"] >= sum(map(len, SAME.values()))
    assert found["store"]["compared"]["blobs"] >= len(FILES)


def test_a_flipped_byte_of_a_segment_is_found(verify: Any, store: Path) -> None:
    path = segment(store, "history")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    done, found = verify(root=store)
    assert done.code == 1 and "`history`" in found["store"]["not_compared"]["(the mirror)"][0]
    assert [one["where"] for one in found["store"]["listed"] if one["stream"] == "segment"] == [
        str(path.relative_to(store))
    ]


def test_a_flipped_byte_of_a_blob_is_found(verify: Any, store: Path) -> None:
    path = max((p for p in (store / "blobs" / "sha256").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    done, found = verify(root=store)
    (one,) = found["store"]["listed"]
    assert done.code == 1 and (one["stream"], one["key"]) == ("blob", path.name)


def test_a_row_that_is_not_there_is_found(verify: Any, store: Path) -> None:
    """The checksums are right: only the counts tell."""
    import pyarrow.compute as pc

    rewrite(store, segment(store, "history", "again"), lambda t: t.filter(pc.not_equal(t["row"], 2)))
    done, found = verify(root=store)
    said = {(one["where"], one["row"]) for one in found["store"]["listed"] if one["stream"] == "history rows"}
    assert done.code == 1 and ("local/p/hostile", 2) in said and ("local/p/value", 2) in said


def test_a_cell_that_cannot_be_read_is_found(verify: Any, store: Path) -> None:
    import pyarrow as pa

    def broken(table: pa.Table) -> pa.Table:
        texts = table["j"].to_pylist()
        keys = table["key"].to_pylist()
        texts = [text[:-1] if key == "same" else text for key, text in zip(keys, texts, strict=True)]
        return table.set_column(
            table.schema.get_field_index("j"), table.schema.field("j"), pa.array(texts, pa.string())
        )

    rewrite(store, segment(store, "history", "same"), broken)
    done, found = verify(root=store)
    (one,) = found["store"]["listed"]
    assert done.code == 1 and (one["where"], one["key"], one["row"]) == ("local/p/hostile", "same", 2)


def test_a_document_that_does_not_fit_its_nodes_is_found(verify: Any, store: Path) -> None:
    import pyarrow.compute as pc

    rewrite(store, segment(store, "config", "/lr", "path"), lambda t: t.filter(pc.not_equal(t["path"], "/lr")))
    done, found = verify(root=store)
    assert done.code == 1 and {(one["stream"], one["key"]) for one in found["store"]["listed"]} == {("config", "nodes")}


def test_a_lost_file_entry_is_found(verify: Any, store: Path) -> None:
    import pyarrow.compute as pc

    for path in (store / "data" / "files").rglob("*.parquet"):
        rewrite(store, path, lambda t: t.filter(pc.not_equal(t["name"], "a.txt")))
    done, found = verify(root=store)
    assert done.code == 1 and {one["stream"] for one in found["store"]["listed"]} == {"files"}
