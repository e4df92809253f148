"""MLflow as a source of runs: an experiment is a project of the entity `mlflow`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TypeVar

from mirror.errors import SourceError
from mirror.pool import Pool
from mirror.records import Fetched, FileEntry, ItemKey, ListedRun, Listing, Project, RunKey
from mirror.sources.mlflow import registry
from mirror.sources.mlflow.document import document, fingerprint, when
from mirror.sources.mlflow.points import Points
from mirror.sources.mlflow.road import Json, Road
from mirror.sources.mlflow.rows import Digest, rows
from mirror.sources.protocol import (
    Document,
    Finished,
    HistoryRead,
    Items,
    Manifest,
    Restart,
    Rows,
    Step,
    Trouble,
    Wanted,
)
from mirror.wandb.transport import Sink, Traffic

ENTITY = "mlflow"
TOGETHER = 20
"""Runs whose documents are held in memory, and whose points are asked for together."""
_AT_ONCE = 8
_T = TypeVar("_T")
_U = TypeVar("_U")


class MlflowSource:
    """See `mirror.sources.protocol.Source`. `experiments` are names, none for all; `deleted` takes in what MLflow
    holds as deleted; `filter_` is in MLflow's own language and judged by its server."""

    def __init__(
        self, road: Road, *, experiments: Sequence[str] = (), deleted: bool = False, filter_: str | None = None
    ) -> None:
        self.errors: list[str] = []
        self.notices: list[str] = []
        self.whole = None if experiments else ENTITY
        self._road = road
        self._named = experiments
        self._deleted = deleted
        self._filter = filter_
        self._ids: dict[str, Json] = {}
        self._versions: dict[str, list[Json]] = {}
        self._unread = False
        self.downloads = Pool(_AT_ONCE, "mlflow")

    @property
    def name(self) -> str:
        return self._road.name

    @property
    def traffic(self) -> Traffic:
        return self._road.traffic

    def places(self) -> list[Project]:
        """The experiments; asks for the model registry, too, which is one for all. Raises SourceError."""
        self._ids = {found["name"]: found for found in self._road.experiments(self._deleted)}
        for name in self._named:
            if name not in self._ids:
                self.errors.append(f"`{self.name}` has no experiment `{name}`: check the spelling")
        found = registry.registered(self._road.models(), self._road.versions())
        self._versions = found.by_run
        if found.homeless:
            some = ", ".join(f"`{name}`" for name in found.homeless[:5])
            more = f" and {len(found.homeless) - 5:,} more" if len(found.homeless) > 5 else ""
            self.notices.append(f"registered models that no run made are not mirrored: {some}{more}")
        return [self._project(e) for name, e in self._ids.items() if not self._named or name in self._named]

    def projects(self, entity: str) -> list[Project]:
        return self.places() if entity == ENTITY else []

    def _project(self, experiment: Json) -> Project:
        return Project(
            self.name,
            ENTITY,
            experiment["name"],
            storage_id=str(experiment["experiment_id"]),
            created_at=when(experiment.get("creation_time")),
        )

    def listing(
        self,
        entity: str,
        project: str,
        run_ids: Sequence[str] | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> Listing:
        experiment = self._ids[project]
        found: dict[str, ListedRun] = {}
        for run, points in self._road.runs(str(experiment["experiment_id"]), self._deleted, self._filter):
            run_id = run["info"]["run_id"]
            if run_ids is None or run_id in run_ids:
                key = RunKey(self.name, run_id, ENTITY, project, run_id)
                mark = fingerprint(run, points, self._versions.get(run_id, []))
                found[run_id] = ListedRun(key, mark, points)
                progress(len(found), None)
        return Listing(self._project(experiment), list(found.values()), complete=True, everything=self._filter is None)

    def addresses(
        self, owner: RunKey | ItemKey, wanted: Sequence[tuple[str, list[str]]]
    ) -> list[dict[str, tuple[str, FileEntry | None]]]:
        if isinstance(owner, ItemKey):
            return [{} for _ in wanted]  # model versions list no files
        found = [self._road.addresses(run_id, names) for run_id, names in wanted]
        return [{name: (address, None) for name, address in one.items()} for one in found]

    def save(self, url: str, out: Sink, *, resume: bool = False) -> None:
        """From the first byte on in any case: MLflow gives out no parts."""
        out.seek(0)
        out.truncate()
        self._road.save(url, out)

    def fetch(self, wanted: Sequence[Wanted]) -> Iterator[Step]:
        todo = []
        for one in wanted:
            if one.glance and one.history.proven:
                yield Finished(one.key, one.listed.fingerprint, one.memo or "")
            else:
                todo.append(one)
        for start in range(0, len(todo), TOGETHER):
            yield from self._together(todo[start : start + TOGETHER])

    def _together(self, wanted: Sequence[Wanted]) -> Iterator[Step]:
        """Some runs, whose questions are asked side by side."""
        try:
            experiment = str(self._ids[wanted[0].key.project]["experiment_id"])
            found = self._road.documents(experiment, [one.key.run_id for one in wanted])
        except SourceError as e:
            for one in wanted:
                yield Trouble(one.key, "documents", str(e))
                yield Finished(one.key)
            return
        yield from (Finished(one.key, gone=True) for one in wanted if one.key.run_id not in found)
        runs = [(one, run) for one in wanted if (run := found.get(one.key.run_id)) is not None]
        documents = [run for _, run in runs]
        files = self._side_by_side(self._road.files, documents)
        with ExitStack() as stack:
            points: Mapping[str, Points | SourceError]
            try:
                points = stack.enter_context(self._road.points(documents))
            except SourceError as e:
                points = {one.key.run_id: e for one, _ in runs}
            for (one, run), listed in zip(runs, files, strict=True):
                try:
                    yield from self._run(one, run, listed, points[one.key.run_id])
                except SourceError as e:
                    yield Trouble(one.key, "history", str(e))
                    yield Finished(one.key)

    def _side_by_side(self, ask: Callable[[_T], _U], about: Sequence[_T]) -> list[_U | SourceError]:
        found: list[_U | SourceError] = []
        for future in [self.downloads.submit(ask, one) for one in about]:
            try:
                found.append(future.result())
            except SourceError as e:
                found.append(e)
        return found

    def _run(
        self, wanted: Wanted, run: Json, files: list[FileEntry] | SourceError | None, points: Points | SourceError
    ) -> Iterator[Step]:
        key = wanted.key
        yield Document(document(key, run, self._road.url(run)))
        if versions := self._versions.get(key.run_id):
            yield Items(key, registry.items(key, versions))
        if isinstance(files, SourceError):
            yield Trouble(key, "files", str(files))
        elif files is not None:
            yield Manifest(key, files)
        elif not self._unread:
            self._unread = True
            self.notices.append(f"`{self.name}` does not tell which artifacts there are: its server would")
        digest = Digest()
        if isinstance(points, SourceError):
            yield Trouble(key, "history", str(points))
        else:
            yield from _history(wanted, points, digest)
        # As listed, not as read: what is logged meanwhile is noticed by the next sync.
        yield Finished(key, wanted.listed.fingerprint, json.dumps({"rows": digest.rows, "digest": digest.text()}))


def _history(wanted: Wanted, points: Points, digest: Digest) -> Iterator[Step]:
    """All points are read, for a later one may lie before those that are held; only what follows them is handed
    over if they are still the beginning."""
    skip = _begins(rows(islice(points, _held(wanted))), wanted)
    if not skip and (wanted.history.rows or wanted.history.pending):
        yield Restart(wanted.key)
    left = skip
    for batch in rows(points):
        digest.take(batch)
        new, left = batch[left:], max(0, left - len(batch))
        if new:
            yield Rows(wanted.key, new)
    complete = digest.rows == points.total
    total = digest.rows if complete else points.total
    yield HistoryRead(wanted.key, Fetched("history", "points", got=digest.rows, total=total, complete=complete))


def _held(wanted: Wanted) -> int:
    """How many rows were read last time, if they are all held."""
    try:
        count = int(json.loads(wanted.memo or "{}").get("rows", 0))
    except (ValueError, TypeError, AttributeError):
        return 0
    whole = wanted.history.proven and not wanted.history.pending and wanted.history.rows == count
    return count if whole else 0


def _begins(first: Iterator[list[str]], wanted: Wanted) -> int:
    """How many rows need not be handed over again, since those held are the beginning of those there are."""
    digest = Digest()
    for batch in first:
        digest.take(batch)
    held = _held(wanted)
    same = held and digest.rows == held and digest.text() == json.loads(wanted.memo or "{}").get("digest")
    return held if same else 0
