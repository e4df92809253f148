"""Runs that were moved to another project, and projects that have another name: they stay the ones they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mirror.records import Listing, Project
from mirror.store import Writer
from mirror.store.catalog import Catalog, Known
from mirror.store.projects import (
    KnownProject,
    adopt,
    holding,
    known_elsewhere,
    known_projects,
    stored,
    stored_of,
)
from mirror.sync.changes import Changes

_LOOKED_FOR = 3
"""Runs of a listing that are looked for elsewhere."""


def held_runs(catalog: Catalog, listing: Listing) -> dict[str, Known]:
    """Everything held of a listing's project, and its runs that are held in another project, by storage id."""
    project = listing.project
    if project is None:
        return {}
    known = catalog.known(project.source, project.entity, project.name)
    others = [run.key.storage_id for run in listing.runs if run.key.storage_id not in known]
    return known | known_elsewhere(catalog, project.source, others)


def follow(catalog: Catalog, listing: Listing, is_there: Callable[[str], bool]) -> None:
    """If a project that was never seen is one that had another name, give its runs the storage ids they have now.

    W&B's cloud makes storage ids of names (`Run:v1:<run>:<project>:<entity>`), so that a rename changes them. It is
    that project if it was made at the same moment, has runs of the same ids, and none has the old name any more.
    """
    project = listing.project
    if project is None or project.created_at is None or not listing.runs:
        return
    held = known_projects(catalog, project.source, project.entity)
    others = [name for name, p in held.items() if name != project.name and p.gen and not p.deleted]
    if not others or held.get(project.name, KnownProject(project.name)).gen:
        return
    some = [run.key.run_id for run in listing.runs[:_LOOKED_FOR]]
    candidates = holding(catalog, project.source, project.entity, others, some)
    rows = stored_of(catalog, project.source, project.entity) if candidates else {}
    same = [name for name in candidates if rows.get(name, {}).get("created_at") == project.created_at]
    if len(same) != 1 or is_there(same[0]):
        return
    now = {run.key.run_id: run.key.storage_id for run in listing.runs}
    taken = known_elsewhere(catalog, project.source, now.values())
    adopt(
        catalog,
        {
            k.rid: (project.source, k.key.storage_id, now[k.run_id])
            for k in catalog.known(project.source, project.entity, same[0]).values()
            if k.run_id in now and now[k.run_id] not in taken and not k.deleted
        },
    )


def put_project(writer: Writer, project: Project, known: Mapping[str, Known], changes: Changes) -> None:
    """Record a project. If runs of it come from one that was made at the same moment, or has the same storage id (which
    may be made of names), it is that one under a new name."""
    held = known_projects(writer.catalog, project.source, project.entity).get(project.name, KnownProject(project.name))
    writer.put_project(project)
    if held.deleted:
        changes.project(project, "returned")
    if held.gen:
        return
    for old in sorted({(k.key.entity, k.key.project) for k in known.values()} - {(project.entity, project.name)}):
        former = Project(project.source, *old)
        row = stored(writer.catalog, former)
        if row is not None and _same(row, project):
            changes.renamed(former, project)
            writer.drop_project(former)
            return
    changes.project(project, "new")


def _same(row: Mapping[str, Any], project: Project) -> bool:
    return any(
        said is not None and row[column] == said
        for column, said in (("storage_id", project.storage_id), ("created_at", project.created_at))
    )
