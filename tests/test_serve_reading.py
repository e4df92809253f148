"""Reading from `mirror serve` with the real `wandb.Api()`: unchanged scripts, and what they must see."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
from serving import Server, client, serving

from mirror.query.samples import thinned
from mirror.records import FileEntry, Run, RunKey
from mirror.store import Reader, Writer

N = 30


def history(n: int, scale: float = 1.0) -> list[str]:
    return [json.dumps({"_step": i, "_timestamp": 1.7e9 + i, "_runtime": i, "loss": scale / (i + 1)}) for i in range(n)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """30 runs of 30 rows and one of 3,000 whose steps have a gap; one of them still running."""
    with serving(tmp_path_factory.mktemp("reading") / "mirror") as found:
        for n in range(N):
            config = {"lr": {"value": n / 10}, "arch": {"value": "cnn" if n % 3 else "mlp"}}
            found.upsert(
                "p", f"r{n:02}", config=json.dumps(config), displayName=f"name {n}", tags=["all", f"t{n % 2}"],
                groupName=f"g{n % 4}", jobType="train",
            )  # fmt: skip
            summary = {"loss": 1 / (n + 1), "acc/val": n}
            files = {
                "wandb-history.jsonl": {"offset": 0, "content": history(30, n + 1)},
                "wandb-summary.json": {"offset": 0, "content": [json.dumps(summary)]},
            }
            end = {} if n == 7 else {"complete": True, "exitcode": int(n % 5 == 4)}
            assert found.stream("p", f"r{n:02}", files=files, **end).ok
        found.upsert("big", "b")
        steps = [*range(1500), *range(61_010, 62_510)]
        rows = [json.dumps({"_step": s, "a": s / 7, "b": s % 3} | ({"c": 1} if s % 10 == 0 else {})) for s in steps]
        rows += [json.dumps({"_step": 62_509, "again": True})]
        assert found.stream("big", "b", files={"wandb-history.jsonl": {"offset": 0, "content": rows}}).ok
        assert found.stream("big", "b", complete=True, exitcode=0).ok
        drained(found)
        yield found


def drained(server: Server) -> None:
    """Wait until the runs that ended are in segments."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        with Reader(server.root) as reader:
            query = "select count(*) from raw.runs_live where state = 'running'"
            (running,) = reader.connect().execute(query).fetchone() or (0,)
        live = [p for p in (server.root / "live").iterdir() if p.name.isdigit()]
        if len(live) == running:
            return
        time.sleep(0.1)
    raise AssertionError("runs stay live")


LISTS = """
import json, wandb
api = wandb.Api()
out = {"viewer": api.viewer.username, "entity": api.default_entity,
       "projects": [p.name for p in api.projects("local")]}
runs = api.runs("local/p", per_page=7)
out["len"] = len(runs)
out["default"] = [r.id for r in runs]
for order in ("-created_at", "+summary_metrics.loss", "-config.lr"):
    out[order] = [r.id for r in api.runs("local/p", order=order, per_page=11)]
def ids(**filters):
    found = api.runs("local/p", filters=filters, per_page=10)
    return [len(found), [r.id for r in found]]
out["config"] = ids(**{"config.arch": "mlp"})
out["state"] = ids(state="failed")
out["running"] = ids(state={"$in": ["running"]})
out["and"] = ids(**{"$and": [{"config.lr": {"$gte": 1}}, {"config.lr": {"$lt": 1.5}}]})
out["or"] = ids(**{"$or": [{"display_name": "name 3"}, {"summary_metrics.acc/val": 4}]})
out["regex"] = ids(display_name={"$regex": "^name 2.$"})
out["tags"] = ids(tags="t1", group="g3")
one = api.run("local/p/r03")
out["one"] = [one.id, one.name, one.state, one.config, one.summary._json_dict, one.tags, one.group, one.job_type,
              one.entity, one.project, one.user.username, one.lastHistoryStep, one.url]
full = api.runs("local/p", lazy=False, per_page=50)
out["lazy"] = {r.id: [r.config, r.summary["loss"]] for r in full}
print(json.dumps(out))
"""


