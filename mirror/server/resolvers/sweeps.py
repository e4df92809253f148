"""Sweeps and their agents: what `wandb.sweep`, `wandb.agent` and `api.sweep` ask."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from graphql import GraphQLResolveInfo

from mirror.errors import MirrorError, NotFoundError, UsageError
from mirror.records import Sweep
from mirror.server import held, ids
from mirror.server.access.limits import Refused
from mirror.server.context import Context, ProjectNode, RunNode, context
from mirror.server.held import Held
from mirror.server.resolvers.edits import checked_part, make_project
from mirror.server.resolvers.people import user
from mirror.server.resolvers.projects import condition, runs_of
from mirror.server.rows import parse_row
from mirror.server.sweeps import sweeps
from mirror.server.wire import paged, wire_time


@dataclass(frozen=True)
class SweepNode:
    """A sweep as the source of the fields of type `Sweep`."""

    held: Held[Sweep]

    @property
    def item(self) -> Sweep:
        return self.held.item

    @property
    def project(self) -> ProjectNode:
        return ProjectNode(self.item.key.entity, self.item.key.project)


@dataclass(frozen=True)
class AgentNode:
    agent: sweeps.Agent
    sweep: SweepNode


def _plan(node: SweepNode) -> sweeps.Plan | None:
    """None for a configuration that cannot be searched here: sweeps of other servers may have any."""
    try:
        return sweeps.plan(node.item.config or "")
    except MirrorError:
        return None


def _sweep(node: ProjectNode, info: GraphQLResolveInfo, sweepName: str) -> SweepNode | None:
    look = context(info).look
    found = held.sweep(look, node.entity, node.name, sweepName)
    return SweepNode(context(info).sweeps.settled(found, look)) if found else None


def _sweeps(
    node: ProjectNode, info: GraphQLResolveInfo, first: int | None = None, after: str | None = None, **_: Any
) -> dict[str, Any]:
    ctx = context(info)
    found = held.in_project(ctx.look, Sweep, node.entity, node.name)
    page = paged(found, first, after)
    for edge in page["edges"]:
        edge["node"] = SweepNode(ctx.sweeps.settled(edge["node"], ctx.look))
    return page


def _of_run(node: RunNode, info: GraphQLResolveInfo) -> SweepNode | None:
    if not node.found.run.sweep:
        return None
    return _sweep(ProjectNode(node.key.entity, node.key.project), info, node.found.run.sweep)


def _runs(
    node: SweepNode,
    info: GraphQLResolveInfo,
    filters: str | None = None,
    order: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    both: list[Any] = [{"sweep": node.item.sweep_id}]
    if filters and filters.strip() not in ("", "{}", "null"):
        both.append(json.loads(filters))
    return runs_of(node.project, info, json.dumps({"$and": both}), order, first, after)


def _run_count(node: SweepNode, info: GraphQLResolveInfo) -> int | None:
    key = node.item.key
    found = sweeps.of_sweep(context(info).look, key.entity, key.project, node.item.sweep_id)
    return len(found) if found or key.source == context(info).home.source else node.item.run_count


def _best_loss(node: SweepNode, info: GraphQLResolveInfo) -> float | None:
    """The best value of the metric in the runs' summaries."""
    if node.item.key.source != context(info).home.source:
        return node.item.best_loss
    plan = _plan(node)
    if plan is None or plan.metric is None:
        return None
    ctx, key = context(info), node.item.key
    rids = [f.rid for f in sweeps.of_sweep(ctx.look, key.entity, key.project, node.item.sweep_id)]
    values = [v for f in ctx.look.runs(rids) if (v := sweeps.metric_of(f, plan.metric)) is not None and v == v]
    return (min if plan.minimize else max)(values, default=None)


# -- agents -----------------------------------------------------------------------------------------------


def _agents(node: SweepNode, info: GraphQLResolveInfo, **_: Any) -> dict[str, Any]:
    made = [AgentNode(a, node) for a in context(info).sweeps.agents(node.held.rid)]
    return {"edges": [{"node": n} for n in made]}


