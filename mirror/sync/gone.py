"""What a source does not have any more: believed after two complete listings in a row, and never much of it unasked.

Nothing that is held is removed: it is marked as deleted. What could not be read is not gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mirror.errors import SourceError
from mirror.records import Listing, Project
from mirror.store import Writer
from mirror.store.catalog import Known, now
from mirror.store.projects import known_projects
from mirror.sync.changes import Changes
from mirror.sync.plan import Plan
from mirror.sync.quarantine import Quarantine

SEEN_GONE = 2
"""Something is called deleted when so many complete listings in a row lacked it."""
_ASKED_TOGETHER = 25
MOST_GONE = 0.1
"""If a larger part of what is held is gone, somebody has to say that this is meant."""


@dataclass
class Gone:
    """How much is `deleted`, how much `missing` (deleted, if the next sync does not find it either); `refused` if
    too much was gone to be believed."""

    deleted: int = 0
    missing: int = 0
    refused: bool = False
    messages: list[str] = field(default_factory=list)

    def believed(self, gone: int, held: int, what: str, accept: bool) -> bool:
        """Whether so many of so many may be called deleted; else says what to do."""
        if accept or gone <= MOST_GONE * held:
            return True
        self.refused = True
        self.messages.append(
            f"{gone} of {held} {what} are gone at the source, and are kept as they are: if this is meant, sync with "
            "--accept-deletions (what is held of them stays in the mirror in any case)"
        )
        return False


def gone_runs(
    writer: Writer,
    plan: Plan,
    listing: Listing,
    quarantine: Quarantine,
    changes: Changes,
    accept: bool,
    there: Callable[[list[str]], Listing] | None = None,
) -> Gone:
    """Mark the runs as deleted that two complete listings in a row lacked. `there` lists those of some run ids that
    can be had by name: real listings were seen to leave out runs."""
    gone = Gone()
    if not plan.gone:
        return gone
    if not listing.complete:
        gone.messages.append(
            f"{len(plan.gone)} runs were not listed, and are kept as they are: {listing.note or 'no count'}"
        )
        return gone
    confirmed = [k for k in plan.gone if writer.missed(k.key) >= SEEN_GONE]
    gone.missing = len(plan.gone) - len(confirmed)
    if gone.believed(len(confirmed), plan.held, "runs", accept):
        if there is not None:
            found = _found(confirmed, there, gone)
            confirmed = [k for k in confirmed if k.key.storage_id not in found]
        for known in confirmed:
            _bury(writer, known, quarantine)
            changes.deleted(known)
        gone.deleted = len(confirmed)
    return gone


def _found(missing: list[Known], there: Callable[[list[str]], Listing], gone: Gone) -> set[str]:
    """The storage ids of those that are there all the same, or that could not be asked for."""
    found: set[str] = set()
    for start in range(0, len(missing), _ASKED_TOGETHER):
        part = missing[start : start + _ASKED_TOGETHER]
        try:
            found |= {run.key.storage_id for run in there([k.run_id for k in part]).runs}
        except SourceError as e:
            gone.messages.append(f"{len(part)} runs were not listed, and could not be asked for: {e}")
            found |= {k.key.storage_id for k in part}
    if found := found & {k.key.storage_id for k in missing}:
        gone.messages.append(f"{len(found)} runs were not listed, and are kept as they are: they may still be there")
    return found


def _bury(writer: Writer, known: Known, quarantine: Quarantine) -> None:
    writer.tombstone(known.key)
    for stage in quarantine.of(known.key):
        writer.mended(known.key, stage)


def gone_items(writer: Writer, project: Project, kind: str, seen: set[str], gone: Gone, accept: bool) -> None:
    """The same for the items of one table, of which a complete listing showed those in `seen`."""
    held = writer.items(kind, project.source, project.entity, project.name)
    live = {storage_id: item for storage_id, item in held.items() if not item.deleted}
    confirmed = [
        item.key
        for storage_id, item in live.items()
        if storage_id not in seen and writer.missed_item(kind, item.key) >= SEEN_GONE
    ]
    if gone.believed(len(confirmed), len(live), kind.replace("_", " "), accept):
        for key in confirmed:
            writer.drop_item(kind, key)
        gone.deleted += len(confirmed)


def gone_projects(
    writer: Writer, source: str, entity: str, listed: set[str], is_there: Callable[[str], bool], accept: bool
) -> tuple[Gone, list[Project]]:
    """The same for the projects of an entity that is the key's own, so that it sees them all; those deleted, too.
    `is_there` asks for one that was not listed. Returns also those that were called deleted."""
    gone = Gone()
    held = {name: p for name, p in known_projects(writer.catalog, source, entity).items() if p.gen and not p.deleted}
    missing = [name for name in held if name not in listed and not is_there(name)]
    confirmed = [name for name in missing if writer.missed_project(Project(source, entity, name)) >= SEEN_GONE]
    gone.missing = len(missing) - len(confirmed)
    if not gone.believed(len(confirmed), len(held), f"projects of `{entity}`", accept):
        return gone, []
    gone.deleted = len(confirmed)
    deleted = [Project(source, entity, name) for name in confirmed]
    with Changes(writer, {}, now()).told() as changes:
        for one in deleted:
            writer.drop_project(one)
            changes.project(one, "deleted")
        writer.commit()
    return gone, deleted
