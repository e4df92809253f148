"""`mirror sync` against a real server behind a proxy that fails in every way: what can be had comes, what cannot is
said and set apart, nothing is called deleted that is there, and once the faults stop everything is as if there had
been none. The environment variable MIRROR_FAULT_SEED lets other faults happen: a number, or `random`.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from chance import seed
from contents import Content, content, same
from faults import FAULTS, PASSING, Faulty, hurry, is_query
from liar import Action, Answer, Request
from serving import Server, client, serving
from syncing import Copy, log_run, logged, operation_of, sampled

pytestmark = pytest.mark.slow
SEED = seed("MIRROR_FAULT_SEED")
EXPORTED = 6_000
SMALL = 24
SDK = """
import sys, wandb
settings = wandb.Settings(x_disable_meta=False, x_stats_sampling_interval=0.1)
with wandb.init(project="p", id="maker", config={"lr": 0.1, "deep": {"a": [1, None]}}, settings=settings) as run:
    for i in range(40):
        run.log({"loss": 1 / (i + 1), "h": wandb.Histogram([1, 2, i])})
        print("line", i)
    a = wandb.Artifact("net", "model", metadata={"x": 1})
    for i in range(30):
        with a.new_file(f"part/{i}.txt") as f:
            f.write("x" * i)
    run.log_artifact(a, aliases=["best"]).wait()
with wandb.init(project="p", id="user", settings=wandb.Settings(console="off")) as run:
    run.use_artifact("net:best")
    run.log({"x": 1})
print("null")
"""
FILES = """mutation($r: String!, $f: [String!]!) { createRunFiles(input: {entityName: "local", projectName: "p",
    runName: $r, files: $f}) { files { name uploadUrl } } }"""
SWEEP = "mutation U($i: UpsertSweepInput!) { upsertSweep(input: $i) { sweep { id name } } }"
REPORT = "mutation U($i: UpsertViewInput!) { upsertView(input: $i) { view { id } } }"
EXPORT = """query Q($r: String!) { project(name: "p", entityName: "local") { run(name: $r) {
    parquetHistory(liveKeys: ["_step"]) { parquetUrls } } } }"""
ARGS = ("local/p", "--files", "*.bin")

IMPATIENT = {"WANDB_HTTP_TIMEOUT": "2"}
"""For syncs among faults: an answer that comes too late is one of them."""

RATES = {"too slow": 0.05, "muddled": 1.0, "empty page first": 1.0}
"""How many requests fail, where it is not three of ten."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A project with everything in it, and one beside it that has runs of the same names and other content."""
    with serving(tmp_path_factory.mktemp("served") / "mirror", "--history-exports", "now") as server:
        for i in range(2):
            log_run(server, "p", f"long{i}", exportable(EXPORTED + i), system=sampled(300))
        for i in range(SMALL):
            config = json.dumps({"n": {"value": i}})
            log_run(server, "p", f"r{i:02}", logged(i * 7), system=sampled(i % 4), config=config, summary={"n": i})
            log_run(server, "other", f"r{i:02}", logged(i * 7, other=True), config=config)
        for i in range(2):
            log_run(server, "other", f"long{i}", logged(200))
        client(server, SDK)
        for i in range(3):
            config = {"name": f"s{i}", "method": "grid", "parameters": {"a": {"values": [1]}}}
            server.graphql(SWEEP, i={"entityName": "local", "projectName": "p", "config": json.dumps(config)})
            report = {"entityName": "local", "projectName": "p", "type": "runs", "spec": f'{{"n": {i}}}'}
            server.graphql(REPORT, i=report | {"displayName": f"report {i}"})
        for i, run in enumerate(("r03", "r04")):
            names = [f"dir/{n}.bin" for n in range(60)]
            for file in server.graphql(FILES, r=run, f=names)["createRunFiles"]["files"]:
                data = random.Random(file["name"] + run).randbytes(50 + 1000 * i)
                assert requests.put(file["uploadUrl"], data=data, timeout=300).ok
        end = time.monotonic() + 300
        while not all(exports(server, f"long{i}") for i in range(2)):
            assert time.monotonic() < end, "no export"
            time.sleep(0.1)
        yield server