def _agent(node: SweepNode, info: GraphQLResolveInfo, agentName: str) -> AgentNode | None:
    for agent in context(info).sweeps.agents(node.held.rid):
        if agentName in (agent.id, _name(agent)):
            return AgentNode(agent, node)
    return None


def _name(agent: sweeps.Agent) -> str:
    parts = ids.decode(agent.id, "Agent", 2)
    return parts[1] if parts else agent.id


def _agent_runs(
    node: AgentNode,
    info: GraphQLResolveInfo,
    first: int | None = None,
    last: int | None = None,
    after: str | None = None,
    before: str | None = None,
    order: str | None = None,
) -> dict[str, Any]:
    names = context(info).sweeps.handed_to(node.sweep.held.rid, node.agent.id)
    return runs_of(node.sweep.project, info, json.dumps({"name": {"$in": names}}), order, first or last, after)


def _heard(node: AgentNode, _: GraphQLResolveInfo) -> str | None:
    return wire_time(datetime.fromtimestamp(node.agent.beat, timezone.utc))


def _agent_state(node: AgentNode, info: GraphQLResolveInfo) -> str:
    if time.time() - node.agent.beat > sweeps.SILENT_AFTER:
        return "FINISHED"
    return "RUNNING"


# -- changing ---------------------------------------------------------------------------------------------


def _given(input: dict[str, Any]) -> dict[str, Any]:
    names = {"config": "config", "description": "description", "displayName": "name", "state": "state"}
    found = {ours: input[theirs] for theirs, ours in names.items() if input.get(theirs) is not None}
    if "state" in found:
        found["state"] = found["state"].upper()
        if found["state"] not in sweeps.STATES:
            raise UsageError(f"`{input['state']}` is no state of a sweep: use one of {', '.join(sweeps.STATES)}")
    if input.get("controller") not in (None, "", "{}", "null"):
        raise UsageError("this server searches itself: leave `controller: {type: local}` out of the sweep")
    return found


