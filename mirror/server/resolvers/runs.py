"""Attributes and documents of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from graphql import GraphQLResolveInfo

from mirror.records import Run
from mirror.server import ids
from mirror.server.context import ProjectNode, RunNode, context
from mirror.server.history import reading as history
from mirror.server.live import BEATING
from mirror.server.resolvers.people import user
from mirror.server.resolvers.projects import internal_id
from mirror.server.rows import dumps, parse_row
from mirror.server.wire import wire_time

Resolve = Callable[..., Any]


def run_id_on_wire(node: RunNode, info: GraphQLResolveInfo) -> str:
    key = node.key
    if key.source == context(info).home.source:
        return str(key.storage_id)
    return ids.mirrored_run_id(key.source, key.storage_id)


def _attribute(name: str) -> Resolve:
    return lambda node, _: getattr(node.found.run, name)


def _document(name: str) -> Resolve:
    return lambda node, _: getattr(node.whole.run, name)


def _time(name: str) -> Resolve:
    return lambda node, _: wire_time(getattr(node.found.run, name))


def _keyed(name: str) -> Resolve:
    """A JSON document, cut down to `keys` if they are given."""

    def resolve(node: RunNode, _: GraphQLResolveInfo, keys: list[str] | None = None) -> str | None:
        text: str | None = getattr(node.whole.run, name)
        if text is None:
            return "{}"
        if keys is None:
            return text
        held = parse_row(text)
        return dumps({k: held[k] for k in keys if k in held}).decode()

    return resolve


def _wandb_config(node: RunNode, _: GraphQLResolveInfo, keys: list[str] | None = None) -> str:
    """The `_wandb` part of the config. A run whose `t` is missing here never started, to the SDK."""
    held = parse_row(node.whole.run.config or "{}").get("_wandb")
    inner = held.get("value", held) if isinstance(held, dict) else {}
    if not isinstance(inner, dict):
        inner = {}
    return dumps(inner if keys is None else {k: inner[k] for k in keys if k in inner}).decode()


def _user(node: RunNode, info: GraphQLResolveInfo) -> dict[str, Any]:
    """A user without a name if none is known: the SDK (0.31) cannot load a run whose user is null."""
    run: Run = node.found.run
    known = user(run.username or "", context(info))
    return known | {"username": run.username, "name": run.user_name or run.username}


def _url(node: RunNode, info: GraphQLResolveInfo) -> str:
    key = node.key
    entity, project, run_id = (quote(part, safe="") for part in (key.entity, key.project, key.run_id))
    return f"{context(info).base_url}/{entity}/{project}/runs/{run_id}"


def _seconds(node: RunNode, _: GraphQLResolveInfo) -> int:
    run: Run = node.found.run
    if not (run.created_at and run.heartbeat_at):
        return 0
    return max(0, int((run.heartbeat_at - run.created_at).total_seconds()))


def _stopped(node: RunNode, info: GraphQLResolveInfo) -> bool:
    live = context(info).home.live
    held = live.get(node.found.rid) if live else None
    return bool(held and held.stop_asked)


RESOLVERS: dict[str, dict[str, Resolve]] = {
    "Run": {
        "id": run_id_on_wire,
        "internalId": lambda node, _: str(node.found.rid),
        "projectId": lambda node, _: internal_id(node.key.entity, node.key.project),
        "name": lambda node, _: node.key.run_id,
        "displayName": lambda node, _: node.found.run.name,
        "description": _attribute("description"),
        "notes": _attribute("notes"),
        "state": _attribute("state"),
        "stopped": _stopped,
        "tags": lambda node, _: list(node.found.run.tags),
        "group": _attribute("group"),
        "groupName": _attribute("group"),
        "jobType": _attribute("job_type"),
        "commit": _attribute("commit"),
        "host": _attribute("host"),
        "sweepName": _attribute("sweep"),
        "exitcode": _attribute("exit_code"),
        "shouldStop": _stopped,
        "failed": lambda node, _: node.found.run.state in ("failed", "crashed", "killed"),
        "running": lambda node, _: node.found.run.state in BEATING,
        "readOnly": lambda node, info: context(info).home.read_only or node.key.source != context(info).home.source,
        "createdAt": _time("created_at"),
        "updatedAt": lambda node, _: wire_time(node.found.run.updated_at or node.found.run.heartbeat_at),
        "heartbeatAt": _time("heartbeat_at"),
        "computeSeconds": _seconds,
        "user": _user,
        "project": lambda node, _: ProjectNode(node.key.entity, node.key.project),
        "url": _url,
        "config": _keyed("config"),
        "wandbConfig": _wandb_config,
        "summaryMetrics": _keyed("summary"),
        "systemMetrics": lambda node, _: history.system_summary(node.look, node.found),
        "historyKeys": lambda node, _: history.keys(node.look, node.found),
    },
}
