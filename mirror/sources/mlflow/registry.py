"""Versions of registered models as artifacts of type `model`, in the project of the run that made them."""

from __future__ import annotations

import json

from mirror.records import Artifact, ArtifactCollection, Item, ItemKey, RunKey
from mirror.sources.mlflow.document import pairs, when
from mirror.sources.mlflow.road import Json


def by_run(versions: list[Json]) -> dict[str, list[Json]]:
    """Versions by the run that made them; one without a run belongs to no project and is left out."""
    found: dict[str, list[Json]] = {}
    for version in sorted(versions, key=lambda v: (v["name"], int(v["version"]))):
        if run_id := version.get("run_id"):
            found.setdefault(run_id, []).append(version)
    return found


def items(key: RunKey, versions: list[Json]) -> list[Item]:
    found: list[Item] = []
    for version in versions:
        name, number = version["name"], int(version["version"])
        found.append(
            ArtifactCollection(
                ItemKey(key.source, f"model/{key.project}/{name}", key.entity, key.project),
                type="model",
                collection=name,
            )
        )
        found.append(
            Artifact(
                key=ItemKey(key.source, f"model/{name}/{number}", key.entity, key.project),
                type="model",
                collection=name,
                version=number,
                state=version.get("status"),
                aliases=tuple(version.get("aliases") or ()),
                tags=tuple(f"{k}={v}" for k, v in pairs(version.get("tags") or ()).items()),
                description=version.get("description") or None,
                metadata=json.dumps(
                    {n: version[n] for n in ("source", "current_stage", "run_link") if version.get(n)}, sort_keys=True
                ),
                run_entity=key.entity,
                run_project=key.project,
                run_id=key.run_id,
                username=version.get("user_id") or None,
                created_at=when(version.get("creation_timestamp")),
                updated_at=when(version.get("last_updated_timestamp")),
            )
        )
    return found
