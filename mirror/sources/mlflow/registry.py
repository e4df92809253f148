"""Versions of registered models as artifacts of type `model`, in the project of the run that made them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from mirror.records import Artifact, ArtifactCollection, Item, ItemKey, RunKey
from mirror.sources.mlflow.document import pairs, when
from mirror.sources.mlflow.road import Json


@dataclass(frozen=True)
class Registered:
    """Versions by the run that made them, each with what is said of its `model`; `homeless` are those without a run,
    which belong to no project, and models without any version."""

    by_run: dict[str, list[Json]] = field(default_factory=dict)
    homeless: list[str] = field(default_factory=list)


def registered(models: list[Json], versions: list[Json]) -> Registered:
    found = Registered()
    by_name = {model["name"]: model for model in models}
    aliases: dict[tuple[str, str], set[str]] = {}
    for model in models:
        for alias in model.get("aliases") or ():
            aliases.setdefault((model["name"], str(alias["version"])), set()).add(alias["alias"])
    for version in sorted(versions, key=lambda v: (v["name"], int(v["version"]))):
        who = (version["name"], str(version["version"]))
        held = sorted({*(version.get("aliases") or ()), *aliases.get(who, ())})
        model = {n: v for n, v in by_name.get(who[0], {}).items() if n in _OF_A_MODEL and v}
        if run_id := version.get("run_id"):
            found.by_run.setdefault(run_id, []).append(version | {"aliases": held, "model": model})
        else:
            found.homeless.append(f"{who[0]} v{who[1]}")
    found.homeless.extend(sorted(by_name.keys() - {version["name"] for version in versions}))
    return found


_OF_A_MODEL = ("description", "tags", "creation_timestamp", "last_updated_timestamp")


def items(key: RunKey, versions: list[Json]) -> list[Item]:
    found: list[Item] = []
    for version in versions:
        name, number, model = version["name"], int(version["version"]), version["model"]
        found.append(
            ArtifactCollection(
                ItemKey(key.source, f"model/{key.project}/{name}", key.entity, key.project),
                type="model",
                collection=name,
                description=model.get("description"),
                tags=tuple(f"{k}={v}" for k, v in pairs(model.get("tags") or ()).items()),
                created_at=when(model.get("creation_timestamp")),
                updated_at=when(model.get("last_updated_timestamp")),
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
