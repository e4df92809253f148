"""Which kinds of things a project has at all: one small question instead of four, for most projects have few."""

from __future__ import annotations

from mirror.errors import TransientSourceError
from mirror.wandb.client import Client, Fields, nodes
from mirror.wandb.reports import TYPES

_ONE = "edges { node { id } } pageInfo { hasNextPage }"


def kinds_there(client: Client, entity: str, project: str) -> dict[str, bool]:
    """Whether a project has any `sweeps`, `artifacts` and `reports`; a kind the server says nothing of is left out."""

    def build(f: Fields) -> str:
        parts = []
        if f.knows("Project", "sweeps"):
            parts.append(f"sweeps(first: 1) {{ {_ONE} }}")
        if f.knows("Project", "artifactTypes"):
            parts.append(f"artifacts: artifactTypes(first: 1) {{ {_ONE} }}")
        if f.knows("Project", "allViews"):
            parts += [
                f'reports{i}: allViews(viewType: "{kind}", first: 1) {{ {_ONE} }}' for i, kind in enumerate(TYPES)
            ]
        return (
            "query ProjectItems($entity: String!, $project: String!) {"
            f" project(name: $project, entityName: $entity) {{ name entityName {' '.join(parts)} }} }}"
        )

    data, _ = client.ask(build, {"entity": entity, "project": project})
    if data.get("project") is None:
        raise TransientSourceError("the server shows no such project any more: sync again")
    found: dict[str, bool] = {}
    for name, connection in data["project"].items():
        if isinstance(connection, dict) and "edges" in connection:
            more = (connection.get("pageInfo") or {}).get("hasNextPage")
            kind = name.rstrip("0123456789")
            found[kind] = found.get(kind, False) or bool(more) or next(nodes(connection), None) is not None
    return found
