"""Projects and their listings of runs."""

from __future__ import annotations

import hashlib
from typing import Any

from graphql import GraphQLResolveInfo

from mirror.records import Project
from mirror.server import ids
from mirror.server.context import Context, ProjectNode, RunNode, argument, context, selected
from mirror.server.resolvers.people import entity, user
from mirror.server.shelf import EPOCH
from mirror.server.wire import connection, paged, wire_time

_BY_CREATION = ("+created_at", "created_at", "+createdAt", "createdAt")
HEAVY_FIELDS = {"config", "wandbConfig", "summaryMetrics", "systemMetrics", "historyKeys"}


def internal_id(entity_name: str, name: str) -> int:
    """A number for a project that fits GraphQL's Int (`deleteFiles` takes it as one)."""
    digest = hashlib.blake2b(f"{entity_name}/{name}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF


def _held(node: ProjectNode, info: GraphQLResolveInfo) -> Project:
    ctx = context(info)
    found = ctx.look.projects(node.entity, node.name)
    return found[0] if found else Project(ctx.home.source, node.entity, node.name)


def _project(
    _: None,
    info: GraphQLResolveInfo,
    name: str | None = None,
    entityName: str | None = None,
    **__: Any,
) -> ProjectNode | None:
    ctx = context(info)
    node = ProjectNode(entityName or ctx.entity, name or "")
    below = selected(info)
    runs = [argument(info, f, "name") for f in below if f.name.value in ("run", "bucket")]
    if runs:
        whole = any(f.name.value in HEAVY_FIELDS for f in below)
        ctx.look.prefetch(node.entity, node.name, [r for r in runs if r], whole=whole)
        if any(ctx.look.has_run(node.entity, node.name, r) for r in runs if r):
            return node
    return node if ctx.look.has_project(node.entity, node.name) else None


def _projects(
    _: None,
    info: GraphQLResolveInfo,
    entityName: str | None = None,
    first: int | None = None,
    after: str | None = None,
    **__: Any,
) -> dict[str, Any]:
    ctx = context(info)
    wanted = entityName or ctx.entity
    return paged([ProjectNode(wanted, p.name) for p in ctx.look.projects(wanted)], first, after)


def _projects_of_entity(node: dict[str, Any], info: GraphQLResolveInfo, **page: Any) -> dict[str, Any]:
    return _projects(None, info, node["name"], **page)


def condition(filters: str | None) -> str:
    """A filter as SQL over `runs`."""
    if filters is None or filters.strip() in ("", "{}", "null"):
        return "true"
    from mirror.query.filters import to_sql

    return to_sql(filters)


def ordering(order: str | None) -> str:
    from mirror.query.filters import order_sql

    return order_sql(order or "+created_at")


def _listing(ctx: Context, node: ProjectNode, filters: str | None, order: str | None) -> tuple[tuple[Any, ...], Any]:
    where, look = condition(filters), ctx.look
    state = (look.shelf.number, look.live_version, look.sees(node.entity), node.entity, node.name, where, order)
    if where == "true" and order in (None, "", *_BY_CREATION):
        return state, lambda: look.by_creation(node.entity, node.name)
    by = ordering(order)
    return state, lambda: look.listing(node.entity, node.name, where, by)


def _run_count(node: ProjectNode, info: GraphQLResolveInfo, filters: str | None = None) -> int:
    ctx = context(info)
    if condition(filters) == "true":
        return ctx.look.run_count(node.entity, node.name)
    return len(ctx.listings.listed(*_listing(ctx, node, filters, None))[1])


def runs_of(
    node: ProjectNode,
    info: GraphQLResolveInfo,
    filters: str | None = None,
    order: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    ctx = context(info)
    page = ctx.listings.page(*_listing(ctx, node, filters, order), first, after)
    whole = any(f.name.value in HEAVY_FIELDS for f in selected(info))
    listed = ctx.look.runs([rid for _, rid in page.items], whole=whole)
    ctx.look.together.extend(listed)
    found = {f.rid: f for f in listed}
    shown = [(cursor, RunNode(found[rid], ctx.look)) for cursor, rid in page.items if rid in found]
    made = connection([n for _, n in shown], [c for c, _ in shown], more=page.more)
    if page.items:
        made["pageInfo"]["endCursor"] = page.items[-1][0]
    return made | {"totalCount": page.total}


def _run(node: ProjectNode, info: GraphQLResolveInfo, name: str, **_: Any) -> RunNode | None:
    look = context(info).look
    found = look.run(node.entity, node.name, name)
    return RunNode(found, look) if found else None


def _created(node: ProjectNode, info: GraphQLResolveInfo) -> str | None:
    """The SDK (0.31) cannot list projects if one has no such time; one that is not known is long ago."""
    return wire_time(_held(node, info).created_at or EPOCH)


RESOLVERS: dict[str, dict[str, Any]] = {
    "Query": {
        "project": _project,
        "model": _project,
        "projects": _projects,
        "models": _projects,
    },
    "Entity": {"projects": _projects_of_entity},
    "Project": {
        "id": lambda node, _: ids.encode("Project", "v1", node.name, node.entity),
        "internalId": lambda node, _: str(internal_id(node.entity, node.name)),
        "entityName": lambda node, _: node.entity,
        "entity": lambda node, _: entity(node.entity),
        "description": lambda node, info: _held(node, info).description,
        "access": lambda *_: "PRIVATE",
        "createdAt": _created,
        "updatedAt": lambda *_: None,
        "isBenchmark": lambda *_: False,
        "readOnly": lambda node, info: context(info).home.read_only,
        "user": lambda node, info: user(context(info).username, context(info)),
        "totalRuns": _run_count,
        "runCount": _run_count,
        "run": _run,
        "bucket": _run,
        "runs": runs_of,
    },
}
