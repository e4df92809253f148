"""Sweeps on `mirror serve`: searches, agents, states, with the real SDK and over the wire."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Server, client, serving

from mirror.errors import UsageError
from mirror.server.sweeps import hyperband
from mirror.server.sweeps.suggest import Space, canonical, next_by_model
from mirror.server.sweeps.sweeps import plan

UPSERT = "mutation U($i: UpsertSweepInput!) { upsertSweep(input: $i) { sweep { id name state project { name } } } }"
AGENT = "mutation A($i: CreateAgentInput!) { createAgent(input: $i) { agent { id } } }"
BEAT = "mutation B($i: AgentHeartbeatInput!) { agentHeartbeat(input: $i) { commands } }"
SWEEP = """query S($p: String!, $n: String!) { project(name: $p, entityName: "local") { sweep(sweepName: $n) {
  id name state method config bestLoss runCount runCountExpected displayName
  runs { edges { node { name } } } agents { edges { node { id name totalRuns } } } } } }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("sweeps") / "mirror") as found:
        yield found


class Wire:
    """An agent of a sweep that speaks the wire itself."""

    def __init__(self, server: Server, project: str, config: dict[str, Any] | str) -> None:
        self.server, self.project = server, project
        made = server.graphql(UPSERT, i={"entityName": "local", "projectName": project, "config": as_text(config)})
        self.id, self.name = made["upsertSweep"]["sweep"]["id"], made["upsertSweep"]["sweep"]["name"]
        self.agent = self.new_agent()

    def new_agent(self) -> str:
        made = self.server.graphql(
            AGENT, i={"host": "h", "sweep": self.name, "projectName": self.project, "entityName": "local"}
        )
        return str(made["createAgent"]["agent"]["id"])

    def beat(self, *running: str, agent: str | None = None) -> list[dict[str, Any]]:
        state = json.dumps(dict.fromkeys(running, True))
        found = self.server.graphql(BEAT, i={"id": agent or self.agent, "runState": state, "metrics": "{}"})
        commands: list[dict[str, Any]] = json.loads(found["agentHeartbeat"]["commands"])
        return commands

    def set(self, **fields: Any) -> None:
        self.server.graphql(UPSERT, i={"id": self.id} | fields)

    def run(self, command: dict[str, Any], rows: list[dict[str, Any]] = [], end: bool = True) -> None:  # noqa: B006
        """What an agent does with a `run` command."""
        self.server.upsert(self.project, command["run_id"], sweep=self.name, config=json.dumps(command["args"]))
        lines = [json.dumps({"_step": i} | row) for i, row in enumerate(rows)]
        body: dict[str, Any] = {"files": {"wandb-history.jsonl": {"offset": 0, "content": lines}}}
        if rows:
            body["files"]["wandb-summary.json"] = {"offset": 0, "content": [json.dumps(rows[-1])]}
        if end:
            body |= {"complete": True, "exitcode": 0}
        assert self.server.stream(self.project, command["run_id"], **body).ok

    @property
    def held(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.graphql(SWEEP, p=self.project, n=self.name)["project"]["sweep"]
        return found


def as_text(config: dict[str, Any] | str) -> str:
    return config if isinstance(config, str) else json.dumps(config)


def values(command: dict[str, Any]) -> dict[str, Any]:
    return {name: given["value"] for name, given in command["args"].items()}


# -- the SDK ----------------------------------------------------------------------------------------------

GRID = """
import json, wandb
from wandb.agents import pyagent
pyagent.Agent.HEARTBEAT_SLEEP_SECONDS = 0.2
config = {"method": "grid", "name": "my sweep", "description": "all of it",
          "metric": {"name": "loss", "goal": "minimize"},
          "parameters": {"lr": {"values": [0.1, 0.01]}, "opt": {"parameters": {"name": {"values": ["sgd"]}}},
                         "n": {"value": 3}}}
sweep_id = wandb.sweep(config, project="grid")
def train():
    with wandb.init() as run:
        run.log({"loss": run.config["lr"] * 10 + run.config["n"], "got": run.config["opt"]["name"]})
wandb.agent(sweep_id, function=train, project="grid")
api = wandb.Api()
sweep = api.sweep(f"local/grid/{sweep_id}")
runs = list(sweep.runs)
best = sweep.best_run()
agents = sweep.agents()
print(json.dumps({
    "id": sweep_id, "state": sweep.state, "config": sweep.config, "order": sweep.order, "name": sweep.name,
    "expected": sweep.expected_run_count,
    "best": [best.config["lr"], best.summary["loss"]], "count": len(sweep.runs),
    "runs": [[r.config["lr"], r.config["n"], r.config["opt"], r.summary["loss"], r.summary["got"], r.state]
             for r in runs],
    "of_run": runs[0].sweep.id, "of_run_name": runs[0].sweep_name,
    "listed": [s.id for s in api.project("grid", "local").sweeps()], "agents": [len(list(a.runs())) for a in agents],
}))
"""


def test_a_grid_is_run_by_the_sdk(server: Server) -> None:
    found = client(server, GRID, timeout=300)
    assert (found["state"], found["name"], found["expected"], found["count"]) == ("FINISHED", "my sweep", 2, 2)
    assert found["config"]["parameters"]["lr"] == {"values": [0.1, 0.01]} and found["config"]["method"] == "grid"
    assert found["order"] == "+summary_metrics.loss"
    opt = {"name": "sgd"}
    assert sorted(found["runs"]) == sorted(
        [lr, 3, opt, lr * 10 + 3, "sgd", "finished"] for lr in (0.1, 0.01)
    )  # fmt: skip
    assert found["best"] == [0.01, 0.01 * 10 + 3]
    assert found["of_run"] == found["of_run_name"] == found["id"]
    assert found["listed"] == [found["id"]] and found["agents"] == [2]
    assert server.graphql(SWEEP, p="grid", n=found["id"])["project"]["sweep"]["bestLoss"] == 0.01 * 10 + 3


RANDOM = """
import json, wandb
from wandb.agents import pyagent
pyagent.Agent.HEARTBEAT_SLEEP_SECONDS = 0.2
config = {"method": "random", "metric": {"name": "loss", "goal": "maximize"},
          "parameters": {"lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
                         "layers": {"distribution": "int_uniform", "min": 2, "max": 5}, "opt": {"values": ["a", "b"]}}}
sweep_id = wandb.sweep(config, project="random")
tried = []
def train():
    with wandb.init() as run:
        tried.append([run.config["lr"], run.config["layers"], run.config["opt"]])
        run.log({"loss": run.config["lr"]})
wandb.agent(sweep_id, function=train, project="random", count=3)
sweep = wandb.Api().sweep(f"local/random/{sweep_id}")
print(json.dumps({"tried": tried, "best": sweep.best_run().config["lr"], "state": sweep.state,
                  "runs": [[r.config["lr"], r.config["layers"], r.config["opt"]] for r in sweep.runs]}))
"""


@pytest.mark.slow
def test_a_random_search_is_run_by_the_sdk(server: Server) -> None:
    found = client(server, RANDOM, timeout=300)
    assert len(found["tried"]) == 3 and sorted(found["runs"]) == sorted(found["tried"])
    assert len({lr for lr, _, _ in found["tried"]}) == 3
    for lr, layers, opt in found["tried"]:
        assert 1e-4 <= lr <= 1e-1 and layers in (2, 3, 4, 5) and opt in ("a", "b")
    assert found["best"] == max(lr for lr, _, _ in found["tried"])
    assert found["state"] == "RUNNING"  # a random search has no end of its own


PROGRAM = """
import sys, wandb
with wandb.init() as run:
    run.log({"x": run.config["x"]})
"""


def test_the_command_line_runs_and_steers_a_sweep(server: Server) -> None:
    folder = server.env["WANDB_DIR"]
    Path(folder, "train.py").write_text(PROGRAM)
    config = {
        "method": "random", "program": "train.py", "run_cap": 2, "parameters": {"x": {"min": 1, "max": 3}},
        "command": [sys.executable, "${program}"],
    }  # fmt: skip
    sweep = Wire(server, "cli", config)

    def wandb(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", *args, f"local/cli/{sweep.name}"],
            env=os.environ | server.env, cwd=folder, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    (first,) = sweep.beat()
    sweep.run(first)
    wandb("sweep", "--pause")
    assert sweep.held["state"] == "PAUSED" and sweep.beat() == []
    wandb("sweep", "--resume")
    assert sweep.held["state"] == "RUNNING"
    wandb("agent")
    held = sweep.held
    assert (held["state"], held["runCount"], len(held["runs"]["edges"])) == ("FINISHED", 2, 2)
    (name,) = {e["node"]["name"] for e in held["runs"]["edges"]} - {first["run_id"]}
    query = 'query R($n: String!) { project(name: "cli", entityName: "local") { run(name: $n) { summaryMetrics } } }'
    summary = json.loads(server.graphql(query, n=name)["project"]["run"]["summaryMetrics"])
    assert summary["x"] in (1, 2, 3)


# -- states -----------------------------------------------------------------------------------------------


def test_a_grid_tries_every_combination_once_across_a_restart(server: Server) -> None:
    a, b = [1, 2, 3], ["x", "y"]
    sweep = Wire(server, "restart", {"method": "grid", "parameters": {"a": {"values": a}, "b": {"values": b}}})
    assert sweep.held["state"] == "PENDING"
    seen = []
    for i in range(6):
        (command,) = sweep.beat()
        seen.append(values(command))
        assert sweep.beat(command["run_id"]) == []  # one at a time
        sweep.run(command)
        if i == 2:
            assert sweep.held["state"] == "RUNNING"
            server.kill()
            server.start()
    assert sorted(seen, key=str) == sorted(({"a": x, "b": y} for x, y in itertools.product(a, b)), key=str)
    assert sweep.beat() == [{"type": "exit"}]
    held = sweep.held
    assert (held["state"], held["runCount"], held["runCountExpected"]) == ("FINISHED", 6, 6)
    assert [e["node"]["totalRuns"] for e in held["agents"]["edges"]] == [6]
    with_table = server.graphql(SWEEP, p="restart", n=sweep.name)["project"]["sweep"]
    assert json.loads(with_table["config"])["method"] == "grid"


def test_a_sweep_is_not_finished_while_another_agent_works(server: Server) -> None:
    sweep = Wire(server, "two", {"method": "grid", "parameters": {"a": {"values": [1, 2]}}})
    other = sweep.new_agent()
    (first,), (second,) = sweep.beat(), sweep.beat(agent=other)
    assert {values(first)["a"], values(second)["a"]} == {1, 2}
    sweep.run(first)
    assert sweep.beat() == [{"type": "exit"}]
    assert sweep.held["state"] == "RUNNING"
    sweep.run(second, end=False)
    assert sweep.beat(second["run_id"], agent=other) == []
    sweep.run(second)
    # Its agent stopped (`count=1`) without asking again: whoever looks finds the sweep finished.
    sweep.beat(agent=other)
    assert sweep.held["state"] == "FINISHED"


def test_pause_stop_and_cancel(server: Server) -> None:
    sweep = Wire(server, "states", {"method": "random", "parameters": {"a": {"min": 0.0, "max": 1.0}}})
    (command,) = sweep.beat()
    sweep.set(state="PAUSED")
    assert sweep.beat(command["run_id"]) == [] and sweep.beat() == []
    sweep.set(state="RUNNING")
    sweep.run(command, [{"x": 1}], end=False)
    sweep.set(state="FINISHED")
    assert sweep.beat(command["run_id"]) == []  # what runs may finish
    assert sweep.beat() == [{"type": "exit"}]
    sweep.set(state="CANCELED")
    assert sweep.beat(command["run_id"]) == [{"type": "exit"}]
    assert server.stream("states", command["run_id"]).json() == {"stopped": True}


def test_a_run_that_is_stopped_is_stopped_by_its_agent(server: Server) -> None:
    sweep = Wire(server, "stop", {"method": "random", "parameters": {"a": {"min": 0.0, "max": 1.0}}})
    (command,) = sweep.beat()
    sweep.run(command, [{"x": 1}], end=False)
    query = 'query R($n: String!) { project(name: "stop", entityName: "local") { run(name: $n) { id } } }'
    run_id = server.graphql(query, n=command["run_id"])["project"]["run"]["id"]
    server.graphql("mutation S($i: StopRunInput!) { stopRun(input: $i) { success } }", i={"id": run_id})
    assert sweep.beat(command["run_id"]) == [{"type": "stop", "run_id": command["run_id"]}]


def test_run_cap_and_prior_runs(server: Server) -> None:
    for n in (1, 2):
        server.upsert("prior", f"old{n}", config=json.dumps({"a": {"value": n}, "other": {"value": 0}}))
        server.stream("prior", f"old{n}", complete=True, exitcode=0)
    config = {"method": "grid", "run_cap": 3, "parameters": {"a": {"values": [1, 2, 3, 4]}}}
    sweep = Wire(server, "prior", config)
    filters = json.dumps({"$or": [{"name": "old1"}, {"name": "old2"}]})
    sweep.set(priorRunsFilters=filters)
    assert sweep.held["runCount"] == 2
    (command,) = sweep.beat()
    assert values(command) == {"a": 3}
    sweep.run(command)
    assert sweep.beat() == [{"type": "exit"}]
    assert (sweep.held["state"], sweep.held["runCountExpected"]) == ("FINISHED", 3)


def test_a_deleted_sweep_or_an_unknown_agent_is_404(server: Server) -> None:
    for wrong in ("nonsense", "QWdlbnQ6OTk5OTk5OmFi"):
        answer = server.post("/graphql", {"query": BEAT, "variables": {"i": {"id": wrong}}})
        assert answer.status_code == 404 and "no such agent" in answer.text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"method": "magic", "parameters": {"a": {"value": 1}}}, "`method` is `magic`"),
        ({"method": "random"}, "at least one parameter"),
        ({"method": "grid", "parameters": {"a": {"min": 0.0, "max": 1.0}}}, "`a` has infinitely many"),
        ({"method": "random", "parameters": {"a": {"min": 0, "max": 1.5}}}, "bounds of two types"),
        ({"method": "random", "parameters": {"a": {"b": {"c": 1}}}}, "`a` of the sweep needs `values`"),
        ({"method": "bayes", "parameters": {"a": {"value": 1}}}, "needs a `metric`"),
        ({"method": "random", "run_cap": 0, "parameters": {"a": {"value": 1}}}, "run_cap"),
        ({"method": "random", "parameters": {"a": {"distribution": "log_uniform", "min": 0, "max": 9999}}}, "beyond"),
        ("a: [", "no YAML dictionary"),
        ("a: &a [x,x]\nb: &b [*a,*a]\n" + "c: *b\n" * 2, "`method` is `None`"),
    ],
)  # fmt: skip
def test_bad_configurations_are_refused_with_a_reason(server: Server, config: Any, said: str) -> None:
    with pytest.raises(AssertionError) as caught:
        Wire(server, "bad", config)
    assert said in str(caught.value) and "internal error" not in str(caught.value)