def test_listings_orders_pages_and_filters(server: Server) -> None:
    seen = client(server, LISTS)
    ids = [f"r{n:02}" for n in range(N)]
    assert (seen["viewer"], seen["entity"], seen["projects"]) == ("local", "local", ["big", "p"])
    assert (seen["len"], seen["default"], seen["-created_at"]) == (N, ids, ids[::-1])
    assert seen["+summary_metrics.loss"] == seen["-config.lr"] == ids[::-1]
    assert seen["config"] == [10, ids[::3]]
    assert seen["state"] == [6, ids[4::5]]
    assert seen["running"] == [1, ["r07"]]
    assert seen["and"] == [5, ids[10:15]]
    assert seen["or"] == [2, ["r03", "r04"]]
    assert seen["regex"] == [10, ids[20:30]]
    assert seen["tags"] == [7, ids[3::4]]
    assert seen["one"][:3] == ["r03", "name 3", "finished"]
    assert seen["one"][3:5] == [{"lr": 0.3, "arch": "mlp"}, {"loss": 0.25, "acc/val": 3}]
    assert seen["one"][5:8] == [["all", "t1"], "g3", "train"]
    assert seen["one"][8:12] == ["local", "p", "local", 29]
    configs = [{"lr": n / 10, "arch": "cnn" if n % 3 else "mlp"} for n in range(N)]
    assert seen["lazy"] == {f"r{n:02}": [configs[n], 1 / (n + 1)] for n in range(N)}


ROWS = """
import json, wandb
api = wandb.Api()
run = api.run("local/big/b")
out = {"last": run.lastHistoryStep, "lines": run._attrs.get("historyLineCount")}
out["scan"] = [r["_step"] for r in run.scan_history(page_size=1000)]
out["keys"] = [[r["_step"], r["c"]] for r in run.scan_history(keys=["_step", "c"])]
out["range"] = [r["_step"] for r in run.scan_history(min_step=1490, max_step=61015)]
out["sample"] = [r["_step"] for r in run.history(samples=50, pandas=False)]
out["key sample"] = [[r["_step"], r["c"]] for r in run.history(samples=20, keys=["c"], pandas=False)]
out["exact"] = next(r["a"] for r in run.scan_history() if r["_step"] == 61234)
live = api.run("local/p/r07")
out["live"] = [r["loss"] for r in live.scan_history()]
print(json.dumps(out))
"""


def test_rows_by_scan_range_and_sample(server: Server) -> None:
    seen = client(server, ROWS)
    steps = [*range(1500), *range(61_010, 62_510), 62_509]
    assert (seen["last"], seen["lines"]) == (62_509, 3001)
    assert seen["scan"] == steps
    assert seen["keys"] == [[s, 1] for s in steps[:-1] if s % 10 == 0]
    assert seen["range"] == [*range(1490, 1500), *range(61_010, 61_015)]
    assert seen["sample"] == thinned(steps, 50) and seen["sample"][0] == 0 and seen["sample"][-1] == 62_509
    assert seen["key sample"] == [[s, 1] for s in thinned([s for s in steps[:-1] if s % 10 == 0], 20)]
    assert seen["exact"] == 61234 / 7
    assert seen["live"] == [8 / (i + 1) for i in range(30)]


def test_range_bounds_and_samples_on_the_wire(server: Server) -> None:
    query = """query($a: Int64, $b: Int64, $n: Int) { project(name: "big", entityName: "local") { run(name: "b") {
        history(minStep: $a, maxStep: $b, samples: $n) } } }"""

    def steps(a: int | None, b: int | None, n: int) -> list[int]:
        found = server.graphql(query, a=a, b=b, n=n)["project"]["run"]["history"]
        return [json.loads(text)["_step"] for text in found]

    assert steps(10, 20, 10) == list(range(10, 20))
    assert steps(10, 20, 100) == list(range(10, 20))
    assert steps(10, 20, 4) == [10, 13, 16, 19]
    assert steps(1500, 61_010, 10**6) == []
    assert steps(62_509, 10**18, 10) == [62_509, 62_509]
    assert steps(-5, 2, 10) == [0, 1]
    assert len(steps(None, None, 10**6)) == 3001
    assert steps(0, 100, 0) == []


