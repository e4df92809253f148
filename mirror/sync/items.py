"""Sweeps, artifacts and reports of a project: listed whole at every sync, written where they differ."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from mirror.errors import SourceError
from mirror.records import Item, Project
from mirror.sources.wandb import WandbSource
from mirror.store import Writer
from mirror.wandb.artifacts import Listed, fetch_entries, fetch_uses, list_artifacts, list_collections
from mirror.wandb.glance import kinds_there
from mirror.wandb.reports import list_reports
from mirror.wandb.sweeps import list_sweeps
from mirror.wandb.transport import UnknownFields

SEEN_GONE = 2
"""Something is called deleted when so many complete listings in a row lacked it."""
_TABLES = {"sweeps": ("sweeps",), "artifacts": ("artifact_collections", "artifacts"), "reports": ("reports",)}
KINDS = tuple(_TABLES)


@dataclass
class ItemsOutcome:
    """How many items were `changed` or are `gone`, and what could not be read."""

    changed: int = 0
    gone: int = 0
    messages: list[str] = field(default_factory=list)


def sync_items(
    source: WandbSource, writer: Writer, project: Project, kinds: Iterable[str], stop: threading.Event
) -> ItemsOutcome:
    """Bring a project's items of these kinds up to date. What cannot be read is said; the rest goes on."""
    outcome = ItemsOutcome()
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
                readers[kind](source, writer, project, outcome, stop)
            elif kind in there:
                for table in _TABLES[kind]:
                    _note_gone(writer, project, table, set(), outcome)
        except SourceError as e:
            if not isinstance(e.__cause__, UnknownFields):  # an old server, which has none of these
                outcome.messages.append(f"{kind} could not be read: {e}")
    return outcome


def _sweeps(s: WandbSource, writer: Writer, project: Project, outcome: ItemsOutcome, stop: threading.Event) -> None:
    found, listing = list_sweeps(s.client, project.entity, project.name)
    _put(writer, found, outcome)
    if listing.complete:
        _note_gone(writer, project, "sweeps", {sweep.key.storage_id for sweep in found}, outcome)


def _reports(s: WandbSource, writer: Writer, project: Project, outcome: ItemsOutcome, stop: threading.Event) -> None:
    found, listing = list_reports(s.client, project.entity, project.name)
    _put(writer, found, outcome)
    if listing.complete:
        _note_gone(writer, project, "reports", {report.key.storage_id for report in found}, outcome)


def _artifacts(s: WandbSource, writer: Writer, project: Project, outcome: ItemsOutcome, stop: threading.Event) -> None:
    collections, listing = list_collections(s.client, project.entity, project.name)
    _put(writer, collections, outcome)
    known = writer.items("artifacts", project.source, project.entity, project.name)
    whole = {storage_id for storage_id, held in known.items() if held.has_entries}
    seen: set[str] = set()
    complete = listing.complete
    for page, page_is_complete in list_artifacts(s.client, collections):
        complete &= page_is_complete
        seen |= {one.artifact.key.storage_id for one in page}
        for part in _in_parts(page):
            if stop.is_set():
                return
            _put(writer, _complete(s, part, whole, outcome), outcome)
    if complete:
        gone = {c.key.storage_id for c in collections}
        _note_gone(writer, project, "artifact_collections", gone, outcome)
        _note_gone(writer, project, "artifacts", seen, outcome)


_MANIFESTS_AT_ONCE = 16


def _in_parts(page: list[Listed]) -> Iterator[list[Listed]]:
    for start in range(0, len(page), _MANIFESTS_AT_ONCE):
        yield page[start : start + _MANIFESTS_AT_ONCE]


def _complete(source: WandbSource, page: list[Listed], whole: set[str], outcome: ItemsOutcome) -> Iterator[Item]:
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
            artifact = replace(artifact, uses=fetch_uses(source.client, artifact))
        if future is not None:
            try:
                artifact = replace(artifact, entries=future.result())
            except SourceError as e:
                outcome.messages.append(str(e))
        elif wanted(one):
            outcome.messages.append(f"{name}: the server names no address of its manifest")
        yield artifact


def _put(writer: Writer, items: Iterable[Item], outcome: ItemsOutcome) -> None:
    before = writer.changed_items
    for item in items:
        writer.put_item(item)
    outcome.changed += writer.changed_items - before


def _note_gone(writer: Writer, project: Project, kind: str, seen: set[str], outcome: ItemsOutcome) -> None:
    """Mark what two complete listings in a row lacked as deleted. Nothing that is held is removed."""
    for storage_id, held in writer.items(kind, project.source, project.entity, project.name).items():
        if storage_id in seen or held.deleted:
            continue
        if writer.missed_item(kind, held.key) >= SEEN_GONE:
            writer.drop_item(kind, held.key)
            outcome.gone += 1
