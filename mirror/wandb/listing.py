"""All runs of a project by their light fields: what a plan is made from.

Traps of the real listing: pages may be empty without being the last, runs were seen twice and
not at all while big projects were paged, a cursor may stand still, heavy pages time out. So: ascending order
of creation, halved pages on trouble, de-duplication by storage id, a second pass in the opposite order when
fewer runs came than `runCount` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from mirror.errors import TransientSourceError
from mirror.records import ListedRun, Listing, Project, RunKey
from mirror.wandb.client import Client, Fields, next_cursor, nodes
from mirror.wandb.named import Named
from mirror.wandb.transport import BRIEF, NORMAL, RefusedQuery

LIGHT = (
    "displayName", "state", "tags", "group", "jobType", "notes", "description", "sweepName", "createdAt",
    "heartbeatAt", "updatedAt", "historyLineCount", "eventsLineCount", "logLineCount", "commit", "host",
)  # fmt: skip
"""Fields of Run that are cheap to list and together show whether a run has changed."""


def fingerprint(node: dict[str, Any]) -> str:
    """What the light fields of a run say, in 16 characters."""
    light = orjson.dumps([node.get(name) for name in LIGHT], default=str)
    return hashlib.blake2b(light, digest_size=8).hexdigest()


def key_of(project: Project, node: dict[str, Any]) -> RunKey:
    """Who a run is; entity and project as the server spells them, not as they were asked for."""
    return RunKey(project.source, str(node["id"]), project.entity, project.name, str(node["name"]))


def _listed(project: Project, node: dict[str, Any]) -> ListedRun:
    return ListedRun(
        key=key_of(project, node),
        fingerprint=fingerprint(node),
        history_lines=node.get("historyLineCount"),
        events_lines=node.get("eventsLineCount"),
        state=node.get("state"),
    )


_PROJECT = ("id", "name", "entityName", "description", "createdAt", "readOnly", "runCount")


def list_runs(
    client: Client,
    entity: str,
    project: str,
    *,
    filters: str | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Listing:
    """Every run of a project, or those that meet `filters` (JSON, judged by the server). `progress` hears how many
    runs came and how many there are."""
    found: dict[str, ListedRun] = {}
    first, count = _one_pass(client, entity, project, "+created_at", filters, found, progress)
    if first.project is None:
        return first
    note = first.note
    if count is not None and len(found) < count:
        second, count_then = _one_pass(client, entity, project, "-created_at", filters, found, progress)
        if second.project is not None:
            count, note = count_then, second.note
    if count is not None and len(found) != count:
        note = f"the listing shows {len(found)} runs, the server counts {count}"
    complete = count is not None and len(found) == count and note is None
    return Listing(first.project, list(found.values()), complete, note, everything=filters is None)


def _one_pass(
    client: Client,
    entity: str,
    project: str,
    order: str,
    filters: str | None,
    found: dict[str, ListedRun],
    progress: Callable[[int, int | None], None],
) -> tuple[Listing, int | None]:
    """Page through the runs once and add them to `found`; the result carries project and note only, and how many
    runs the server says there are."""

    def build(f: Fields) -> str:
        # A server's own count goes by the same filter, but the project's record tells of all its runs.
        declared, asked, count = (", $filters: JSONString", ", filters: $filters", "") if filters else ("", "", "")
        if filters and f.knows("Project", "runCount"):
            count = " matching: runCount(filters: $filters)"
        return (
            "query Runs($entity: String!, $project: String!, $first: Int!, $after: String, $order: String"
            f"{declared}) {{ project(name: $project, entityName: $entity) {{ {f.of('Project', _PROJECT)}{count}"
            f" runs(first: $first, after: $after, order: $order{asked}) {{ edges {{ cursor"
            f" node {{ id name {f.of('Run', LIGHT)} }} }} pageInfo {{ endCursor hasNextPage }} }} }} }}"
        )

    variables: dict[str, Any] = {"entity": entity, "project": project, "after": None, "order": order}
    if filters:
        variables["filters"] = filters
    cursors: set[str] = set()
    while True:
        smallest, first = client.page_size.smallest, client.page_size.size
        try:
            data, _ = client.ask(build, {**variables, "first": first}, patience=NORMAL if smallest else BRIEF)
        except (TransientSourceError, RefusedQuery):
            if smallest:
                raise
            client.probe()
            client.page_size.failed(first)
            continue
        client.page_size.went_well(first)
        node = data.get("project")
        if not isinstance(node, dict):
            return Listing(None), None
        shown = client.project_of(node, entity)
        count = node.get("matching") if filters else shown.run_count
        for run in nodes(node.get("runs")):
            found[str(run["id"])] = _listed(shown, run)
        progress(len(found), count)
        info = (node.get("runs") or {}).get("pageInfo") or {}
        cursor = next_cursor(node.get("runs"))
        if not info.get("hasNextPage"):
            return Listing(shown), count
        if cursor is None or cursor in cursors:
            return Listing(shown, note="the server's cursor does not advance: the listing was cut off"), count
        cursors.add(cursor)
        variables["after"] = cursor


def find_runs(client: Client, entity: str, project: str, run_ids: Sequence[str]) -> Listing:
    """These runs of a project only; runs that do not exist are missing from the result."""
    named = Named(run_ids)

    def build(f: Fields) -> str:
        asked = named.asked(f"id name {f.of('Run', LIGHT)}")
        return (
            f"query RunsByName($entity: String!, $project: String!{named.declared}) {{"
            f" project(name: $project, entityName: $entity) {{ {f.of('Project', _PROJECT)} {asked} }} }}"
        )

    data, _ = client.ask(build, {"entity": entity, "project": project, **named.variables})
    node = data.get("project")
    if not isinstance(node, dict):
        return Listing(None)
    shown = client.project_of(node, entity)
    return Listing(shown, [_listed(shown, run) for run in named.answers(node) if isinstance(run, dict)])