def test_many_runs_in_one_request(server: Server) -> None:
    fields = "historyLineCount history(minStep: 5, maxStep: 9, samples: 99) config"
    aliases = " ".join(f'a{n}: run(name: "r{n:02}") {{ {fields} }}' for n in range(N))
    query = f'{{ project(name: "p", entityName: "local") {{ {aliases} none: run(name: "x") {{ id }} }} }}'
    project = server.graphql(query)["project"]
    assert project.pop("none") is None
    for n in range(N):
        run = project[f"a{n}"]
        assert run["historyLineCount"] == 30
        assert [json.loads(t)["loss"] for t in run["history"]] == [(n + 1) / (i + 1) for i in range(5, 9)]
        assert json.loads(run["config"])["lr"]["value"] == n / 10
    query = """{ project(name: "p", entityName: "local") {
        runs(first: 100) { edges { node { name history(samples: 3) } } } } }"""
    for edge in server.graphql(query)["project"]["runs"]["edges"]:
        assert [json.loads(t)["_step"] for t in edge["node"]["history"]] == [0, 14, 29], edge


def test_pages_neither_lose_nor_repeat_runs_that_change_meanwhile(server: Server) -> None:
    """Ordered by heartbeat, the run that beats moves to the end; a listing that was begun keeps its order."""
    query = """query($c: String) { project(name: "p", entityName: "local") {
        runs(first: 6, after: $c, order: "+heartbeat_at") { edges { cursor node { name } }
                                                             pageInfo { endCursor hasNextPage } } } }"""
    names: list[str] = []
    cursor, more = None, True
    while more:
        page = server.graphql(query, c=cursor)["project"]["runs"]
        names += [e["node"]["name"] for e in page["edges"]]
        cursor, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]
        assert page["edges"][-1]["cursor"] == cursor
        assert server.stream("p", "r07", files={}).ok
    assert sorted(names) == [f"r{n:02}" for n in range(N)]


def test_a_page_can_be_continued_after_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path / "mirror") as server:
        for n in range(9):
            server.upsert("p", f"r{n}")
        query = """query($c: String) { project(name: "p", entityName: "local") {
            runs(first: 4, after: $c) { edges { node { name } } pageInfo { endCursor hasNextPage } } } }"""
        first = server.graphql(query)["project"]["runs"]
        server.stop()
        server.start()
        second = server.graphql(query, c=first["pageInfo"]["endCursor"])["project"]["runs"]
        names = [e["node"]["name"] for page in (first, second) for e in page["edges"]]
        assert names == [f"r{n}" for n in range(8)]
        assert second["pageInfo"]["hasNextPage"] is True
        bad = server.post("/graphql", {"query": query, "variables": {"c": "nonsense"}}).json()
        assert "cursor" in bad["errors"][0]["message"]


def test_filters_see_live_runs_of_every_project(tmp_path: Path) -> None:
    query = """query($p: String!, $f: JSONString) { project(name: $p, entityName: "local") {
        runs(filters: $f, order: "-config.n") { edges { node { name } } } } }"""

    def names(server: Server, project: str, filters: str) -> list[str]:
        found = server.graphql(query, p=project, f=filters)["project"]["runs"]["edges"]
        return [edge["node"]["name"] for edge in found]

    root = tmp_path / "mirror"
    with serving(root) as writing, serving(root, "--read-only") as reading:
        for project in ("a", "b"):
            for n in range(4):
                writing.upsert(project, f"{project}{n}", config=json.dumps({"n": {"value": n}}))
            writing.stream(project, f"{project}0", complete=True, exitcode=0)
        for server in (writing, reading):
            assert names(server, "a", '{"config.n": {"$gte": 1}}') == ["a3", "a2", "a1"]
            assert names(server, "b", '{"config.n": {"$lte": 2}}') == ["b2", "b1", "b0"]
            assert names(server, "b", '{"state": "running"}') == ["b3", "b2", "b1"]
        writing.upsert("b", "b1", config=json.dumps({"n": {"value": 9}}))
        for server in (writing, reading):
            assert names(server, "b", '{"config.n": {"$gt": 2}}') == ["b1", "b3"]