# -- searching --------------------------------------------------------------------------------------------


def drawn(spec: dict[str, Any], n: int = 4000) -> list[Any]:
    rng = np.random.default_rng(1)
    space = Space({"a": spec})
    return [space.at([float(rng.random())])["a"] for _ in range(n)]


@pytest.mark.parametrize(
    ("spec", "edge", "share"),
    [
        # share of draws that are below the edge, from the definition of each distribution
        ({"min": 2.0, "max": 6.0}, 3.0, 0.25),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}, 1e-3, 1 / 3),
        ({"distribution": "log_uniform", "min": -2, "max": 2}, 1.0, 0.5),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 4}, math.exp(-1), 0.75),
        ({"distribution": "inv_log_uniform_values", "min": 1, "max": 10_000}, 10, 0.25),
        ({"distribution": "normal", "mu": 5, "sigma": 2}, 3, 0.1587),
        ({"distribution": "log_normal"}, 1.0, 0.5),
        ({"distribution": "beta", "a": 1, "b": 3}, 0.5, 1 - 0.5**3),
        ({"distribution": "q_uniform", "min": 0, "max": 4, "q": 2}, 1, 0.25),
        ({"distribution": "q_normal", "mu": 0, "sigma": 10, "q": 5}, -2.5, 0.4013),
        ({"min": 1, "max": 4}, 3, 0.5),
        ({"values": [1, 5, 9]}, 6, 2 / 3),
        ({"values": [1, 5], "probabilities": [0.9, 0.1]}, 2, 0.9),
    ],
)  # fmt: skip
def test_draws_are_distributed_as_asked(spec: dict[str, Any], edge: float, share: float) -> None:
    found = drawn(spec)
    assert sum(v < edge for v in found) / len(found) == pytest.approx(share, abs=0.03)


