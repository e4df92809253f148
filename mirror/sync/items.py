"""Sweeps, artifacts and reports of a project: listed whole at every sync, written where they differ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from mirror.errors import SourceError
from mirror.records import Item, Project
from mirror.sources.wandb import WandbSource
from mirror.store import Writer
from mirror.sync.gone import Gone, gone_items
from mirror.sync.lineage import LocalUses, local_uses, with_local_uses
from mirror.wandb.artifacts import Listed, fetch_entries, fetch_uses, list_artifacts, list_collections
from mirror.wandb.glance import kinds_there
from mirror.wandb.reports import list_reports
from mirror.wandb.sweeps import list_sweeps
from mirror.wandb.transport import UnknownFields

_TABLES = {"sweeps": ("sweeps",), "artifacts": ("artifact_collections", "artifacts"), "reports": ("reports",)}
KINDS = tuple(_TABLES)

NoteGone: TypeAlias = Callable[[str, set[str]], None]
"""Takes a table and what a complete listing shows of it."""


@dataclass
class ItemsOutcome:
    """How many items were `changed` or are `gone`, and what could not be read."""

    changed: int = 0
    gone: Gone = field(default_factory=Gone)
    messages: list[str] = field(default_factory=list)


def sync_items(
    source: WandbSource, writer: Writer, project: Project, kinds: Iterable[str], stop: threading.Event, accept: bool
) -> ItemsOutcome:
    """Bring a project's items of these kinds up to date. What cannot be read is said; the rest goes on. With `accept`
    any number of them may be gone."""
    outcome = ItemsOutcome()

    def note_gone(table: str, seen: set[str]) -> None:
        gone_items(writer, project, table, seen, outcome.gone, accept)

    readers = {"sweeps": _sweeps, "artifacts": _artifacts, "reports": _reports}
    try:
        there = kinds_there(source.client, project.entity, project.name)
    except SourceError as e:
        outcome.messages.append(f"sweeps, artifacts and reports could not be read: {e}")
        return outcome
    for kind in kinds:
        if stop.is_set():
            break
        try:
            if there.get(kind):
                readers[kind](source, writer, project, outcome, stop, note_gone)
            elif kind in there:
                for table in _TABLES[kind]:
                    note_gone(table, set())
        except SourceError as e:
            if not isinstance(e.__cause__, UnknownFields):  # an old server, which has none of these
                outcome.messages.append(f"{kind} could not be read: {e}")
    outcome.messages += outcome.gone.messages
    return outcome


def _sweeps(
    s: WandbSource, writer: Writer, project: Project, outcome: ItemsOutcome, stop: threading.Event, note_gone: NoteGone
) -> None:
    found, listing = list_sweeps(s.client, project.entity, project.name)
    _put(writer, found, outcome)
    if listing.complete:
        note_gone("sweeps", {sweep.key.storage_id for sweep in found})


def _reports(
    s: WandbSource, writer: Writer, project: Project, outcome: ItemsOutcome, stop: threading.Event, note_gone: NoteGone
) -> None:
    found, listing = list_reports(s.client, project.entity, project.name)
    _put(writer, found, outcome)
    if listing.complete:
        note_gone("reports", {report.key.storage_id for report in found})


def _artifacts(
    s: WandbSource, writer: Writer, project: Project, outcome: ItemsOutcome, stop: threading.Event, note_gone: NoteGone
) -> None:
    collections, listing = list_collections(s.client, project.entity, project.name)
    _put(writer, collections, outcome)
    known = writer.items("artifacts", project.source, project.entity, project.name)
    whole = {storage_id for storage_id, held in known.items() if held.has_entries}
    local = local_uses(writer, project)
    seen: set[str] = set()
    complete = listing.complete
    for page, page_is_complete in list_artifacts(s.client, collections, outcome.messages.append):
        complete &= page_is_complete
        seen |= {one.artifact.key.storage_id for one in page}
        for part in _in_parts(page):
            if stop.is_set():
                return
            _put(writer, _complete(s, part, whole, local, outcome), outcome)
    if complete:
        gone = {c.key.storage_id for c in collections}
        note_gone("artifact_collections", gone)
        note_gone("artifacts", seen)


_MANIFESTS_AT_ONCE = 16


def _in_parts(page: list[Listed]) -> Iterator[list[Listed]]:
    for start in range(0, len(page), _MANIFESTS_AT_ONCE):
        yield page[start : start + _MANIFESTS_AT_ONCE]


def _complete(
    source: WandbSource, page: list[Listed], whole: set[str], local: LocalUses, outcome: ItemsOutcome
) -> Iterator[Item]:
    """The artifacts with all their uses, and with the entries that are not held yet: a manifest is never changed
    once it is committed."""

    def wanted(one: Listed) -> bool:
        return one.artifact.state == "COMMITTED" and one.artifact.key.storage_id not in whole

    waiting = [
        source.downloads.submit(fetch_entries, source.client, one) if wanted(one) and one.manifest_url else None
        for one in page
    ]
    for one, future in zip(page, waiting, strict=True):
        artifact = one.artifact
        name = f"artifact `{artifact.collection}:v{artifact.version}`"
        if one.uses_cut_off:
            try:
                artifact = replace(artifact, uses=fetch_uses(source.client, artifact))
            except SourceError as e:
                artifact = replace(artifact, uses=None)  # those that are held stay
                outcome.messages.append(f"{name}: the runs that used it could not be read: {e}")
        if future is not None:
            try:
                artifact = replace(artifact, entries=future.result())
            except SourceError as e:
                outcome.messages.append(str(e))
        elif wanted(one):
            outcome.messages.append(f"{name}: the server names no address of its manifest")
        yield with_local_uses(artifact, local)


def _put(writer: Writer, items: Iterable[Item], outcome: ItemsOutcome) -> None:
    before = writer.changed_items
    for item in items:
        writer.put_item(item)
    outcome.changed += writer.changed_items - before
