"""Many mirrored runs to one server: side by side, each noted in the ledger when it is there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.errors import UsageError
from mirror.importers.account import INTERRUPTED, Account, Totals
from mirror.importers.arrival import RUNS_AT_ONCE, SentRun, check_arrival
from mirror.importers.ledger import Ledger, Success
from mirror.importers.outgoing import gathered
from mirror.importers.places import Namespace, Remapping
from mirror.importers.references import leading_to
from mirror.importers.run import Destination, MirroredRun, listed_runs, mirrored_runs, push_run
from mirror.importers.sweeps import copy_sweeps
from mirror.importers.together import Ready, Together
from mirror.pool import Pool
from mirror.wandb.budget import Stopped
from mirror.wandb.held import held_runs

if TYPE_CHECKING:
    from mirror.store import Reader


_AT_ONCE = 20
_LONG = 1.0
"""Seconds to send a run after which others are looked at without it."""


class PushProgress:
    """Told how far a push is; does nothing. Called by several threads."""

    def planned(self, runs: int, rows: int) -> None:
        """So many runs with so many rows are to be sent."""

    def rows(self, rows: int) -> None:
        """Rows went out."""

    def ended(self, account: Account) -> None:
        """A run is there, or failed, or was there before."""

    def things(self, what: str, number: int, nbytes: int) -> None:
        """So many other things with so many bytes are to be sent: `what` says which."""

    def bytes(self, nbytes: int) -> None:
        """Bytes of them went out; fewer than none if some have to go again."""

    def thing(self, account: Account) -> None:
        """One of them is there, or failed."""


@dataclass(frozen=True)
class PushOptions:
    """`incremental`: leave out what was sent before and is still there. `remapping` says where projects go that are
    not to keep their names; `into`, where everything goes; `ledger` is its folder, if that is not the mirror's."""

    workers: int = 4
    incremental: bool = True
    remapping: Remapping = field(default_factory=dict)
    into: Namespace | None = None
    ledger: Path | None = None

    def place(self, namespace: Namespace) -> Namespace:
        return self.into or self.remapping.get(namespace, namespace)


@dataclass(frozen=True)
class Planned:
    """A run that is to be sent (or was: `done`), and where."""

    run: MirroredRun
    place: Namespace
    name: str
    done: bool = False


def push_runs(
    reader: Reader,
    rids: Sequence[int],
    there: Destination,
    options: PushOptions,
    *,
    whole: Mapping[tuple[str, Namespace], Namespace] | None = None,
    progress: PushProgress | None = None,
    stop: threading.Event | None = None,
) -> Totals:
    """Send runs; returns what became of them. A run that fails leaves the others alone; run it again to try again.
    Sweeps of their projects go with them, and those of the projects in `whole` (by source), even without runs.

    Raises UsageError if a run would be sent to where it came from, or two of them to one place.
    """
    progress = progress or PushProgress()
    stop = stop or there.client.transport.budget.stop
    ledger = Ledger(options.ledger or reader.layout.root, "run")
    totals = Totals()

    def note_name(p: Planned, name: str) -> None:
        row = p.run.row
        if name != row["run_id"]:
            totals.renamed[row["entity"], row["project"], row["run_id"]] = name

    planned = plan(reader, rids, there, options, ledger)
    waiting = [p for p in planned if not p.done]
    progress.planned(len(waiting), sum(p.run.row["history_rows"] for p in waiting))
    for p in planned:
        if p.done:
            totals.add(Account(p.run.path, f"{p.place.path}/{p.name}", p.run.fingerprint(), skipped=True))
            note_name(p, p.name)
    places = {(p.run.row["source"], p.run.namespace): p.place for p in waiting}
    copies, errors = copy_sweeps(reader, there.client, {**places, **(whole or {})})
    there = replace(there, sweeps=copies, leading=leading_to(there, reader, options.place))
    totals.errors += errors

    def send(p: Planned, run: MirroredRun, ready: Ready, new: bool) -> tuple[Account, SentRun | None]:
        account = Account(p.run.path, f"{p.place.path}/{p.name}", p.run.fingerprint())
        try:
            return account, push_run(reader, run, there, p.place, account, progress.rows, ready=ready, new=new)
        except Stopped:
            raise
        except Exception as e:
            account.failed(e)
            return account, None

    def check(sent: Sequence[SentRun]) -> None:
        try:
            check_arrival(there.client, sent)
        except Stopped:
            raise
        except Exception as e:
            for run in sent:
                run.account.failed(e)

    pool = Pool(options.workers, "push")
    under_way: deque[tuple[Planned, Future[tuple[Account, SentRun | None]]]] = deque()
    arriving: list[tuple[Planned, SentRun]] = []
    looked_at: deque[tuple[list[tuple[Planned, SentRun]], Future[None]]] = deque()

    def settle() -> None:
        p, future = under_way.popleft()
        if not wait([future], _LONG).done:  # what is there should not wait for a long run to be noted
            look()
        try:
            account, sent = future.result()
        except Stopped:
            return
        if sent is None:
            end(p, account)
            return
        arriving.append((p, sent))
        if len(arriving) >= RUNS_AT_ONCE:
            look()
        while looked_at and looked_at[0][1].done():
            note()

    def look() -> None:
        if arriving:
            looked_at.append((arriving[:], pool.submit(check, [sent for _, sent in arriving])))
            arriving.clear()

    def note() -> None:
        runs, future = looked_at.popleft()
        try:
            future.result()
        except Stopped:
            return
        for p, sent in runs:
            end(p, sent.account)

    def end(p: Planned, account: Account) -> None:
        row = p.run.row
        ledger.write(
            account,
            source=row["source"],
            storage_id=row["storage_id"],
            destination=there.client.source,
            namespace=p.place.path,
        )
        totals.add(account)
        note_name(p, account.destination.rpartition("/")[2])
        progress.ended(account)

    try:
        for p, run, ready, new in _loaded(reader, there, waiting):
            if stop.is_set():
                break
            under_way.append((p, pool.submit(send, p, run, ready, new)))
            while len(under_way) > 2 * options.workers or (under_way and under_way[0][1].done()):
                settle()
        while under_way:
            settle()
        look()
        while looked_at:
            note()
    finally:
        pool.close()
    if stop.is_set():
        totals.errors.append(INTERRUPTED)
    return totals


