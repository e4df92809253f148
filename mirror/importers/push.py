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
    planned = plan(reader, rids, there, options, ledger)
    waiting = [p for p in planned if not p.done]
    progress.planned(len(waiting), sum(p.run.row["history_rows"] for p in waiting))
    places = {(p.run.row["source"], p.run.namespace): p.place for p in waiting}
    copies, totals.errors = copy_sweeps(reader, there.client, {**places, **(whole or {})})
    there = replace(there, sweeps=copies, leading=leading_to(there, reader, options.place))
    push = _Push(reader, there, options.workers, ledger, totals, progress)
    for p in planned:
        if p.done:
            push.skip(p)
    try:
        for p, run, ready, new in _loaded(reader, there, waiting):
            if stop.is_set():
                break
            push.start(p, run, ready, new)
        push.finish()
    finally:
        push.pool.close()
    if stop.is_set():
        totals.errors.append(INTERRUPTED)
    return totals


class _Push:
    """Runs on their way: sent side by side, looked at some at a time when they were sent, noted when they are there."""

    def __init__(
        self,
        reader: Reader,
        there: Destination,
        workers: int,
        ledger: Ledger,
        totals: Totals,
        progress: PushProgress,
    ) -> None:
        self.pool = Pool(workers, "push")
        self._reader = reader
        self._there = there
        self._most = 2 * workers
        self._ledger = ledger
        self._totals = totals
        self._progress = progress
        self._under_way: deque[tuple[Planned, Future[tuple[Account, SentRun | None]]]] = deque()
        self._arriving: list[tuple[Planned, SentRun]] = []
        self._looked_at: deque[tuple[list[tuple[Planned, SentRun]], Future[None]]] = deque()

    def skip(self, p: Planned) -> None:
        """What is there from an earlier push."""
        account = _account(p)
        account.skipped = True
        self._count(p, account)

    def start(self, p: Planned, run: MirroredRun, ready: Ready, new: bool) -> None:
        """Send a run as soon as a worker is free; waits while there are too many under way."""
        self._under_way.append((p, self.pool.submit(self._send, p, run, ready, new)))
        while len(self._under_way) > self._most or (self._under_way and self._under_way[0][1].done()):
            self._settle()

    def finish(self) -> None:
        """Wait for all that was started."""
        while self._under_way:
            self._settle()
        self._look()
        while self._looked_at:
            self._note()

    # -- by the workers -----------------------------------------------------------------------------------

    def _send(self, p: Planned, run: MirroredRun, ready: Ready, new: bool) -> tuple[Account, SentRun | None]:
        account = _account(p)
        try:
            sent = push_run(self._reader, run, self._there, p.place, account, self._progress.rows, ready=ready, new=new)
            return account, sent
        except Stopped:
            raise
        except Exception as e:
            account.failed(e)
            return account, None

    def _check(self, sent: Sequence[SentRun]) -> None:
        try:
            check_arrival(self._there.client, sent)
        except Stopped:
            raise
        except Exception as e:
            for run in sent:
                run.account.failed(e)

    # -- by who started them ------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait for the run that was started first."""
        p, future = self._under_way.popleft()
        if not wait([future], _LONG).done:  # what is there should not wait for a long run to be noted
            self._look()
        try:
            account, sent = future.result()
        except Stopped:
            return
        if sent is None:
            self._end(p, account)
            return
        self._arriving.append((p, sent))
        if len(self._arriving) >= RUNS_AT_ONCE:
            self._look()
        while self._looked_at and self._looked_at[0][1].done():
            self._note()

    def _look(self) -> None:
        if self._arriving:
            runs, self._arriving = self._arriving, []
            self._looked_at.append((runs, self.pool.submit(self._check, [sent for _, sent in runs])))

    def _note(self) -> None:
        runs, future = self._looked_at.popleft()
        try:
            future.result()
        except Stopped:
            return
        for p, sent in runs:
            self._end(p, sent.account)

    def _end(self, p: Planned, account: Account) -> None:
        row = p.run.row
        self._ledger.write(
            account,
            source=row["source"],
            storage_id=row["storage_id"],
            destination=self._there.client.source,
            namespace=p.place.path,
        )
        self._count(p, account)
        self._progress.ended(account)

    def _count(self, p: Planned, account: Account) -> None:
        self._totals.add(account)
        row, name = p.run.row, account.destination.rpartition("/")[2]
        if name != row["run_id"]:
            self._totals.renamed[row["entity"], row["project"], row["run_id"]] = name


def _account(p: Planned) -> Account:
    return Account(p.run.path, f"{p.place.path}/{p.name}", p.run.fingerprint())


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
