"""The sweeps of a project."""

from __future__ import annotations

from typing import Any

from mirror.records import ItemKey, Sweep
from mirror.wandb.client import Client, Fields, when
from mirror.wandb.paging import Paged, read_all

_FIELDS = (
    "displayName", "description", "state", "config", "bestLoss", "runCount", "createdAt", "updatedAt",
    "user { username }",
)  # fmt: skip
PAGE = 100


def list_sweeps(client: Client, entity: str, project: str) -> tuple[list[Sweep], Paged]:
    """Every sweep of a project. Its runs are not read here: they name their sweep themselves."""

    def build(f: Fields) -> str:
        return (
            "query Sweeps($entity: String!, $project: String!, $first: Int!, $after: String) {"
            f" project(name: $project, entityName: $entity) {{ name entityName {f.of('Project', ['totalSweeps'])}"
            f" sweeps(first: $first, after: $after) {{ edges {{ node {{ id name {f.of('Sweep', _FIELDS)} }} }}"
            " pageInfo { endCursor hasNextPage } } } }"
        )

    variables = {"entity": entity, "project": project}
    found = read_all(client, build, variables, ("project", "sweeps"), first=PAGE, total="totalSweeps")
    return [_sweep(client, entity, project, node) for node in found.nodes], found


def _sweep(client: Client, entity: str, project: str, node: dict[str, Any]) -> Sweep:
    best = node.get("bestLoss")
    return Sweep(
        key=ItemKey(client.source, str(node["id"]), entity, project),
        sweep_id=str(node["name"]),
        name=node.get("displayName"),
        description=node.get("description"),
        state=node.get("state"),
        config=node.get("config"),
        best_loss=float(best) if isinstance(best, (int, float)) else None,
        run_count=node.get("runCount"),
        username=(node.get("user") or {}).get("username"),
        created_at=when(node.get("createdAt")),
        updated_at=when(node.get("updatedAt")),
    )
