"""Reports and saved workspaces: `api.reports`, and what `wandb-workspaces` saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphql import GraphQLResolveInfo

from mirror.errors import NotFoundError, UsageError
from mirror.records import Report
from mirror.server import held, reports
from mirror.server.context import ProjectNode, context
from mirror.server.held import Held
from mirror.server.resolvers.edits import checked_part, make_project
from mirror.server.resolvers.people import user
from mirror.server.wire import paged, wire_time

_FIELDS = {
    "name": "name",
    "displayName": "title",
    "description": "description",
    "type": "type",
    "spec": "spec",
}
"""Inputs of `upsertView` that are attributes of a report. A null leaves the attribute as it is."""


@dataclass(frozen=True)
class ReportNode:
    """A report as the source of the fields of type `View`."""

    held: Held[Report]

    @property
    def item(self) -> Report:
        return self.held.item


def _all(
    node: ProjectNode,
    info: GraphQLResolveInfo,
    viewType: str | None = None,
    viewName: str | None = None,
    userName: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    found = [
        ReportNode(h)
        for h in held.in_project(context(info).look, Report, node.entity, node.name)
        if viewType in (None, h.item.type)
        and userName in (None, h.item.username)
        # A report's link carries its title and its id, the SDK asks for reports by either name.
        and viewName in (None, h.item.name, h.item.title)
    ]
    return paged(found, first, after)


def _view(_: None, info: GraphQLResolveInfo, id: str | None = None) -> ReportNode | None:
    look = context(info).look
    found = held.by_id(look, Report, id) or held.by_id(look, Report, _padded(id)) if id else None
    return ReportNode(found) if found else None


def _padded(text: str) -> str:
    """Clients cut an id out of a link, where its padding is left out."""
    bare = text.rstrip("=")
    return bare + "=" * (-len(bare) % 4)


def _upsert(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    ctx.home.writable()
    fields = {ours: input[theirs] for theirs, ours in _FIELDS.items() if input.get(theirs) is not None}
    if "spec" in fields:
        reports.checked_spec(fields["spec"])
    if input.get("id"):
        found = held.by_id(ctx.look, Report, input["id"])
        if found is None:
            raise NotFoundError(f"there is no report with the id `{input['id'][:100]}` here")
        found = reports.change(ctx.home, found, fields)
    else:
        if "spec" not in fields:
            raise UsageError("a new report needs a `spec`")
        entity = checked_part("entity", input.get("entityName") or ctx.entity)
        project = checked_part("project", input.get("projectName") or "uncategorized")
        make_project(ctx, entity, project)
        known = held.in_project(ctx.look, Report, entity, project)
        same = [h for h in known if h.item.name == fields.get("name") and h.item.type == fields.get("type", "runs")]
        if same:
            found = reports.change(ctx.home, same[0], fields)
            ctx.look_again()
            return {"view": ReportNode(found), "inserted": False, "clientMutationId": input.get("clientMutationId")}
        found = reports.make(ctx.home, entity, project, ctx.username, fields)
    ctx.look_again()
    inserted = not input.get("id")
    return {"view": ReportNode(found), "inserted": inserted, "clientMutationId": input.get("clientMutationId")}


def _delete(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    node = _view(None, info, input.get("id"))
    if node is None:
        raise NotFoundError(f"there is no report with the id `{(input.get('id') or '')[:100]}` here")
    reports.delete(ctx.home, node.held)
    ctx.look_again()
    return {"success": True, "pendingDrafts": False, "clientMutationId": input.get("clientMutationId")}


RESOLVERS: dict[str, dict[str, Any]] = {
    "Query": {"view": _view},
    "Project": {"allViews": _all},
    "View": {
        "id": lambda node, info: held.id_on_wire(context(info).look, node.item),
        "name": lambda node, _: node.item.name,
        "displayName": lambda node, _: node.item.title,
        "description": lambda node, _: node.item.description,
        "type": lambda node, _: node.item.type,
        "spec": lambda node, _: node.item.spec,
        "user": lambda node, info: user(node.item.username or "", context(info)),
        "project": lambda node, _: ProjectNode(node.item.key.entity, node.item.key.project),
        "createdAt": lambda node, _: wire_time(node.item.created_at),
        "updatedAt": lambda node, _: wire_time(node.item.updated_at),
        "viewCount": lambda *_: 0,
    },
    "Mutation": {"upsertView": _upsert, "deleteView": _delete},
}
