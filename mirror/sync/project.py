"""The sync of one project: list, plan, fetch, commit, note what is gone, report."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from mirror.errors import SourceError
from mirror.records import Failure, Listing, Project, SyncReport
from mirror.sources.parts import ALL, OF_RUNS
from mirror.sources.protocol import HasBytes, Source
from mirror.sources.wandb import WandbSource
from mirror.store import Writer
from mirror.store.catalog import now
from mirror.sync.bytes import BytesOutcome, sync_bytes
from mirror.sync.changes import Changes
from mirror.sync.commit import Committer
from mirror.sync.feed import Feed
from mirror.sync.gone import Gone, gone_runs
from mirror.sync.items import KINDS, ItemsOutcome, sync_items
from mirror.sync.moves import follow, held_runs, put_project
from mirror.sync.plan import Plan, make_plan
from mirror.sync.progress import Progress
from mirror.sync.quarantine import Quarantine
from mirror.sync.wanted import WantedBytes


@dataclass(frozen=True)
class Options:
    workers: int = 8
    page_rows: int = 10_000
    full: bool = False
    accept_deletions: bool = False
    filters: str | None = None
    """Only runs that meet this filter (JSON, judged by the server); others are neither fetched nor gone."""
    bytes: WantedBytes = field(default_factory=WantedBytes)
    """Which bytes of files and artifacts are wanted."""
    exclude: tuple[str, ...] = ()
    """Globs of project paths (`entity/project`) and run paths to leave alone."""
    what: frozenset[str] = ALL
    """The parts that are fetched: see `mirror.sources.parts`."""


@dataclass(frozen=True)
class Outcome:
    """What became of one project. `failures` are the runs now in quarantine, `waiting` those left alone until
    their next try, `missing` runs the next sync will call deleted if it does not find them either; `messages`
    are what the user has to know, `notes` what he may want to."""

    report: SyncReport
    failures: Sequence[Failure] = ()
    waiting: Sequence[Failure] = ()
    missing: int = 0
    messages: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        return self.report.outcome == "ok"


def sync_project(
    source: Source,
    writer: Writer,
    listing: Listing,
    *,
    options: Options,
    progress: Progress,
    stop: threading.Event,
    started_at: datetime,
    asked_before: tuple[int, int] = (0, 0),
    named: Sequence[str] | None = None,
) -> Outcome:
    """Bring the runs of a listing up to date. `named` are the runs a user asked for, if not for all;
    `asked_before` the requests and bytes of this source that were none of this project's.

    Raises LockedError if another process writes the project. Whatever happens, what was committed stays, and
    the next sync goes on from there.
    """
    project = listing.project
    assert project is not None, "a listing without a project has nothing to sync"
    with writer.lease(source.name, project.entity, project.name):
        quarantine = Quarantine(writer.quarantined(source.name, project.entity, project.name))
        if isinstance(source, WandbSource):
            follow(writer.catalog, listing, partial(source.client.has_project, project.entity))
        known = held_runs(writer.catalog, listing)
        at = now()
        if not options.what & frozenset(OF_RUNS):
            listing = replace(listing, runs=[], everything=False)
        plan = make_plan(
            listing, known, quarantine, now=at, full=options.full, named=named is not None, what=options.what
        )
        changes = Changes(writer, known, at)
        with changes.told():
            put_project(writer, project, known, changes)
            return _sync(
                source, writer, listing, plan, quarantine, changes, options, progress, stop, started_at, asked_before,
                named,
            )  # fmt: skip


def _sync(
    source: Source,
    writer: Writer,
    listing: Listing,
    plan: Plan,
    quarantine: Quarantine,
    changes: Changes,
    options: Options,
    progress: Progress,
    stop: threading.Event,
    started_at: datetime,
    asked_before: tuple[int, int],
    named: Sequence[str] | None,
) -> Outcome:
    project = listing.project
    assert project is not None
    committer = Committer(writer, quarantine, changes)
    error = _fetch(source, plan, committer, options, progress, stop, f"{project.entity}/{project.name}")
    interrupted = stop.is_set()
    whole = error is None and not interrupted
    gone, items, fetched = Gone(), ItemsOutcome(), BytesOutcome()
    if whole:
        for back in plan.back:
            writer.set_fingerprint(back.key, back.fingerprint, checked_at=back.checked_at)

        def there(run_ids: list[str]) -> Listing:
            return source.listing(project.entity, project.name, run_ids)

        gone = gone_runs(writer, plan, listing, quarantine, changes, options.accept_deletions, there)
    if whole and named is None and isinstance(source, WandbSource):
        # Other sources hand items over with the runs that name them.
        kinds = [kind for kind in KINDS if kind in options.what]
        items = sync_items(source, writer, project, kinds, stop, options.accept_deletions)
    if whole and options.bytes and isinstance(source, HasBytes):
        fetched = sync_bytes(source, writer, project, options.bytes, stop, named, progress)
        interrupted = stop.is_set()
    messages = [*gone.messages, *_unlisted(named, listing), *items.messages, *fetched.messages]
    if error is not None:
        messages.append(str(error))
    is_partial = committer.failures or plan.waiting or gone.refused or len(messages) > len(gone.messages)
    report = SyncReport(
        source=source.name,
        entity=project.entity,
        project=project.name,
        started_at=started_at,
        finished_at=now(),
        outcome="interrupted" if interrupted else "unreachable" if error else "partial" if is_partial else "ok",
        runs_listed=len(listing.runs),
        runs_new=sum(w.key.storage_id in committer.changed for w in plan.new),
        runs_changed=len(committer.changed - {w.key.storage_id for w in plan.new}),
        runs_gone=gone.deleted,
        runs_failed=len({f.key.storage_id for f in committer.failures}),
        items_changed=items.changed + items.gone.deleted,
        rows=committer.rows,
        requests=source.traffic.requests - asked_before[0],
        bytes=source.traffic.bytes - asked_before[1],
        message="; ".join([*messages, *committer.notes]) or None,
        incomplete=tuple(f.key.run_id for f in committer.failures if f.stage == "history"),
    )
    writer.log_sync(report)
    writer.commit()
    return Outcome(report, committer.failures, plan.waiting, gone.missing, messages, committer.notes)


def _fetch(
    source: Source,
    plan: Plan,
    committer: Committer,
    options: Options,
    progress: Progress,
    stop: threading.Event,
    name: str,
) -> SourceError | None:
    """Fetch what is planned; the error that ended it early, if one did."""
    progress.fetching(name, len(plan.wanted), plan.new_rows)
    done = rows = 0
    feed = Feed(source, plan.portions(options.page_rows), workers=options.workers, stop=stop)
    try:
        for step, cells in feed:
            committer.apply(step, cells)
            progress.fetched(runs=committer.done - done, rows=committer.rows - rows)
            done, rows = committer.done, committer.rows
    except SourceError as e:
        return e
    return None


def _unlisted(named: Sequence[str] | None, listing: Listing) -> list[str]:
    """A message for each run that a user named and the source does not have."""
    found = {run.key.run_id for run in listing.runs}
    project = listing.project
    assert project is not None
    return [
        f"no run `{run_id}` in `{project.entity}/{project.name}`: it does not exist or was deleted"
        for run_id in named or ()
        if run_id not in found
    ]


def unreachable(source: Source, project: Project, message: str, started_at: datetime) -> Outcome:
    """The outcome of a project that could not be read at all; nothing that is held of it changes."""
    report = SyncReport(
        source=source.name,
        entity=project.entity,
        project=project.name,
        started_at=started_at,
        finished_at=now(),
        outcome="unreachable",
        message=message,
    )
    return Outcome(report, messages=[message])