def _loaded(
    reader: Reader, there: Destination, planned: Sequence[Planned]
) -> Iterator[tuple[Planned, MirroredRun, Ready, bool]]:
    """Runs with their documents, what else is read of them together, and whether each is new there, asked for some at a
    time."""
    for start in range(0, len(planned), _AT_ONCE):
        part = planned[start : start + _AT_ONCE]
        absent: set[tuple[Namespace, str]] = set()
        for place in {p.place for p in part}:
            names = [p.name for p in part if p.place == place]
            held = held_runs(there.client, place.entity, place.project, names)
            absent |= {(place, name) for name in names if held[name] is None}
        runs = mirrored_runs(reader, [p.run.rid for p in part])
        together = Together(reader, runs, plain=[run for run in runs if not gathered(run.row)])
        for p, run in zip(part, runs, strict=True):
            yield p, run, together.ready(run.rid), (p.place, p.name) in absent


def plan(
    reader: Reader, rids: Sequence[int], there: Destination, options: PushOptions, ledger: Ledger | None = None
) -> list[Planned]:
    """Which runs go where, and which of them are there already. Raises UsageError as `push_runs` does."""
    ledger = ledger or Ledger(options.ledger or reader.layout.root, "run")
    found = [Planned(run, options.place(run.namespace), run.row["run_id"]) for run in listed_runs(reader, rids)]
    _check_places(reader, there, found)
    if not options.incremental:
        return found
    by_place: dict[Namespace, list[tuple[Planned, Success]]] = {}
    for p in found:
        row = p.run.row
        success = ledger.success(row["source"], row["storage_id"], there.client.source, p.place.path)
        if success is not None and success.fingerprint == p.run.fingerprint():
            by_place.setdefault(p.place, []).append((replace(p, name=success.name), success))
    done: dict[int, Planned] = {}
    for place, sent in by_place.items():
        held = held_runs(there.client, place.entity, place.project, [p.name for p, _ in sent])
        for p, success in sent:
            copy, counts = held[p.name], success.counts
            if copy and copy.history == counts["history"] and copy.system in (None, counts["system"]):
                done[p.run.rid] = replace(p, done=True)
    return [done.get(p.run.rid, p) for p in found]


def _check_places(reader: Reader, there: Destination, planned: Sequence[Planned]) -> None:
    places: dict[tuple[Namespace, str], MirroredRun] = {}
    store = there.client.transport.store_id
    for p in planned:
        if p.run.row["source"] == there.client.source and p.run.namespace == p.place:
            raise UsageError(
                f"`{p.run.path}` was mirrored from `{there.client.source}`: it would be sent to where it came from; "
                f"name another project (--remap {p.place.path}=ENTITY/PROJECT) or another server"
            )
        if store is not None and store == reader.snapshot.store_id:
            raise UsageError(
                f"`{there.client.transport.base_url}` serves this very mirror: send its runs to another server"
            )
        other = places.setdefault((p.place, p.name), p.run)
        if other is not p.run:
            raise UsageError(
                f"`{other.path}` ({other.row['source']}) and `{p.run.path}` ({p.run.row['source']}) would both become "
                f"`{p.place.path}/{p.name}`: name one source (--source), or send their projects to two places (--remap)"
            )
