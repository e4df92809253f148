"""Runs that were moved to another project, and projects that have another name: they stay the ones they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirror.records import Listing, Project
from mirror.store import Writer
from mirror.store.catalog import Catalog, Known
from mirror.store.projects import KnownProject, known_elsewhere, known_projects, stored
from mirror.sync.changes import Changes


def held_runs(catalog: Catalog, listing: Listing) -> dict[str, Known]:
    """Everything held of a listing's project, and its runs that are held in another project, by storage id."""
    project = listing.project
    if project is None:
        return {}
    known = catalog.known(project.source, project.entity, project.name)
    others = [run.key.storage_id for run in listing.runs if run.key.storage_id not in known]
    return known | known_elsewhere(catalog, project.source, others)


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
