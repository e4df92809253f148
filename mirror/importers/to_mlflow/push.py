"""Mirrored runs to MLflow, to a tracking server or into its database: every number of their rows as a point with its
step and time, params, tags, files. MLflow holds numbers alone, and what it cannot hold is counted.

A run is found again by a tag, and gets what it lacks: that is how a push that was interrupted goes on. When runs were
sent, all their points are read back, those of many runs together, and compared with the mirror; then they are noted.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from mirror.errors import UsageError
from mirror.importers.account import INTERRUPTED, Account, Totals
from mirror.importers.ledger import Ledger
from mirror.importers.places import Namespace
from mirror.importers.push import PushProgress
from mirror.importers.run import MirroredRun, listed_runs, mirrored_runs
from mirror.importers.to_mlflow.destination import Destination
from mirror.importers.to_mlflow.document import identity
from mirror.importers.to_mlflow.run import Copy, There, prove, send_run
from mirror.pool import Pool
from mirror.portions import portions
from mirror.sources.mlflow.road import PREFIX, Json, sqlite_file
from mirror.wandb.budget import Stopped

if TYPE_CHECKING:
    from mirror.store import Reader

_TOGETHER, _ROWS = 20, 100_000
"""Runs, and rows of them, that are read back together."""
_LEAVING = 10
"""Seconds that threads have for what they are doing when all is to stop."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class MlflowOptions:
    """`experiments` names those that are not to be called `entity/project`; `incremental`: leave out what was sent
    before and is still there."""

    workers: int = 4
    incremental: bool = True
    experiments: Mapping[Namespace, str] = field(default_factory=dict)

    def experiment(self, namespace: Namespace) -> str:
        return self.experiments.get(namespace, namespace.path)


@dataclass(frozen=True)
class Planned:
    """A run that is to be sent (or was: `done`) to an experiment; `held` is its copy there, whole or not."""

    run: MirroredRun
    experiment: str
    held: str | None = None
    done: bool = False


def experiments(texts: Iterable[str]) -> dict[Namespace, str]:
    """What `--remap entity/project=EXPERIMENT` says. Raises UsageError."""
    found: dict[Namespace, str] = {}
    for text in texts:
        left, _, name = text.partition("=")
        if not name.strip():
            raise UsageError(f"`{text}` maps nothing: write --remap entity/project=EXPERIMENT")
        here = Namespace.from_path(left)
        if here in found:
            raise UsageError(f"`{here.path}` is mapped twice: it can become one experiment")
        found[here] = name
    return found


def open_destination(uri: str) -> Destination:
    """Writes nothing yet. Raises UsageError for what is no address of a server, and no database."""
    address = uri.removeprefix(PREFIX)
    if address.startswith(("http://", "https://")):
        from mirror.importers.to_mlflow.server import ServerDestination

        return ServerDestination(address, os.environ)
    if address.startswith("sqlite:"):
        from mirror.importers.to_mlflow.database import DatabaseDestination

        return DatabaseDestination(sqlite_file(address, uri))
    if address.startswith(("postgresql", "mysql", "mssql")):
        raise UsageError(
            f"`{uri}` is a database that is written by a server alone: start `mlflow server --backend-store-uri "
            f"{address}` and name it, --to mlflow:http://127.0.0.1:5000"
        )
    raise UsageError(f"`{uri}` is no MLflow server: write --to mlflow:http://HOST:PORT, or mlflow:sqlite:///PATH")


def plan_mlflow(
    reader: Reader, rids: Sequence[int], there: Destination, options: MlflowOptions, ledger: Ledger
) -> list[Planned]:
    """Which runs go into which experiment, and what is there of them. Writes nothing; raises UsageError if a run would
    be sent to where it came from, a SourceError if it cannot be asked."""
    planned: list[Planned] = []
    by_experiment: dict[str, list[MirroredRun]] = {}
    for run in listed_runs(reader, rids):
        by_experiment.setdefault(options.experiment(run.namespace), []).append(run)
    for name, some in by_experiment.items():
        for run in some:
            if run.row["source"] == there.name and run.row["project"] == name:
                raise UsageError(
                    f"`{run.path}` was mirrored from `{there.name}`: it would be sent to where it came from; name "
                    f"another experiment (--remap {run.namespace.path}=EXPERIMENT) or another server"
                )
        planned += _found(there, name, some, options, ledger)
    return planned


def _found(
    there: Destination, name: str, runs: Sequence[MirroredRun], options: MlflowOptions, ledger: Ledger
) -> Iterator[Planned]:
    experiment = there.experiment(name)
    if experiment is None or experiment.get("lifecycle_stage") == "deleted":
        yield from (Planned(run, name) for run in runs)
        return
    experiment_id = str(experiment["experiment_id"])
    noted = {
        run.rid: success
        for run in runs
        if (success := ledger.success(run.row["source"], run.row["storage_id"], there.name, name))
    }
    active = there.active(experiment_id, [success.name for success in noted.values()])
    lost = [identity(run.row) for run in runs if run.rid not in noted or noted[run.rid].name not in active]
    held = there.copies(experiment_id, lost) if lost else {}
    for run in runs:
        success = noted.get(run.rid)
        if success is None or success.name not in active:
            yield Planned(run, name, held.get(identity(run.row)))
        else:
            done = options.incremental and success.fingerprint == run.fingerprint()
            yield Planned(run, name, success.name, done)


def push_to_mlflow(
    reader: Reader,
    rids: Sequence[int],
    there: Destination,
    options: MlflowOptions,
    *,
    progress: PushProgress | None = None,
    stop: threading.Event | None = None,
) -> Totals:
    """Send runs; returns what became of them. A run that fails leaves the others alone; run it again to try again.

    Raises as `plan_mlflow` does.
    """
    ledger = Ledger(reader.layout.root, "run")
    planned = plan_mlflow(reader, rids, there, options, ledger)
    return _Push(reader, there, options, ledger, progress or PushProgress(), stop or threading.Event()).send(planned)


