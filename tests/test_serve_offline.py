"""Runs that were logged offline and uploaded with `wandb sync`, forks and rewinds: what arrives is what was logged."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server, client, serving

RUN = """query R($n: String!) { project(name: "o", entityName: "local") { run(name: $n) {
  state config summaryMetrics history(samples: 100000) historyLineCount eventsLineCount logLineCount
  displayName tags group files(first: 1000) { edges { node { name sizeBytes } } } historyKeys
  logLines(first: 1000) { edges { node { line } } } } } }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("offline") / "mirror") as found:
        yield found


def held(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = server.graphql(RUN, n=name)["project"]["run"]
    return found


def rows(run: dict[str, Any], *keys: str) -> list[Any]:
    found = [json.loads(text) for text in run["history"]]
    return [tuple(row.get(k) for k in keys) if len(keys) > 1 else row.get(keys[0]) for row in found]


def folders(server: Server, run_id: str) -> list[str]:
    return sorted(str(p) for p in Path(server.env["WANDB_DIR"], "wandb").glob(f"offline-run-*-{run_id}"))


def sync(server: Server, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *args],
        env=os.environ | server.env | {"WANDB_SILENT": "false"},
        cwd=server.env["WANDB_DIR"], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


LOGGED = """
import json, math, os, sys, wandb
logged = {}
def values(i):
    return {"loss": 1 / (i + 1), "n": i, "big": 2**60 + i, "nan": float("nan"), "inf": [float("inf"), -1][i % 2],
            "mixed": [1, "one", None, [1, 2], {"a": {"b": i}}][i % 5], "a.b": i, "a": {"b": -i}, "\\u00fc \\t\\"": i}
with wandb.init(project="o", id="plain", name="plain run", tags=["t"], group="g",
                config={"lr": 0.1, "deep": {"a": [1, {"b": None}]}, "big": 2**60}) as run:
    for i in range(50):
        run.log(values(i))
        print("line", i)
    run.summary["best"] = {"of": [1, 2]}
    with open("kept.bin", "wb") as out:
        out.write(b"12345")
    run.save("kept.bin", policy="now")
with wandb.init(project="o", id="again", resume="allow") as run:
    for i in range(5):
        run.log({"x": i})
print("null")
"""

RESUMED = """
import time, wandb
time.sleep(1.1)
with wandb.init(project="o", id="again", resume="allow") as run:
    for i in range(5):
        run.log({"x": 10 + i})
print("null")
"""

KILLED = """
import os, signal, time, wandb
run = wandb.init(project="o", id="killed")
for i in range(2000):
    run.log({"x": i, "text": "t" * 50})
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def logged(server: Server) -> Server:
    client(server, LOGGED, WANDB_MODE="offline")
    # A second folder of the same run: its name has the second in which it was made.
    client(server, RESUMED, WANDB_MODE="offline")
    dead = subprocess.run(
        [sys.executable, "-c", KILLED], env=os.environ | server.env | {"WANDB_MODE": "offline"},
        cwd=server.env["WANDB_DIR"], capture_output=True, timeout=300,
    )  # fmt: skip
    assert dead.returncode == -9, dead.stderr
    return server


def test_an_offline_run_arrives_whole(logged: Server) -> None:
    (folder,) = folders(logged, "plain")
    sync(logged, folder)
    run = held(logged, "plain")
    assert (run["state"], run["displayName"], run["tags"], run["group"]) == ("finished", "plain run", ["t"], "g")
    config = {k: v["value"] for k, v in json.loads(run["config"]).items() if k != "_wandb"}
    assert config == {"lr": 0.1, "deep": {"a": [1, {"b": None}]}, "big": 2**60}
    arrived = [json.loads(text) for text in run["history"]]
    assert len(arrived) == run["historyLineCount"] == 50
    mixed = [1, "one", None, [1, 2]]
    for i, row in enumerate(arrived):
        assert (row["_step"], row["n"], row["big"], row["loss"]) == (i, i, 2**60 + i, 1 / (i + 1))
        assert math.isnan(row["nan"]) and row["inf"] == (math.inf if i % 2 == 0 else -1)
        assert row["mixed"] == [*mixed, {"a": {"b": i}}][i % 5]
        assert row["a.b"] == i and row["a"] == {"b": -i} and row['ü \t"'] == i
    summary = json.loads(run["summaryMetrics"])
    assert (summary["n"], summary["best"], summary["_step"]) == (49, {"of": [1, 2]}, 49)
    lines = [e["node"]["line"] for e in run["logLines"]["edges"]]
    assert [line for line in lines if line.startswith("line ")] == [f"line {i}" for i in range(50)]
    files = {e["node"]["name"]: e["node"]["sizeBytes"] for e in run["files"]["edges"]}
    assert files["kept.bin"] == 5 and "wandb-metadata.json" in files


def test_a_run_resumed_offline_goes_on(logged: Server) -> None:
    both = folders(logged, "again")
    assert len(both) == 2
    sync(logged, both[0])
    assert rows(held(logged, "again"), "x") == [0, 1, 2, 3, 4]
    sync(logged, both[1])
    run = held(logged, "again")
    assert rows(run, "x") == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14] and run["historyLineCount"] == 10
    assert json.loads(run["summaryMetrics"])["x"] == 14 and run["state"] == "finished"


def test_what_a_killed_run_wrote_is_uploaded(logged: Server) -> None:
    (folder,) = folders(logged, "killed")
    sync(logged, folder)
    run = held(logged, "killed")
    arrived = rows(run, "_step", "x", "text")
    assert 0 < len(arrived) <= 2000
    assert arrived == [(i, i, "t" * 50) for i in range(len(arrived))]


def test_the_same_folder_twice_changes_nothing(logged: Server) -> None:
    (folder,) = folders(logged, "plain")
    sync(logged, folder)
    before = held(logged, "plain")
    assert "Skipped 1 synced run" in sync(logged, folder)
    assert held(logged, "plain") == before
    sync(logged, "--id", "copy", "--no-skip-synced", folder)
    copy = held(logged, "copy")
    assert rows(copy, "_step", "n", "loss", "mixed") == rows(before, "_step", "n", "loss", "mixed")
    assert json.loads(copy["summaryMetrics"]) == json.loads(before["summaryMetrics"])
    # Sent again by force, the client itself numbers its rows behind those the server says it has: they are appended,
    # as lines of a resumed run would be.
    sync(logged, "--no-skip-synced", folder)
    assert rows(held(logged, "plain"), "n") == [*range(50), *range(50)]


def test_a_folder_is_sent_whole_after_the_server_was_killed(logged: Server) -> None:
    (folder,) = folders(logged, "killed")
    sync(logged, "--id", "k2", "--no-skip-synced", folder)
    logged.kill()
    logged.start()
    assert rows(held(logged, "k2"), "_step", "x") == rows(held(logged, "killed"), "_step", "x")


# -- forks and rewinds ------------------------------------------------------------------------------------

PARENT = """
import wandb
with wandb.init(project="o", id="parent", config={"a": 1}) as run:
    for i in range(10):
        run.log({"x": i, "nested": {"y": [i]}})
with wandb.init(project="o", id="child", fork_from="parent?_step=4", config={"b": 2}) as run:
    for i in range(3):
        run.log({"x": 100 + i})
print("null")
"""

REWIND = """
import wandb
with wandb.init(project="o", id="parent", resume_from="parent?_step=6") as run:
    for i in range(2):
        run.log({"x": 200 + i, "new": True})
print("null")
"""


def test_a_fork_has_the_history_of_its_parent(server: Server) -> None:
    client(server, PARENT)
    child, parent = held(server, "child"), held(server, "parent")
    before = [(i, i, {"y": [i]}) for i in range(5)]
    assert rows(child, "_step", "x", "nested") == [*before, (5, 100, None), (6, 101, None), (7, 102, None)]
    assert child["historyLineCount"] == 8 and child["historyKeys"]["lastStep"] == 7
    assert child["historyKeys"]["keys"]["nested.y"]["typeCounts"] == [{"type": "list", "count": 5}]
    assert rows(parent, "x") == list(range(10))


def test_a_rewound_run_goes_on_from_its_step(server: Server) -> None:
    if server.graphql('{ project(name: "o", entityName: "local") { run(name: "child") { id } } }')["project"] is None:
        client(server, PARENT)
    client(server, REWIND)
    for _ in range(2):
        run = held(server, "parent")
        expected = [(i, i, None) for i in range(7)] + [(7, 200, True), (8, 201, True)]
        assert rows(run, "_step", "x", "new") == expected and run["historyLineCount"] == 9
        assert run["historyKeys"]["lastStep"] == 8
        assert run["historyKeys"]["keys"]["x"]["typeCounts"] == [{"type": "number", "count": 9}]
        assert json.loads(run["summaryMetrics"])["x"] == 201 and run["state"] == "finished"
        assert {"config.yaml", "wandb-metadata.json"} <= {e["node"]["name"] for e in run["files"]["edges"]}
        server.kill()
        server.start()
    assert rows(held(server, "child"), "x")[:5] == list(range(5))


def test_a_run_cannot_be_forked_or_rewound_from_nowhere(server: Server) -> None:
    config = {"_wandb": {"value": {"branch_point": {"run_id": "none", "step": 1}}}}
    answer = server.post("/graphql", {
        "query": "mutation U($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }",
        "variables": {"i": {"entityName": "local", "modelName": "o", "name": "orphan", "config": json.dumps(config)}},
    })  # fmt: skip
    assert "there is no run `local/o/none` here to fork from" in answer.text
    rewind = "mutation R($i: RewindRunInput!) { rewindRun(input: $i) { rewoundRun { name } } }"
    for given, said in (
        ({"runName": "none", "metricName": "_step", "metricValue": 1}, "there is no run"),
        ({"runName": "plain", "metricName": "loss", "metricValue": 1}, "to a `_step`"),
    ):
        i = {"entityName": "local", "projectName": "o"} | given
        text = server.post("/graphql", {"query": rewind, "variables": {"i": i}}).text
        assert said in text and "internal error" not in text