def exportable(n: int) -> list[dict[str, Any]]:
    """Rows that an export and the rows themselves give in the same way: no float in them is integral."""
    return [
        {"_step": i, "_timestamp": 1.7e9 + i / 8 + 0.01, "loss": 1 / (i + 2), "text": f"t{i % 9}"} for i in range(n)
    ]


def exports(server: Server, run: str) -> list[str]:
    found: list[str] = server.graphql(EXPORT, r=run)["project"]["run"]["parquetHistory"]["parquetUrls"]
    return found


@pytest.fixture(scope="module")
def proxy(server: Server) -> Iterator[Faulty]:
    proxy = Faulty(server, other="other")
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture(scope="module")
def clean(proxy: Faulty, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """What a sync without any fault leaves."""
    copy = Copy(tmp_path_factory.mktemp("clean") / "m", proxy.url, server.key)
    copy.sync(*ARGS)
    found = content(copy.root)
    sizes = {name: len(rows) for name, rows in found.items()}
    assert sizes["runs"] == SMALL + 4 and sizes["history"] > 2 * 4 * EXPORTED and sizes["system_metrics"] > 600
    assert sizes["artifacts"] >= 1 and sizes["artifact_entries"] >= 30 and sizes["artifact_uses"] == 1
    assert (sizes["sweeps"], sizes["reports"], sizes["quarantine"]) == (3, 3, 0) and sizes["logs"] >= 40
    roads = dict(copy.sql("select run_id, history_road from runs"))
    assert (roads["long0"], roads["r05"]) == ("export", "rows")
    assert copy.sql("select count(*) from files where name like '%.bin' and sha256 is not null") == [(120,)]
    return found


@pytest.fixture
def copy(proxy: Faulty, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    hurry(monkeypatch)
    proxy.reset()
    yield Copy(tmp_path / "copy", proxy.url, server.key)
    proxy.calm()


def test_passing_faults_are_outlasted(proxy: Faulty, copy: Copy, clean: Content) -> None:
    """Whatever asking again helps against costs time, and nothing else."""
    proxy.go_wrong(SEED, 0.15, *PASSING)
    copy.sync(*ARGS)
    assert len(proxy.injected) >= 4, proxy.injected
    same(content(copy.root), clean)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in PASSING])
def test_after_faults_of_one_kind_everything_is_there(proxy: Faulty, copy: Copy, clean: Content, fault: str) -> None:
    """Many requests fail so in one sync; the next one has what that could not get."""
    proxy.go_wrong(1, RATES.get(fault, 0.3), fault)
    copy.env = IMPATIENT
    copy.sync(*ARGS, ok=None)
    assert proxy.injected[fault]
    proxy.calm()
    copy.env = {}
    copy.sync(*ARGS)
    same(content(copy.root), clean)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_after_a_mixture_of_all_faults_everything_is_there(
    proxy: Faulty, copy: Copy, clean: Content, rate: float
) -> None:
    proxy.go_wrong(SEED, rate, *FAULTS)
    copy.env = IMPATIENT
    copy.sync(*ARGS, ok=None)
    assert proxy.injected
    proxy.calm()
    copy.env = {}
    copy.sync(*ARGS)
    same(content(copy.root), clean)


def test_a_poisoned_run_is_set_apart_whatever_else_fails(proxy: Faulty, copy: Copy, clean: Content) -> None:

    def poison(request: Request) -> Action | None:
        asked = is_query(request) and "r07" in (request.json.get("variables") or {}).values()
        return Answer(500, {"error": "cannot"}) if asked else None

    proxy.before = poison
    proxy.go_wrong(SEED, 0.05, *PASSING)
    done = copy.sync(*ARGS, ok=False)
    assert "local/p/r07: documents" in done.stderr
    assert copy.sql("select distinct run_id, stage from quarantine") == [("r07", "documents")]
    found = content(copy.root)
    for view in ("runs", "history", "system_metrics", "config", "summary", "files", "logs"):
        place = 3
        assert repr([row for row in clean[view] if row[place] != "r07"]) == repr(found[view]), view
    for view in ("artifacts", "artifact_entries", "artifact_uses", "sweeps", "reports"):
        assert repr(found[view]) == repr(clean[view]), view
    proxy.reset()
    proxy.calm()
    copy.sync(*ARGS)
    same(content(copy.root), clean)