def test_types_and_steps_of_draws() -> None:
    assert set(drawn({"min": 1, "max": 3})) == {1, 2, 3} and all(type(v) is int for v in drawn({"min": 1, "max": 3}))
    assert set(drawn({"distribution": "q_uniform", "min": 0.0, "max": 0.3, "q": 0.1})) == {0.0, 0.1, 0.2, 0.3}
    assert set(drawn({"distribution": "q_log_uniform_values", "min": 1, "max": 8, "q": 4}, 500)) == {0, 4, 8}
    assert set(drawn({"values": ["a", None, 1]}, 500)) == {"a", None, 1}
    nested = Space({"x": {"parameters": {"y": {"parameters": {"z": {"value": 1}}}}}, "w": {"value": {"k": [1]}}})
    assert nested.at([0.5, 0.5]) == {"x": {"y": {"z": 1}}, "w": {"k": [1]}}


def test_a_grid_of_billions_costs_nothing() -> None:
    space = Space({f"p{i}": {"min": 1, "max": 1000} for i in range(10)})
    assert space.size == 1000**10
    assert space.combination(0) == {f"p{i}": 1 for i in range(10)}
    assert space.combination(1000) == {f"p{i}": 2 if i == 8 else 1 for i in range(10)}
    assert canonical({"a": 1}) == canonical({"a": 1.0}) != canonical({"a": True})


