"""A sync from a source that names its projects itself (run folders, an MLflow store), project by project."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from mirror.errors import LockedError, SourceError
from mirror.records import Project
from mirror.sources.places import Places
from mirror.store import Writer
from mirror.store.catalog import now, peek
from mirror.sync.gone import gone_projects
from mirror.sync.plan import make_plan
from mirror.sync.progress import Progress
from mirror.sync.project import Options, Outcome, sync_project
from mirror.sync.quarantine import Quarantine
from mirror.sync.session import Planned, Result
from mirror.sync.twins import merge

_READERS = 2
"""Reading logs is work for a processor; more threads than that only take turns."""


def sync_folders(
    root: Path,
    source: Places,
    options: Options,
    *,
    progress: Progress,
    stop: threading.Event,
    server: str | None = None,
) -> Result:
    """Bring the runs of a source up to date. What cannot be read does not stop the others. `server` is the source
    that runs of a folder are held from, too, where there are several."""
    places = source.places()
    result = Result(errors=list(source.errors))
    if not places:
        return result
    with Writer(root) as writer:
        for place in places:
            if stop.is_set():
                break
            try:
                result.outcomes.append(_sync(writer, source, place, options, progress, stop, server))
            except (LockedError, SourceError) as e:
                result.errors.append(str(e))
        if source.whole is not None and not stop.is_set():
            listed = {place.name for place in places}
            gone, deleted = gone_projects(
                writer, source.name, source.whole, listed, lambda name: False, options.accept_deletions
            )
            result.errors += gone.messages
            source.notices += [f"{one.name}: deleted at the source, kept in the mirror" for one in deleted]
    return result


def _sync(
    writer: Writer,
    source: Places,
    place: Project,
    options: Options,
    progress: Progress,
    stop: threading.Event,
    server: str | None,
) -> Outcome:
    began, asked = now(), (source.traffic.requests, source.traffic.bytes)
    listing = source.listing(place.entity, place.name)
    outcome = sync_project(
        source,
        writer,
        listing,
        options=replace(options, workers=min(options.workers, _READERS)),
        progress=progress,
        stop=stop,
        started_at=began,
        asked_before=asked,
    )
    source.notices += merge(writer, source.name, place.entity, place.name, server=server)
    return outcome


def plan_folders(root: Path, source: Places, options: Options) -> tuple[list[Planned], Result]:
    """What `sync_folders` would do. Writes nothing; the mirror need not exist."""
    planned = []
    catalog = peek(root)
    for place in source.places():
        who = (place.source, place.entity, place.name)
        known, failures = {}, []
        if catalog is not None:
            known, failures = catalog.known(*who), catalog.quarantined(*who)
        listing = source.listing(place.entity, place.name)
        planned.append(Planned(place, make_plan(listing, known, Quarantine(failures), now=now(), full=options.full)))
    if catalog is not None:
        catalog.close()
    return planned, Result(errors=list(source.errors))
