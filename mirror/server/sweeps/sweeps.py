"""Sweeps that run here: who searches, what was handed out, what comes next.

A sweep itself is a row of the table `sweeps`. What its agents were told lies in ROOT/live/sweeps/<rid>.jsonl, one
agent or one handed-out run a line, on the disk before the agent hears of it: a restarted server goes on where it was.
An agent asks every few seconds, says which of its runs go on, and gets commands back: `run`, `stop`, `exit`.
"""

from __future__ import annotations

import json
import os
import secrets
import string
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror.errors import UsageError
from mirror.records import ItemKey, Sweep
from mirror.server import ids
from mirror.server.held import Held
from mirror.server.live import ENDED, cut_torn_line, now
from mirror.server.look import Found, Look
from mirror.server.rows import dumps, parse_row
from mirror.server.sweeps import hyperband
from mirror.server.sweeps.suggest import METHODS, Params, Space, canonical, next_by_model
from mirror.store.disk import explained, sync_folder
from mirror.store.items import sweep_columns

if TYPE_CHECKING:
    from mirror.server.home import Home

PENDING, RUNNING, PAUSED, FINISHED, CANCELED = "PENDING", "RUNNING", "PAUSED", "FINISHED", "CANCELED"
STATES = (PENDING, RUNNING, PAUSED, FINISHED, CANCELED, "STOPPED")
OVER = (FINISHED, CANCELED, "STOPPED")

SILENT_AFTER = 90.0
"""Seconds without a word after which an agent is taken for dead: what it was told and never started is free again."""

_LETTERS = string.ascii_lowercase + string.digits
_MOST_CONFIG = 1 << 20


@dataclass(frozen=True)
class Plan:
    """The configuration of a sweep, read and checked."""

    document: dict[str, Any]
    method: str
    space: Space
    metric: str | None
    minimize: bool
    run_cap: int | None
    early: hyperband.Hyperband | None

    @property
    def expected(self) -> int | None:
        """How many runs there will be; None if the search has no end."""
        sizes = [n for n in (self.space.size if self.method == "grid" else None, self.run_cap) if n is not None]
        return min(sizes, default=None)


def plan(raw: str) -> Plan:
    """Read a sweep's YAML. `UsageError` says what is wrong in it."""
    text = sweep_columns(raw)["config"] if len(raw) <= _MOST_CONFIG else None
    document = json.loads(text) if text else None
    if not isinstance(document, dict):
        raise UsageError(f"the sweep's configuration is no YAML dictionary of at most {_MOST_CONFIG} characters")
    method = document.get("method")
    if method not in METHODS:
        raise UsageError(f"the sweep's `method` is `{method}`: use one of {', '.join(METHODS)}")
    space = Space(document.get("parameters") or {})
    if method == "grid":
        space.check_grid()
    metric = document.get("metric")
    if metric is not None and not (isinstance(metric, dict) and isinstance(metric.get("name"), str)):
        raise UsageError("the sweep's `metric` must be a dictionary like {name: loss, goal: minimize}")
    name, goal = (metric["name"], metric.get("goal", "minimize")) if metric else (None, "minimize")
    if goal not in ("minimize", "maximize"):
        raise UsageError(f"the sweep's `metric.goal` is `{goal}`: use minimize or maximize")
    if method == "bayes" and name is None:
        raise UsageError("a sweep with `method: bayes` needs a `metric` like {name: loss, goal: minimize}")
    cap = document.get("run_cap")
    if cap is not None and not (isinstance(cap, int) and not isinstance(cap, bool) and cap > 0):
        raise UsageError(f"the sweep's `run_cap` is `{cap}`: use a whole number above 0")
    early = hyperband.read(document.get("early_terminate"))
    if early and name is None:
        raise UsageError("a sweep with `early_terminate` needs a `metric` like {name: loss, goal: minimize}")
    return Plan(document, method, space, name, goal == "minimize", cap, early)


@dataclass
class Handed:
    """A run an agent was told to make. `number` is that of the grid's combination, `point` where in the unit cube."""

    run_id: str
    agent: str
    params: Params
    number: int | None = None
    point: list[float] | None = None


