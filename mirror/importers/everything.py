"""Whole projects to a server: runs first, then the artifacts they logged and used, then the reports about them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from mirror.errors import SourceError, UsageError
from mirror.importers.account import Account, Totals
from mirror.importers.artifacts import push_artifacts
from mirror.importers.configs import lead_configs
from mirror.importers.ledger import Ledger
from mirror.importers.places import Namespace, RunName
from mirror.importers.push import PushOptions, PushProgress, push_runs
from mirror.importers.references import Leading, References
from mirror.importers.reports import push_reports
from mirror.importers.run import Destination
from mirror.paths import WandbPath
from mirror.query.sql import asking
from mirror.wandb.mutations import upsert_project

if TYPE_CHECKING:
    from mirror.store import Reader

KINDS = ("runs", "artifacts", "reports")


@dataclass(frozen=True)
class Everything:
    """What became of the things of each kind that was sent."""

    kinds: dict[str, Totals]

    @property
    def ok(self) -> bool:
        return all(totals.ok for totals in self.kinds.values())

    @property
    def failures(self) -> list[Account]:
        return [account for totals in self.kinds.values() for account in totals.failures]

    @property
    def errors(self) -> list[str]:
        return [message for totals in self.kinds.values() for message in totals.errors]


def push_everything(
    reader: Reader,
    rids: Sequence[int],
    there: Destination,
    options: PushOptions,
    *,
    kinds: Collection[str] = KINDS,
    whole: Sequence[WandbPath] | None = None,
    source: str | None = None,
    of_runs: Collection[str] | None = None,
    progress: PushProgress | None = None,
    stop: threading.Event | None = None,
) -> Everything:
    """Send runs, and with them what else their projects hold; also projects without runs that `whole` names (all of
    the mirror's, if it names none; of `source` alone, if that is given). `of_runs` leaves out artifacts
    that others than these logged. Raises UsageError as `push_runs` does."""
    stop = stop or there.client.transport.budget.stop
    found: dict[str, Totals] = {}
    projects = _projects(reader, rids, whole, source)
    coming = {(project.source, project.here) for project in projects} if "artifacts" in kinds else set()
    references = References(reader, there.client.source, options.place)
    leading = Leading(references, there.client, reader, lambda source, here: (source, here) in coming)
    there = replace(there, leading=leading)
    ledger = Ledger(options.ledger or reader.layout.root, "project")
    errors = [error for project in projects if (error := _make(there, project, options.place(project.here), ledger))]
    renamed: dict[RunName, str] = {}
    if "runs" in kinds:
        sweeps_of = {(p.source, p.here): options.place(p.here) for p in projects} if whole is not None else None
        found["runs"] = push_runs(reader, rids, there, options, whole=sweeps_of, progress=progress, stop=stop)
        renamed = found["runs"].renamed

    def run_name(run: RunName) -> RunName:
        place = options.place(Namespace(run[0], run[1]))
        return place.entity, place.project, renamed.get(run, run[2])

    places = {project.here: options.place(project.here) for project in projects}
    for kind, push in (("artifacts", partial(push_artifacts, of_runs=of_runs)), ("reports", push_reports)):
        for project in _in_order(reader, projects) if kind == "artifacts" and kind in kinds else projects:
            if kind in kinds and not stop.is_set():
                totals = push(
                    reader,
                    project.source,
                    project.here,
                    there,
                    places,
                    run_name=run_name,
                    incremental=options.incremental,
                    ledger_folder=options.ledger,
                    progress=progress,
                )
                found.setdefault(kind, Totals()).merge(totals)
    if "runs" in kinds and not stop.is_set():
        found["runs"].merge(lead_configs(reader, rids, there, references, run_name))
    found.setdefault(next(iter(kinds), "runs"), Totals()).errors.extend(errors)
    return Everything(found)


@dataclass(frozen=True)
class _Project:
    source: str
    here: Namespace
    description: str | None = None
    created_at: datetime | None = None


def _make(there: Destination, project: _Project, place: Namespace, ledger: Ledger) -> str | None:
    """Make a project that is missing there, with its description, and note it; change the description with that of the
    source. Returns what went wrong. Raises UsageError if what is there is the project itself, whatever name the server
    was called by: a copy is made later than its original."""
    source, destination = project.source, there.client.source
    said = (project.description or "").encode()
    account = Account(project.here.path, place.path, hashlib.blake2b(said, digest_size=16).hexdigest())
    before = ledger.success(source, project.here.path, destination, place.path)
    try:
        held = there.client.project(place.entity, place.project)
        itself = held and project.created_at is not None and held.created_at == project.created_at
        if place == project.here and (itself or source == destination):
            raise UsageError(
                f"`{destination}` is the server that `{place.path}` was mirrored from: it would be sent to "
                f"where it came from; name another project (--remap {place.path}=ENTITY/PROJECT) or another server"
            )
        # A project that others made keeps what they say of it.
        if held is None or (before is not None and before.fingerprint != account.fingerprint):
            description = project.description or ("" if held else None)
            upsert_project(there.client, place.entity, place.project, description=description)
    except SourceError as e:
        return f"project {place.path} could not be made: {e}"
    if before is None or before.fingerprint != account.fingerprint:
        ledger.write(
            account, source=source, storage_id=project.here.path, destination=destination, namespace=place.path
        )
    return None


def _projects(
    reader: Reader, rids: Sequence[int], whole: Sequence[WandbPath] | None, source: str | None
) -> list[_Project]:
    """The projects of these runs, and those that `whole` names."""
    with asking(reader) as connection:
        of_runs = connection.execute(
            "select distinct source, entity, project from raw.live where rid in (select unnest(?::bigint[]))",
            [list(rids)],
        ).fetchall()
        known = connection.execute(
            "select source, entity, project, description, created_at from projects where deleted_at is null"
        ).fetchall()
    found = {(host, *name): _Project(host, Namespace(*name)) for host, *name in of_runs}
    for host, entity, project, *more in known:
        wanted = whole is not None and source in (None, host)
        if (host, entity, project) in found or (wanted and _is_named(entity, project, whole or ())):
            found[host, entity, project] = _Project(host, Namespace(entity, project), *more)
    return [project for _, project in sorted(found.items())]


def _in_order(reader: Reader, projects: Sequence[_Project]) -> list[_Project]:
    """The projects, those whose artifacts others refer to before these; as they were if they do so in a circle."""
    with asking(reader) as connection:
        pairs = connection.execute(
            "select distinct a.source, a.entity, a.project, b.entity, b.project from raw.artifact_entries e "
            "join raw.artifacts_live a on a.rid = e.rid and a.entries_gen = e.gen "
            "join raw.artifacts_live b on b.source = a.source and (b.entity, b.project) <> (a.entity, a.project) "
            "and lower(hex(try(from_base64(b.storage_id)))) "
            "= lower(regexp_extract(e.ref, '^wandb-artifact://([0-9a-fA-F]+)/', 1)) "
            "where e.ref like 'wandb-artifact://%'"
        ).fetchall()
    named = {(project.source, project.here): project for project in projects}
    order = TopologicalSorter[tuple[str, Namespace]](dict.fromkeys(named, ()))
    for source, entity, project, to_entity, to_project in pairs:
        first = (source, Namespace(to_entity, to_project))
        if first in named and (last := (source, Namespace(entity, project))) in named:
            order.add(last, first)
    try:
        return [named[name] for name in order.static_order()]
    except CycleError:
        return list(projects)


def _is_named(entity: str, project: str, paths: Sequence[WandbPath]) -> bool:
    of_project = [path for path in paths if path.run_id is None]
    return not paths or any(p.entity == entity and p.project in (None, project) for p in of_project)