def test_a_mirror_that_is_kept_up_to_date_among_faults_loses_nothing(
    server: Server, proxy: Faulty, copy: Copy, clean: Content
) -> None:
    """Runs go on and are edited while syncs fail; listings are cut in half, with counts to match: no run, sweep,
    report or artifact is ever called deleted, and in the end nothing is missing."""
    for i in range(16):
        log_run(server, "moving", f"r{i:02}", logged(20), system=sampled(3))
    copy.sync("local/moving")
    for n in range(4):
        for i in range(n, 16, 4):
            log_run(server, "moving", f"r{i:02}", logged(10, 20), offset=20, summary={"n": n})
        server.upsert("moving", f"r{n:02}", displayName=f"name {n}", notes=f"notes {n}")
        proxy.go_wrong(SEED + n, 0.3, *FAULTS)
        proxy.after = half if n % 2 else lambda request, body: body
        copy.env = IMPATIENT
        copy.sync("local/moving", ok=None)
        assert copy.sql("select run_id from runs where deleted_at is not null") == []
    proxy.calm()
    copy.env = {}
    for _ in range(2):  # the same lie, consistently
        proxy.after = half
        done = copy.sync("local/moving", ok=None)
    assert "of 16 runs are gone at the source, and are kept as they are" in done.stderr
    proxy.reset()
    copy.sync("local/moving", "--full")
    fresh = Copy(copy.root.parent / "fresh", proxy.url, server.key)
    fresh.sync("local/moving")
    same(content(copy.root), content(fresh.root))


def test_runs_that_listings_leave_out_are_asked_for_before_they_are_called_deleted(
    server: Server, proxy: Faulty, copy: Copy
) -> None:
    """A listing that loses a run again and again, and does not count it either; and a run that is really gone."""
    for i in range(30):
        log_run(server, "losing", f"r{i:02}", logged(3))
    copy.sync("local/losing")

    def lose(request: Request, body: Any) -> Any:
        if operation_of(request) == "Runs":
            found = body["data"]["project"]
            found["runs"]["edges"] = [e for e in found["runs"]["edges"] if e["node"]["name"] not in ("r03", "r04")]
            found["runCount"] = len(found["runs"]["edges"])
        if operation_of(request) == "RunsByName":
            names = {v: k.replace("n", "r") for k, v in request.json["variables"].items()}
            body["data"]["project"][names["r04"]] = None
        return body

    proxy.after = lose
    for _ in range(2):
        done = copy.sync("local/losing", ok=None)
    assert copy.sql("select run_id from runs where project = 'losing' and deleted_at is not null") == [("r04",)]
    assert "1 runs were not listed, and are kept as they are" in done.stderr
    proxy.reset()
    copy.sync("local/losing")
    assert copy.sql("select run_id from runs where project = 'losing' and deleted_at is not null") == []


def half(request: Request, body: Any) -> Any:
    """A listing that is suddenly half as long, and says so itself."""
    if operation_of(request) == "Runs" and (project := body["data"].get("project")):
        runs = project["runs"]
        runs["edges"] = runs["edges"][::2]
        runs["pageInfo"]["hasNextPage"] = False
        project["runCount"] = len(runs["edges"])
    return body


def test_one_refusal_stops_everybody(proxy: Faulty, copy: Copy) -> None:
    """After a 429 nothing is asked until the time it names, by no worker and for no file; requests that were under
    way are refused as well, each once."""
    pause, lock = 1.6, threading.Lock()
    refusals: list[list[float]] = []
    asked = 0

    def refuse(request: Request) -> Action | None:
        nonlocal asked
        now = time.monotonic()
        with lock:
            asked += 1
            if refusals and now < refusals[-1][0] + pause:
                refusals[-1].append(now)
                return Answer(429, "Rate limit exceeded", {"Retry-After": f"{refusals[-1][0] + pause - now:.3f}"})
            if asked % 25 == 0:
                refusals.append([now])
                return Answer(429, "Rate limit exceeded", {"Retry-After": str(pause)})
        return None

    proxy.before = refuse
    copy.sync(*ARGS, "--workers", "6")
    assert len(refusals) >= 4
    late = [at - first for first, *more in refusals for at in more if at - first > pause / 2]
    assert not late, late
    assert sum(map(len, refusals)) <= (6 + 12) * len(refusals)