def _upsert(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    ctx.home.writable()
    fields = _given(input)
    if "config" in fields:
        document = sweeps.plan(fields["config"]).document
        if (document.get("controller") or {}).get("type") == "local":
            raise UsageError("this server searches itself: leave `controller: {type: local}` out of the sweep")
    if input.get("id"):
        found = held.by_id(ctx.look, Sweep, input["id"]) or _named(ctx, input)
        if found is None:
            raise NotFoundError(f"there is no sweep with the id `{input['id'][:100]}` here")
        found = ctx.sweeps.change(found, fields)
    else:
        if "config" not in fields:
            raise UsageError("a new sweep needs a `config`")
        entity = checked_part("entity", input.get("entityName") or ctx.entity)
        project = checked_part("project", input.get("projectName") or "uncategorized")
        make_project(ctx, entity, project)
        found = ctx.sweeps.create(entity, project, fields, ctx.username)
    ctx.look_again()
    if input.get("priorRunsFilters"):
        _attach(ctx, found, input["priorRunsFilters"])
    if fields.get("state") == sweeps.CANCELED:
        _stop_runs(ctx, found)
    return {
        "sweep": SweepNode(found),
        "configValidationWarnings": [],
        "inserted": not input.get("id"),
        "clientMutationId": input.get("clientMutationId"),
    }


def _named(ctx: Context, input: dict[str, Any]) -> Held[Sweep] | None:
    """Some clients send a sweep's name as its id."""
    entity, project = input.get("entityName") or ctx.entity, input.get("projectName") or ""
    return held.sweep(ctx.look, entity, project, input["id"])


def _attach(ctx: Context, found: Held[Sweep], filters: str) -> None:
    """Make runs that are there already runs of the sweep."""
    key, look = found.item.key, ctx.look
    for run in look.runs(look.listing(key.entity, key.project, condition(filters), "created_at")):
        ctx.home.edit(run, {"sweep": found.item.sweep_id})
    ctx.sweeps.attached(found.rid)
    ctx.look_again()


def _stop_runs(ctx: Context, found: Held[Sweep]) -> None:
    """Tell the runs of a canceled sweep to stop."""
    _pen, live = ctx.home.writable()
    key = found.item.key
    for run in sweeps.of_sweep(ctx.look, key.entity, key.project, found.item.sweep_id):
        with live.held(run.rid) as at:
            if at is not None:
                at.stop_asked = True


def _create_agent(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    ctx.home.writable()
    entity, project = input.get("entityName") or ctx.entity, input.get("projectName") or ""
    found = held.sweep(ctx.look, entity, project, input["sweep"])
    if found is None:
        raise NotFoundError(f"there is no sweep `{entity}/{project}/{input['sweep']}` here")
    agent = ctx.sweeps.register(found, input["host"], ctx.username)
    return {"agent": AgentNode(agent, SweepNode(found)), "clientMutationId": input.get("clientMutationId")}


def _heartbeat(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    parts = ids.decode(input["id"], "Agent", 2)
    found = None
    if parts and parts[0].isdigit():
        found = next(iter(held.items(ctx.look, Sweep, "rid = ?", (int(parts[0]),))), None)
    if found is None:
        raise Refused(404, "there is no such agent here: its sweep may have been deleted")
    try:
        states = parse_row(input.get("runState") or "{}")
    except ValueError:
        raise UsageError(f"`runState` must be a JSON object of run ids, not `{input['runState'][:80]}`") from None
    going_on = {name for name, state in states.items() if state}
    commands = ctx.sweeps.beat(found, input["id"], going_on, ctx.look)
    agent = next((a for a in ctx.sweeps.agents(found.rid) if a.id == input["id"]), None)
    return {
        "agent": AgentNode(agent, SweepNode(found)) if agent else None,
        "commands": json.dumps(commands),
        "clientMutationId": input.get("clientMutationId"),
    }


RESOLVERS: dict[str, dict[str, Any]] = {
    "Project": {
        "sweep": _sweep,
        "sweeps": _sweeps,
        "totalSweeps": lambda node, info: len(held.in_project(context(info).look, Sweep, node.entity, node.name)),
    },
    "Run": {"sweep": _of_run},
    "Sweep": {
        "id": lambda node, info: held.id_on_wire(context(info).look, node.item),
        "name": lambda node, _: node.item.sweep_id,
        "displayName": lambda node, _: node.item.name,
        "method": lambda node, _: (plan := _plan(node)) and plan.method,
        "state": lambda node, _: node.item.state,
        "description": lambda node, _: node.item.description,
        "config": lambda node, _: node.item.config,
        "bestLoss": _best_loss,
        "createdAt": lambda node, _: wire_time(node.item.created_at),
        "updatedAt": lambda node, _: wire_time(node.item.updated_at),
        "heartbeatAt": lambda node, info: wire_time(_last_beat(node, info) or node.item.updated_at),
        "runCount": _run_count,
        "runCountExpected": lambda node, _: (plan := _plan(node)) and plan.expected,
        "earlyStopJobRunning": lambda *_: False,
        "user": lambda node, info: user(node.item.username, context(info)) if node.item.username else None,
        "project": lambda node, _: node.project,
        "runs": _runs,
        "agents": _agents,
        "agent": _agent,
    },
    "Agent": {
        "id": lambda node, _: node.agent.id,
        "name": lambda node, _: _name(node.agent),
        "host": lambda node, _: node.agent.host,
        "state": _agent_state,
        "createdAt": lambda node, _: node.agent.created_at,
        "heartbeatAt": _heard,
        "totalRuns": lambda node, info: len(context(info).sweeps.handed_to(node.sweep.held.rid, node.agent.id)),
        "runs": _agent_runs,
    },
    "Mutation": {"upsertSweep": _upsert, "createAgent": _create_agent, "agentHeartbeat": _heartbeat},
}


def _last_beat(node: SweepNode, info: GraphQLResolveInfo) -> datetime | None:
    beats = [a.beat for a in context(info).sweeps.agents(node.held.rid)]
    return datetime.fromtimestamp(max(beats), timezone.utc) if beats else None