def test_bayes_finds_a_minimum_sooner_than_chance() -> None:
    space = Space({"x": {"min": -5.0, "max": 5.0}, "y": {"min": -5.0, "max": 5.0}, "z": {"values": ["a", "b"]}})

    def loss(point: list[float]) -> float:
        got = space.at(point)
        return float((got["x"] - 1) ** 2 + (got["y"] + 2) ** 2 + (got["z"] == "b"))

    better = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        points: list[list[float]] = []
        for _ in range(25):
            points.append(next_by_model(space, points, [loss(p) for p in points], rng))
        chance = min(loss([float(u) for u in rng.random(3)]) for _ in range(25))
        better += min(map(loss, points)) < chance
    assert better == 3


def test_bayes_over_the_wire(server: Server) -> None:
    config = {
        "method": "bayes", "metric": {"name": "m.loss", "goal": "maximize"},
        "parameters": {"x": {"min": 0.0, "max": 1.0}},
    }  # fmt: skip
    sweep = Wire(server, "bayes", config)
    tried = []
    for _ in range(8):
        (command,) = sweep.beat()
        tried.append(values(command)["x"])
        sweep.run(command, [{"m": {"loss": -((tried[-1] - 0.3) ** 2)}}])
    assert sweep.held["bestLoss"] == max(-((x - 0.3) ** 2) for x in tried)
    assert min(abs(x - 0.3) for x in tried[3:]) < 0.1 and len(set(tried)) == 8