@dataclass
class _Sent:
    planned: Planned
    account: Account
    copy: Copy | None = None


class _Push:
    def __init__(
        self,
        reader: Reader,
        there: Destination,
        options: MlflowOptions,
        ledger: Ledger,
        progress: PushProgress,
        stop: threading.Event,
    ) -> None:
        self._reader = reader
        self._destination = there
        self._ledger = ledger
        self._progress = progress
        self._runs = Pool(options.workers, "mlflow-runs")
        self._proofs = Pool(1, "mlflow-proof")
        self._there = There(there, Pool(options.workers, "mlflow-parts"), options.workers, stop, progress.rows)
        self._ids: dict[str, str | None] = {}
        self._totals = Totals()

    def send(self, planned: Sequence[Planned]) -> Totals:
        waiting = [p for p in planned if not p.done]
        if waiting:
            self._destination.open()
        self._progress.planned(len(waiting), sum(p.run.row["history_rows"] for p in waiting))
        for p in planned:
            if p.done:
                account = Account(p.run.path, f"{p.experiment}/{p.held}", p.run.fingerprint(), skipped=True)
                self._totals.add(account)
        sending: deque[list[Future[_Sent]]] = deque()
        proving: deque[tuple[list[_Sent], Future[None]]] = deque()
        try:
            for group in portions(waiting, _rows, _ROWS, _TOGETHER):
                self._there.check()
                for name in {p.experiment for p in group} - self._ids.keys():
                    self._ids[name] = self._experiment(name)
                runs = mirrored_runs(self._reader, [p.run.rid for p in group])
                sending.append(
                    [self._runs.submit(self._send, replace(p, run=run)) for p, run in zip(group, runs, strict=True)]
                )
                if len(sending) > 1:
                    self._prove(sending, proving)
                if len(proving) > 1:
                    self._note(proving)
            while sending:
                self._prove(sending, proving)
            while proving:
                self._note(proving)
        except Stopped:
            self._totals.errors.append(INTERRUPTED)
        finally:
            self._runs.close()
            self._proofs.close()
            # Python must not end while a thread of it is within DuckDB.
            begun: list[Future[Any]] = [future for group in sending for future in group]
            begun += [future for _, future in proving]
            wait([future for future in begun if not future.cancelled()], timeout=_LEAVING)
            self._there.pool.close()
        return self._totals

    def _experiment(self, name: str) -> str | None:
        """Its id; made if there is none, None if it was deleted."""
        found = self._destination.experiment(name)
        if found is None:
            return self._destination.make_experiment(name)
        return None if found.get("lifecycle_stage") == "deleted" else str(found["experiment_id"])

    def _send(self, p: Planned) -> _Sent:
        sent = _Sent(p, Account(p.run.path, f"{p.experiment}/{p.held or ''}", p.run.fingerprint()))
        try:
            experiment = self._ids[p.experiment]
            if experiment is None:
                raise UsageError(
                    f"experiment `{p.experiment}` was deleted there, and MLflow keeps its name: restore it, or name "
                    f"another (--remap {p.run.namespace.path}=EXPERIMENT)"
                )
            sent.copy = send_run(self._reader, p.run, self._there, experiment, p.held, sent.account)
            sent.account.destination = f"{p.experiment}/{sent.copy.run_id}"
        except Stopped:
            raise
        except Exception as e:
            sent.account.failed(e)
        return sent

    def _prove(self, sending: deque[list[Future[_Sent]]], proving: deque[tuple[list[_Sent], Future[None]]]) -> None:
        """Let the runs that were sent first be read back."""
        sent = [self._result(future) for future in sending[0]]
        sending.popleft()
        proving.append((sent, self._proofs.submit(self._read_back, sent)))

    def _read_back(self, group: Sequence[_Sent]) -> None:
        by_experiment: dict[str, list[tuple[_Sent, Copy]]] = {}
        for one in group:
            if one.copy is not None:
                by_experiment.setdefault(self._ids[one.planned.experiment] or "", []).append((one, one.copy))
        for experiment, some in by_experiment.items():
            try:
                found = self._destination.active(experiment, [copy.run_id for _, copy in some])
                self._compare(found, some)
            except Stopped:
                raise
            except Exception as e:
                for one, _ in some:
                    if one.account.ok:
                        one.account.failed(e)

    def _compare(self, found: Mapping[str, Json], some: Sequence[tuple[_Sent, Copy]]) -> None:
        with self._destination.points(list(found.values())) as points:
            for one, copy in some:
                self._there.check()
                document = found.get(copy.run_id)
                try:
                    prove(self._there, copy, document, points[copy.run_id] if document else None, one.account)
                except Exception as e:
                    one.account.failed(e)

    def _note(self, proving: deque[tuple[list[_Sent], Future[None]]]) -> None:
        """Write down what became of the runs that were read back first."""
        group, proof = proving[0]
        self._result(proof)
        proving.popleft()
        for one in group:
            row = one.planned.run.row
            self._ledger.write(
                one.account,
                source=row["source"],
                storage_id=row["storage_id"],
                destination=self._destination.name,
                namespace=one.planned.experiment,
            )
            self._totals.add(one.account)
            self._progress.ended(one.account)

    def _result(self, future: Future[_T]) -> _T:
        """Waits for it, but no longer than until all is to stop."""
        while not wait([future], timeout=0.2).done:
            self._there.check()
        return future.result()


def _rows(p: Planned) -> int:
    return int(p.run.row["history_rows"] + p.run.row["system_rows"])
