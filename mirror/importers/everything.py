"""Whole projects to a server: runs first, then the artifacts they logged and used, then the reports about them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.importers.account import Account, Totals
from mirror.importers.artifacts import push_artifacts
from mirror.importers.places import Namespace
from mirror.importers.push import PushOptions, PushProgress, push_runs
from mirror.importers.reports import push_reports
from mirror.importers.run import Destination
from mirror.query.sql import asking

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
    progress: PushProgress | None = None,
    stop: threading.Event | None = None,
) -> Everything:
    """Send runs, and with them what else their projects hold. Raises UsageError as `push_runs` does."""
    stop = stop or there.client.transport.budget.stop
    found: dict[str, Totals] = {}
    renamed: dict[tuple[str, str, str], str] = {}
    if "runs" in kinds:
        found["runs"] = push_runs(reader, rids, there, options, progress=progress, stop=stop)
        renamed = found["runs"].renamed

    def run_name(run: tuple[str, str, str]) -> tuple[str, str, str]:
        place = options.place(Namespace(run[0], run[1]))
        return place.entity, place.project, renamed.get(run, run[2])

    projects = list(_projects(reader, rids))
    places = {here: options.place(here) for _, here in projects}
    for source, here in projects:
        if "artifacts" in kinds and not stop.is_set():
            totals = push_artifacts(
                reader,
                source,
                here,
                there,
                options.place(here),
                run_name=run_name,
                incremental=options.incremental,
                ledger_folder=options.ledger,
            )
            found.setdefault("artifacts", Totals()).merge(totals)
    for source, here in projects:
        if "reports" in kinds and not stop.is_set():
            totals = push_reports(
                reader,
                source,
                here,
                there,
                places,
                run_name=run_name,
                incremental=options.incremental,
                ledger_folder=options.ledger,
            )
            found.setdefault("reports", Totals()).merge(totals)
    return Everything(found)


def _projects(reader: Reader, rids: Sequence[int]) -> Iterator[tuple[str, Namespace]]:
    with asking(reader) as connection:
        found = connection.execute(
            "select distinct source, entity, project from raw.live "
            "where rid in (select unnest(?::bigint[])) order by all",
            [list(rids)],
        ).fetchall()
    for source, entity, project in found:
        yield source, Namespace(entity, project)