def test_edits_of_many_at_once_are_all_kept(server: Server) -> None:
    """Of a run in segments, by id, each touching another attribute: none undoes another."""
    query = 'query { project(name: "edits", entityName: "local") { run(name: "e") { id notes group jobType tags } } }'
    server.upsert("edits", "e")
    assert server.stream("edits", "e", complete=True, exitcode=0).ok
    drained(server)
    run_id = server.graphql(query)["project"]["run"]["id"]
    edit = "mutation($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }"
    changes: list[dict[str, Any]] = [{"notes": "n"}, {"groupName": "g"}, {"jobType": "j"}, {"tags": ["t"]}]
    threads = [Thread(target=server.graphql, args=(edit,), kwargs={"i": {"id": run_id} | c}) for c in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = server.graphql(query)["project"]["run"]
    assert found == {"id": run_id, "notes": "n", "group": "g", "jobType": "j", "tags": ["t"]}


def test_bad_filters_are_errors_that_name_what_is_wrong(server: Server) -> None:
    query = """query($f: JSONString) { project(name: "p", entityName: "local") { runCount(filters: $f) } }"""
    for filters, word in (
        ("{", "JSON"),
        ('{"config.lr": {"$near": 1}}', "$near"),
        ('{"nonsense": 1}', "nonsense"),
        ('{"state": "x\' or 1=1 --"}', None),
    ):
        answer = server.post("/graphql", {"query": query, "variables": {"f": filters}}).json()
        if word is None:
            assert answer["data"]["project"]["runCount"] == 0
        else:
            assert word in answer["errors"][0]["message"], answer


def test_system_metrics_and_console(server: Server) -> None:
    server.upsert("sys", "s")
    samples = [{"_wandb": True, "_timestamp": 1.7e9 + i, "_runtime": i, "system.cpu": i / 2} for i in range(40)]
    events = [json.dumps(sample) for sample in samples]
    lines = [f"line {i}" for i in range(2500)]
    files = {"wandb-events.jsonl": {"offset": 0, "content": events}, "output.log": {"offset": 0, "content": lines}}
    assert server.stream("sys", "s", files=files).ok
    script = """
import json, wandb
run = wandb.Api().run("local/sys/s")
frame = run.history(stream="system", samples=1000, pandas=False)
print(json.dumps([[r["system.cpu"] for r in frame], run.systemMetrics["system.cpu"],
                  [l.content for l in run.console_logs()], [l.content for l in run.console_logs(last=3)]]))
"""
    want = [[i / 2 for i in range(40)], 19.5, lines, lines[-3:]]
    assert client(server, script) == want
    assert server.stream("sys", "s", complete=True, exitcode=0).ok
    drained(server)
    assert client(server, script) == want


FILES = """
import json, os, wandb
run = wandb.init(project="files", id="f")
os.makedirs("sub", exist_ok=True)
for n in range(60):
    open(f"sub/f{n:02}.txt", "w").write("x" * n)
open("ünï cödé %41 #1.txt", "w").write("odd")
run.save("sub/*.txt", policy="now")
run.save("ünï cödé %41 #1.txt", policy="now")
run.finish()
run = wandb.Api().run("local/files/f")
out = {"names": [f.name for f in run.files(per_page=7)], "len": len(run.files()),
       "some": [f.name for f in run.files(["sub/f03.txt", "nothing.txt"])],
       "like": [f.name for f in run.files(pattern="sub/f1%")], "meta": run.metadata["program"] is not None,
       "size": run.file("sub/f33.txt").size}
out["text"] = run.file("sub/f33.txt").download(root="down", replace=True).read()
out["odd"] = run.file("ünï cödé %41 #1.txt").download(root="down", replace=True).read()
run.file("sub/f00.txt").delete()
out["after"] = [f.name for f in wandb.Api().run("local/files/f").files(["sub/f00.txt", "sub/f01.txt"])]
print(json.dumps(out))
"""


def test_files_are_listed_found_downloaded_and_deleted(server: Server) -> None:
    seen = client(server, FILES)
    subs = [f"sub/f{n:02}.txt" for n in range(60)]
    assert [n for n in seen["names"] if n.startswith("sub/")] == subs
    assert len(seen["names"]) == len(set(seen["names"])) == seen["len"] >= 61
    assert seen["some"] == ["sub/f03.txt"] and seen["like"] == subs[10:20]
    assert (seen["size"], seen["text"], seen["odd"], seen["meta"]) == (33, "x" * 33, "odd", True)
    assert seen["after"] == ["sub/f01.txt"]


@pytest.fixture
def two_sources(tmp_path: Path) -> Iterator[Server]:
    """A mirror of two instances which both have a run `team/proj/same`."""
    with Writer(tmp_path / "mirror") as writer:
        for source, state in (("api.wandb.ai", "finished"), ("wandb.corp.example", "failed")):
            for name in ("same", source):
                key = RunKey(source, f"UnVu{name}", "team", "proj", name)
                config, metadata = '{"a": {"value": 1}}', '{"program": "t.py"}'
                writer.put_run(Run(key=key, name=name, state=state, config=config, metadata=metadata))
                writer.append(key, "history", [json.dumps({"_step": i, "x": float(i)}) for i in range(5)])
                writer.put_files(key, [FileEntry("model.h5", 10, "abc=", url="https://elsewhere/model.h5")])
    with serving(tmp_path / "mirror") as server:
        yield server


def test_mirrored_runs_of_all_sources_are_served(two_sources: Server) -> None:
    server = two_sources
    query = """{ project(name: "proj", entityName: "team") {
        runCount runs { edges { node { id name state readOnly } } } } }"""
    found = server.graphql(query)["project"]
    nodes = [e["node"] for e in found["runs"]["edges"]]
    assert found["runCount"] == 4 and len({n["id"] for n in nodes}) == 4 and all(n["readOnly"] for n in nodes)
    one = """{ project(name: "proj", entityName: "team") { run(name: "api.wandb.ai") {
        state historyKeys historyLineCount history(minStep: 1, maxStep: 3, samples: 9) } } }"""
    run = server.graphql(one)["project"]["run"]
    assert [json.loads(t) for t in run["history"]] == [{"_step": 1, "x": 1.0}, {"_step": 2, "x": 2.0}]
    assert run["historyKeys"]["lastStep"] == 4  # without it the SDK would read no row
    assert run["historyKeys"]["keys"]["x"]["typeCounts"] == [{"type": "number", "count": 5}]
    body = {"query": '{ project(name: "proj", entityName: "team") { run(name: "same") { id } } }'}
    error = server.post("/graphql", body).json()["errors"][0]["message"]
    assert "`api.wandb.ai`" in error and "`wandb.corp.example`" in error


def test_mirrored_runs_cannot_be_changed_here(two_sources: Server) -> None:
    server = two_sources
    query = '{ project(name: "proj", entityName: "team") { run(name: "api.wandb.ai") { id } } }'
    run_id = server.graphql(query)["project"]["run"]["id"]
    edit = "mutation($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }"
    named = {"entityName": "team", "modelName": "proj", "name": "api.wandb.ai", "notes": "x"}
    refusals: list[tuple[str, dict[str, Any]]] = [
        (edit, {"i": {"id": run_id, "notes": "x"}}),
        (edit, {"i": named}),
        ("mutation($id: ID!) { deleteRun(input: {id: $id}) { success } }", {"id": run_id}),
    ]
    for mutation, variables in refusals:
        answer = server.post("/graphql", {"query": mutation, "variables": variables}).json()
        assert "api.wandb.ai" in answer["errors"][0]["message"], answer
    assert server.stream("proj", "api.wandb.ai", "team", files={}).status_code == 400
    get = f"{server.url}/files/team/proj/api.wandb.ai"
    metadata = requests.get(f"{get}/wandb-metadata.json", auth=("api", server.key), timeout=300)
    assert metadata.json() == {"program": "t.py"}
    missing = requests.get(f"{get}/model.h5", auth=("api", server.key), timeout=300)
    assert missing.status_code == 404 and "bytes" in missing.json()["errors"][0]["message"]