@dataclass
class Agent:
    """`beat` is when it was last heard of, as a time of the clock."""

    id: str
    host: str
    created_at: str
    username: str
    beat: float = 0.0
    runs: set[str] = field(default_factory=set)
    """The runs it said go on."""


@dataclass
class _Search:
    """What is known of one sweep's search."""

    agents: dict[str, Agent] = field(default_factory=dict)
    handed: dict[str, Handed] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    """Combinations (canonical) that runs of the sweep have already."""
    next_number: int = 0
    found_runs: bool = False
    reached: dict[str, hyperband.Reached] = field(default_factory=dict)
    """What runs that have ended reached, for early termination."""


class Sweeps:
    """All sweeps of one served mirror."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder: Path = home.layout.sweeps
        self._lock = threading.RLock()
        self._searches: dict[int, _Search] = {}
        self._rng = np.random.default_rng()

    # -- the sweep ----------------------------------------------------------------------------------------

    def create(self, entity: str, project: str, fields: dict[str, Any], username: str) -> Held[Sweep]:
        """A new sweep; `fields` are those of the record."""
        at = now()
        sweep_id = "".join(secrets.choice(_LETTERS) for _ in range(8))
        key = ItemKey(self._home.source, ids.new_item_id("Sweep", sweep_id, project, entity), entity, project)
        new = Sweep(key, sweep_id, state=PENDING, username=username, created_at=at, updated_at=at)
        return self._put(replace(new, **fields))

    def change(self, held_: Held[Sweep], fields: dict[str, Any]) -> Held[Sweep]:
        """Change a sweep of this server. `UsageError` if it was mirrored from elsewhere."""
        old = held_.item
        if old.key.source != self._home.source:
            raise UsageError(
                f"sweep `{old.key.entity}/{old.key.project}/{old.sweep_id}` is mirrored from `{old.key.source}` and "
                "cannot be changed here"
            )
        changes = {name: value for name, value in fields.items() if getattr(old, name) != value}
        return self._put(replace(old, updated_at=now(), **changes)) if changes else held_

    def _put(self, sweep: Sweep) -> Held[Sweep]:
        pen, _ = self._home.writable()
        return Held(pen.do(lambda writer: writer.put_item(sweep)), sweep)

    # -- agents -------------------------------------------------------------------------------------------

    def register(self, sweep: Held[Sweep], host: str, username: str) -> Agent:
        """A new agent of a sweep."""
        if sweep.item.key.source != self._home.source:
            raise UsageError(f"sweep `{sweep.item.sweep_id}` is mirrored from `{sweep.item.key.source}`: run it there")
        plan(sweep.item.config or "")
        name = "".join(secrets.choice(_LETTERS) for _ in range(8))
        at = now().isoformat().replace("+00:00", "Z")
        agent = Agent(ids.encode("Agent", sweep.rid, name), host, at, username, time.time())
        with self._lock:
            self._search(sweep.rid).agents[agent.id] = agent
            self._journal(sweep.rid, {"agent": agent.id, "host": host, "at": at, "user": username})
        return agent

    def agents(self, rid: int) -> list[Agent]:
        with self._lock:
            return list(self._search(rid).agents.values())

    def handed_to(self, rid: int, agent: str) -> list[str]:
        """Run ids an agent was given, in order."""
        with self._lock:
            return [h.run_id for h in self._search(rid).handed.values() if h.agent == agent]

    def beat(self, sweep: Held[Sweep], agent_id: str, going_on: set[str], look: Look) -> list[dict[str, Any]]:
        """An agent is there, and these of its runs go on; returns what it is to do."""
        with self._lock:
            search = self._search(sweep.rid)
            agent = search.agents.get(agent_id)
            if agent is None:
                return [{"type": "exit"}]
            agent.beat, agent.runs = time.time(), going_on
            if sweep.item.state == CANCELED:
                return [{"type": "exit"}]
            current = plan(sweep.item.config or "")
            runs = self._runs(sweep, look)
            stops = [{"type": "stop", "run_id": run} for run in self._to_stop(current, search, runs, going_on, look)]
            if stops or going_on or sweep.item.state == PAUSED:
                return stops
            if sweep.item.state in OVER:
                return [{"type": "exit"}]
            handed = self._next(sweep, current, search, agent, runs)
            if handed is None:
                if not self._unfinished(search, runs):
                    self.change(sweep, {"state": FINISHED})
                return [{"type": "exit"}]
        if sweep.item.state == PENDING:
            self.change(sweep, {"state": RUNNING})
        args = {name: {"value": value} for name, value in handed.params.items()}
        program = current.document.get("program")
        return [{"type": "run", "run_id": handed.run_id, "args": args, "program": program, "logs": []}]

    def settled(self, sweep: Held[Sweep], look: Look) -> Held[Sweep]:
        """The sweep, finished if nothing is left to do: its last agent may have gone before it could be told."""
        if sweep.item.state != RUNNING or self._home.read_only or sweep.item.key.source != self._home.source:
            return sweep
        current = plan(sweep.item.config or "")
        if current.expected is None:
            return sweep
        with self._lock:
            search, runs = self._search(sweep.rid), self._runs(sweep, look)
            if self._left(current, search, runs) or self._unfinished(search, runs):
                return sweep
            return self.change(sweep, {"state": FINISHED})

    # -- searching ----------------------------------------------------------------------------------------

    def _runs(self, sweep: Held[Sweep], look: Look) -> dict[str, Found]:
        """The runs of a sweep by id."""
        key = sweep.item.key
        return {f.run.key.run_id: f for f in of_sweep(look, key.entity, key.project, sweep.item.sweep_id)}

    def _lost(self, search: _Search, runs: dict[str, Found]) -> list[Handed]:
        """What was handed out to agents that died before they started it."""
        dead = {a.id for a in search.agents.values() if time.time() - a.beat > SILENT_AFTER}
        return [h for h in search.handed.values() if h.run_id not in runs and h.agent in dead]

    def _unfinished(self, search: _Search, runs: dict[str, Found]) -> bool:
        """Whether a run of the sweep goes on, or is about to start."""
        waited = {
            run for agent in search.agents.values() for run in agent.runs if time.time() - agent.beat < SILENT_AFTER
        }
        return any(f.run.state not in ENDED for f in runs.values()) or any(run not in runs for run in waited)

    def _left(self, current: Plan, search: _Search, runs: dict[str, Found]) -> bool:
        """Whether there is something to hand out."""
        lost = self._lost(search, runs)
        if current.run_cap is not None and len(runs.keys() | search.handed.keys()) - len(lost) >= current.run_cap:
            return False
        if current.method != "grid" or lost:
            return True
        self._look_at_runs(current, search, runs)
        while search.next_number < current.space.size:
            if canonical(current.space.combination(search.next_number)) not in search.done:
                return True
            search.next_number += 1
        return False

    def _next(
        self, sweep: Held[Sweep], current: Plan, search: _Search, agent: Agent, runs: dict[str, Found]
    ) -> Handed | None:
        """The next run, on the disk; None if there is none."""
        if not self._left(current, search, runs):
            return None
        run_id = "".join(secrets.choice(_LETTERS) for _ in range(8))
        lost = self._lost(search, runs)
        if lost:
            new = replace(lost[0], run_id=run_id, agent=agent.id)
            del search.handed[lost[0].run_id]
        elif current.method == "grid":
            number = search.next_number
            new = Handed(run_id, agent.id, current.space.combination(number), number=number)
            search.next_number += 1
        else:
            new = self._drawn(current, search, agent, run_id, runs)
        self._journal(
            sweep.rid,
            {"run": run_id, "of": agent.id, "params": new.params, "number": new.number, "point": new.point}
            | ({"instead": lost[0].run_id} if lost else {}),
        )
        self._take(search, new)
        agent.runs = {run_id}
        return new

    def _drawn(self, current: Plan, search: _Search, agent: Agent, run_id: str, runs: dict[str, Found]) -> Handed:
        point = [float(u) for u in self._rng.random(len(current.space.dimensions))]
        if current.method == "bayes":
            ended = [(h.point, runs[h.run_id]) for h in search.handed.values() if h.point and h.run_id in runs]
            seen = [(p, y) for p, f in ended if f.run.state in ENDED and (y := self._loss(current, f)) is not None]
            point = next_by_model(current.space, [p for p, _ in seen], [y for _, y in seen], self._rng)
        return Handed(run_id, agent.id, current.space.at(point), point=point)

    def _loss(self, current: Plan, found: Found) -> float | None:
        """What a run has reached, smaller being better."""
        value = metric_of(self._home.whole_look().whole(found), current.metric)
        return None if value is None else value if current.minimize else -value

    def _to_stop(
        self, current: Plan, search: _Search, runs: dict[str, Found], going_on: set[str], look: Look
    ) -> list[str]:
        """Of an agent's runs, those that somebody stopped here or that do too badly."""
        live = self._home.live
        asked = [r for r in going_on if r in runs and live and (at := live.get(runs[r].rid)) and at.stop_asked]
        if asked or not current.early or not going_on & runs.keys():
            return asked
        metric = current.metric or ""
        return hyperband.losers(current.early, metric, current.minimize, runs, going_on, look, search.reached)

    def _look_at_runs(self, current: Plan, search: _Search, runs: dict[str, Found]) -> None:
        """Once after a start: combinations of runs that no agent was told to make (prior runs)."""
        if search.found_runs:
            return
        search.found_runs = True
        names = {d.path[0] for d in current.space.dimensions}
        others = [f.rid for run, f in runs.items() if run not in search.handed]
        for found in self._home.whole_look().runs(others, whole=True):
            config = parse_row(found.run.config or "{}").items()
            values = {k: v.get("value", v) if isinstance(v, dict) else v for k, v in config if k in names}
            search.done.add(canonical(values))

    def attached(self, rid: int) -> None:
        """Runs were attached to the sweep: look at all of them again."""
        with self._lock:
            self._search(rid).found_runs = False

    # -- the journal --------------------------------------------------------------------------------------

    def _search(self, rid: int) -> _Search:
        if rid not in self._searches:
            found = self._searches[rid] = _Search()
            for line in self._lines(rid):
                if "agent" in line:
                    agent = Agent(line["agent"], line["host"], line["at"], line["user"], time.time())
                    found.agents[agent.id] = agent
                else:
                    found.handed.pop(line.get("instead", ""), None)
                    self._take(found, Handed(line["run"], line["of"], line["params"], line["number"], line["point"]))
        return self._searches[rid]

    def _take(self, search: _Search, handed: Handed) -> None:
        search.handed[handed.run_id] = handed
        if handed.number is not None:
            search.done.add(canonical(handed.params))

    def _lines(self, rid: int) -> Iterator[dict[str, Any]]:
        path = self._folder / f"{rid}.jsonl"
        if not self._home.read_only:
            cut_torn_line(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            yield parse_row(line)

    def _journal(self, rid: int, line: dict[str, Any]) -> None:
        self._home.writable()
        with explained("writing down what a sweep's agents are told"):
            new = not self._folder.exists()
            self._folder.mkdir(exist_ok=True)
            fd = os.open(self._folder / f"{rid}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, dumps(line) + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
            if new:
                sync_folder(self._folder.parent)
            sync_folder(self._folder)


def of_sweep(look: Look, entity: str, project: str, sweep_id: str) -> list[Found]:
    """The runs of a sweep, oldest first, without their documents."""
    from mirror.query.filters import to_sql

    rids = look.listing(entity, project, to_sql(json.dumps({"sweep": sweep_id})), "created_at")
    return look.runs(rids, whole=False)


def metric_of(found: Found, name: str | None) -> float | None:
    """A number of a run's summary; nested ones have dotted names."""
    value: Any = parse_row(found.run.summary or "{}")
    if name is None:
        return None
    if name in value:
        value = value[name]
    else:
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
