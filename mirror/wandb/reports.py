"""The reports of a project (W&B calls them views), drafts that the key may read included."""

from __future__ import annotations

from typing import Any

from mirror.records import ItemKey, Report
from mirror.wandb.client import Client, Fields, when
from mirror.wandb.paging import Paged, read_all

TYPES = ("runs", "runs/draft")
_FIELDS = ("displayName", "description", "type", "spec", "user { username }", "createdAt", "updatedAt")
PAGE = 25
"""A report's content comes along, and may be long."""


def list_reports(client: Client, entity: str, project: str) -> tuple[list[Report], Paged]:
    """Every report of a project, with its content."""

    def build(f: Fields) -> str:
        return (
            "query Reports($entity: String!, $project: String!, $type: String, $first: Int!, $after: String) {"
            " project(name: $project, entityName: $entity) { name entityName"
            " allViews(viewType: $type, first: $first, after: $after) { edges {"
            f" node {{ id name {f.of('View', _FIELDS)} }} }} pageInfo {{ endCursor hasNextPage }} }} }} }}"
        )

    every = Paged()
    for kind in TYPES:
        variables = {"entity": entity, "project": project, "type": kind}
        found = read_all(client, build, variables, ("project", "allViews"), first=PAGE)
        every.nodes += found.nodes
        every.complete &= found.complete
    return [_report(client, entity, project, node) for node in every.nodes], every


def fetch_report(client: Client, entity: str, project: str, storage_id: str) -> Report | None:
    """A report by its storage id; None if there is none."""

    def build(f: Fields) -> str:
        return f"query Report($id: ID!) {{ view(id: $id) {{ id name {f.of('View', _FIELDS)} }} }}"

    data, _ = client.ask(build, {"id": storage_id})
    node = data.get("view")
    return _report(client, entity, project, node) if isinstance(node, dict) else None


def _report(client: Client, entity: str, project: str, node: dict[str, Any]) -> Report:
    return Report(
        key=ItemKey(client.source, str(node["id"]), entity, project),
        name=str(node.get("name") or ""),
        type=str(node.get("type") or "runs"),
        title=node.get("displayName"),
        description=node.get("description"),
        spec=node.get("spec"),
        username=(node.get("user") or {}).get("username"),
        created_at=when(node.get("createdAt")),
        updated_at=when(node.get("updatedAt")),
    )
