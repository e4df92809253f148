"""MLflow as a source of runs: an experiment is a project of the entity `mlflow`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from mirror.errors import SourceError
from mirror.records import Fetched, ListedRun, Listing, Project, RunKey
from mirror.sources.mlflow import registry
from mirror.sources.mlflow.document import document, fingerprint, when
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
from mirror.wandb.transport import Traffic

ENTITY = "mlflow"


class MlflowSource:
    """See `mirror.sources.protocol.Source`. `experiments` are names, none for all; `deleted` takes in what MLflow
    holds as deleted; `filter_` is in MLflow's own language and judged by its server."""

    def __init__(
        self, road: Road, *, experiments: Sequence[str] = (), deleted: bool = False, filter_: str | None = None
    ) -> None:
        self.errors: list[str] = []
        self.notices: list[str] = []
        self._road = road
        self._named = experiments
        self._deleted = deleted
        self._filter = filter_
        self._ids: dict[str, Json] = {}
        self._versions: dict[str, list[Json]] = {}
        self._unread = False

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
        self._versions = registry.by_run(self._road.versions())
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

    def fetch(self, wanted: Sequence[Wanted]) -> Iterator[Step]:
        for one in wanted:
            if one.glance and one.history.proven:
                yield Finished(one.key, one.listed.fingerprint, one.memo or "")
                continue
            try:
                yield from self._fetch(one)
            except SourceError as e:
                yield Trouble(one.key, "history", str(e))
                yield Finished(one.key)

    def _fetch(self, wanted: Wanted) -> Iterator[Step]:
        key = wanted.key
        run = self._road.run(key.run_id)
        if run is None:
            yield Finished(key, gone=True)
            return
        yield Document(document(key, run, self._road.url(run)))
        if versions := self._versions.get(key.run_id):
            yield Items(key, registry.items(key, versions))
        try:
            files = self._road.files(run)
        except (SourceError, OSError) as e:
            yield Trouble(key, "files", str(e))
        else:
            if files is not None:
                yield Manifest(key, files)
            elif not self._unread:
                self._unread = True
                self.notices.append(f"`{self.name}` does not tell which artifacts there are: its server would")
        digest = Digest()
        yield from self._history(wanted, run, digest)
        # As listed, not as read: what is logged meanwhile is noticed by the next sync.
        yield Finished(key, wanted.listed.fingerprint, json.dumps({"rows": digest.rows, "digest": digest.text()}))

    def _history(self, wanted: Wanted, run: Json, digest: Digest) -> Iterator[Step]:
        """All points are read, for a later one may lie before those that are held; only what follows them is
        handed over if they are still the beginning."""
        with self._road.points(run) as points:
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
            got = digest.rows
        total = got if complete else points.total
        yield HistoryRead(wanted.key, Fetched("history", "points", got=got, total=total, complete=complete))


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
