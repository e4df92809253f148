"""Which artifacts runs logged and used, as the runs tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.wandb.client import Client, Fields, nodes
from mirror.wandb.named import Named
from mirror.wandb.paging import read_all

_RUNS_AT_ONCE = 20
_PAGE = 50
_KINDS = {"logged": "outputArtifacts", "used": "inputArtifacts"}


@dataclass(frozen=True)
class LinkedArtifact:
    """A version that a run logged or used; `path` is `entity/project/collection:vN`, `logged_by` entity, project and id
    of the run that made it: who logs once more what is there already makes no version."""

    storage_id: str
    path: str
    type: str
    logged_by: tuple[str, str, str] | None = None


Links = Mapping[str, Sequence[LinkedArtifact] | None]
"""By `logged` and `used`; None if the server does not tell (all of) them."""


def fetch_links(client: Client, entity: str, project: str, run_ids: Sequence[str]) -> dict[str, Links]:
    """What these runs of a project logged and used, committed versions alone; runs that are not there are left out.
    Raises a SourceError."""
    found: dict[str, Links] = {}
    for start in range(0, len(run_ids), _RUNS_AT_ONCE):
        part = run_ids[start : start + _RUNS_AT_ONCE]
        said = _ask(client, entity, project, part)
        for run_id, run in zip(part, said, strict=True):
            if run is not None:
                links = {kind: _links(client, entity, project, run_id, run, name) for kind, name in _KINDS.items()}
                found[run_id] = links
    return found


def _ask(client: Client, entity: str, project: str, run_ids: Sequence[str]) -> list[dict[str, Any] | None]:
    named = Named(run_ids)

    def build(f: Fields) -> str:
        lists = f.of("Run", [f"{name}(first: {_PAGE}) {{ {_versions(f)} }}" for name in _KINDS.values()])
        return (
            f"query RunLinks($entity: String!, $project: String!{named.declared}) {{"
            f" project(name: $project, entityName: $entity) {{ {named.asked(f'id {lists}')} }} }}"
        )

    data, _ = client.ask(build, {"entity": entity, "project": project, **named.variables})
    return named.answers(data.get("project") or {})


def _versions(f: Fields) -> str:
    fields = f.of(
        "Artifact",
        (
            "state",
            "versionIndex",
            "artifactType { name }",
            "artifactSequence { name project { name entityName } }",
            "createdBy { __typename ... on Run { name project { name entityName } } }",
        ),
    )
    return f"edges {{ node {{ id {fields} }} }} pageInfo {{ endCursor hasNextPage }}"


def _links(
    client: Client, entity: str, project: str, run_id: str, run: Mapping[str, Any], name: str
) -> list[LinkedArtifact] | None:
    page = run.get(name)
    if not isinstance(page, dict):
        return None
    found = list(nodes(page))
    if (page.get("pageInfo") or {}).get("hasNextPage"):

        def build(f: Fields) -> str:
            return (
                "query LinksOfRun($entity: String!, $project: String!, $run: String!, $first: Int!, $after: String) {"
                " project(name: $project, entityName: $entity) { run(name: $run) {"
                f" {name}(first: $first, after: $after) {{ {_versions(f)} }} }} }} }}"
            )

        where = {"entity": entity, "project": project, "run": run_id}
        every = read_all(client, build, where, ("project", "run", name), first=_PAGE)
        if not every.complete:
            return None
        found = every.nodes
    return [_link(node) for node in found if node.get("state") in (None, "COMMITTED")]


def _link(node: Mapping[str, Any]) -> LinkedArtifact:
    sequence, maker = node.get("artifactSequence") or {}, node.get("createdBy") or {}
    path = f"{'/'.join(_place(sequence))}/{sequence.get('name')}:v{node.get('versionIndex')}"
    by = (*_place(maker), str(maker.get("name"))) if maker.get("__typename") == "Run" else None
    return LinkedArtifact(str(node["id"]), path, str((node.get("artifactType") or {}).get("name")), by)


def _place(node: Mapping[str, Any]) -> tuple[str, str]:
    where = node.get("project") or {}
    return str(where.get("entityName")), str(where.get("name"))