def test_hyperband_stops_the_worse_runs(server: Server) -> None:
    config = {
        "method": "random", "metric": {"name": "loss", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 2},
        "parameters": {"x": {"min": 0.0, "max": 1.0}},
    }  # fmt: skip
    sweep = Wire(server, "band", config)
    for loss in (1.0, 2.0, 3.0):
        (command,) = sweep.beat()
        sweep.run(command, [{"loss": loss}] * 4)
    (good,) = sweep.beat()
    sweep.run(good, [{"loss": 0.5}] * 3, end=False)
    assert sweep.beat(good["run_id"]) == []
    other = sweep.new_agent()
    (bad,) = sweep.beat(agent=other)
    sweep.run(bad, [{"loss": 9.0}] * 2, end=False)
    assert sweep.beat(bad["run_id"], agent=other) == []  # not at a bracket yet
    sweep.run(bad, [{"loss": 9.0}] * 3, end=False)
    assert sweep.beat(bad["run_id"], agent=other) == [{"type": "stop", "run_id": bad["run_id"]}]


def test_brackets() -> None:
    assert hyperband.read({"type": "hyperband", "min_iter": 3}).brackets[:4] == (3, 9, 27, 81)  # type: ignore[union-attr]
    assert hyperband.read({"type": "hyperband", "max_iter": 27, "s": 2}).brackets == (3, 9)  # type: ignore[union-attr]
    for wrong in ({"type": "median"}, {"type": "hyperband"}, {"type": "hyperband", "min_iter": 0}, "hyperband"):
        with pytest.raises(UsageError):
            hyperband.read(wrong)


def test_a_plan_of_endless_anchors_is_refused() -> None:
    text = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    with pytest.raises(UsageError, match="no YAML dictionary"):
        plan(text)
