"""Projects in the store: their versions, those that are gone, and runs that were moved from one to another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mirror.records import Project
from mirror.store import segments
from mirror.store.catalog import Catalog, Known, iso, now
from mirror.store.schema import tables

if TYPE_CHECKING:
    from mirror.store.commit import Batch

_IDS_AT_ONCE = 500


@dataclass(frozen=True)
class KnownProject:
    """What the catalog knows of a project. `gen` is 0 for one that was never reached; `missing` counts how many times
    in a row its source said that there is no such project."""

    name: str
    gen: int = 0
    digest: str = ""
    missing: int = 0
    deleted: bool = False


def known_projects(catalog: Catalog, source: str, entity: str) -> dict[str, KnownProject]:
    """Every project of an entity, by name."""
    query = "select project, gen, digest, missing, deleted_at from projects where source = ? and entity = ?"
    rows = catalog.db.execute(query, [source, entity])
    return {name: KnownProject(name, gen, digest, missing, at is not None) for name, gen, digest, missing, at in rows}


def known_elsewhere(catalog: Catalog, source: str, storage_ids: Iterable[str]) -> dict[str, Known]:
    """The runs among these that the mirror holds, in whatever project, by storage id."""
    ids = list(storage_ids)
    found: dict[tuple[str, str], set[str]] = {}
    for start in range(0, len(ids), _IDS_AT_ONCE):
        part = ids[start : start + _IDS_AT_ONCE]
        marks = ",".join("?" * len(part))
        query = f"select entity, project, storage_id from runs where source = ? and storage_id in ({marks})"
        for entity, project, storage_id in catalog.db.execute(query, [source, *part]):
            found.setdefault((entity, project), set()).add(storage_id)
    return {
        storage_id: held
        for (entity, project), wanted in found.items()
        for storage_id, held in catalog.known(source, entity, project).items()
        if storage_id in wanted
    }


def put(catalog: Catalog, batch: Batch, project: Project) -> None:
    """Record a project that is there; nothing is written if it is held as it is."""
    held = known_projects(catalog, project.source, project.entity).get(project.name, KnownProject(project.name))
    new = hashlib.blake2b(repr(replace(project, run_count=None)).encode(), digest_size=12).hexdigest()
    if new != held.digest or held.deleted:
        _write(catalog, batch, project, held.gen + 1, new, None)
    elif held.missing:
        batch.later.append(lambda: _mark(catalog, project, 0, None))


def missed(catalog: Catalog, batch: Batch, project: Project) -> int:
    """Note that the source said there is no such project; returns how many times in a row it did."""
    held = known_projects(catalog, project.source, project.entity).get(project.name, KnownProject(project.name))
    batch.later.append(lambda: _mark(catalog, project, held.missing + 1, None))
    return held.missing + 1


def drop(catalog: Catalog, batch: Batch, project: Project) -> None:
    """Mark a project as deleted at its source. Its runs stay as they are."""
    held = known_projects(catalog, project.source, project.entity)[project.name]
    row = stored(catalog, project)
    if row is None or held.deleted:
        return
    whole = replace(
        project, storage_id=row["storage_id"], description=row["description"], created_at=row["created_at"],
        run_count=row["run_count"],
    )  # fmt: skip
    _write(catalog, batch, whole, held.gen + 1, held.digest, now())


def stored(catalog: Catalog, project: Project) -> dict[str, Any] | None:
    """The committed row of a project in the table `projects`."""
    return stored_of(catalog, project.source, project.entity).get(project.name)


def stored_of(catalog: Catalog, source: str, entity: str) -> dict[str, dict[str, Any]]:
    """The same of every project of an entity, by name."""
    found: dict[str, dict[str, Any]] = {}
    wanted = [("source", "=", source), ("entity", "=", entity)]
    for file in catalog.files():
        if file.table == "projects":
            for row in segments.read(catalog.layout.root / file.path, "projects", wanted).to_pylist():
                if row["gen"] > found.get(row["project"], {"gen": 0})["gen"]:
                    found[row["project"]] = row
    return found


def holding(catalog: Catalog, source: str, entity: str, projects: Iterable[str], run_ids: Iterable[str]) -> list[str]:
    """Those of the projects that hold a run with one of a few ids."""
    ids = list(run_ids)
    marks = ",".join("?" * len(ids))
    query = (
        "select distinct r.project from json_each(?) j cross join runs r indexed by runs_by_id on r.project = j.value "
        f"where r.run_id in ({marks}) and r.source = ? and r.entity = ?"
    )
    return [name for (name,) in catalog.db.execute(query, [json.dumps(list(projects)), *ids, source, entity])]


def adopt(catalog: Catalog, ids: Mapping[int, tuple[str, str, str]]) -> None:
    """Give runs (by rid) other storage ids: (source, old one, new one)."""
    with catalog.transaction():
        for rid, (source, old, new) in ids.items():
            catalog.db.execute("update runs set storage_id = ? where rid = ?", [new, rid])
            catalog.db.execute(
                "update quarantine set storage_id = ? where source = ? and storage_id = ?", [new, source, old]
            )


def _write(
    catalog: Catalog, batch: Batch, project: Project, gen: int, digest: str, deleted_at: datetime | None
) -> None:
    row = {
        "source": project.source,
        "entity": project.entity,
        "project": project.name,
        "gen": gen,
        "storage_id": project.storage_id,
        "description": project.description,
        "created_at": project.created_at,
        "run_count": project.run_count,
        "mirrored_at": now(),
        "deleted_at": deleted_at,
    }
    batch.rows.setdefault("projects", []).append(pa.Table.from_pylist([row], schema=tables()["projects"]))

    def save() -> None:
        catalog.save_project(project.source, project.entity, project.name, gen, digest)
        _mark(catalog, project, 0, iso(deleted_at))

    batch.later.append(save)


def _mark(catalog: Catalog, project: Project, missing: int, deleted_at: str | None) -> None:
    catalog.db.execute(
        "update projects set missing = ?, deleted_at = ? where source = ? and entity = ? and project = ?",
        [missing, deleted_at, project.source, project.entity, project.name],
    )
