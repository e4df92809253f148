"""The SQLite file of an MLflow backend store as a destination, also beside a server that uses it: runs are made by
MLflow's own store, their points are written many at a time."""

from __future__ import annotations

import json
import math
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError, SourceError, TerminalSourceError, TransientSourceError
from mirror.importers.to_mlflow.bulk import TRIED, PointTables, batches
from mirror.importers.to_mlflow.destination import ENTITIES, IDENTITY, PAIRS, Pairs
from mirror.importers.to_mlflow.own_store import opened
from mirror.records import FileEntry
from mirror.sources.mlflow.database import DatabaseRoad
from mirror.sources.mlflow.points import Point, Points
from mirror.sources.mlflow.road import Json

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

PATIENCE = 30.0
"""Seconds to wait for another writer; no more than a second if it did not let go the last time."""
_TOGETHER = 500_000
"""Points that are read in one go, during which nobody can write."""
_EXPERIMENT = "select cast(experiment_id as text) as experiment_id, lifecycle_stage from experiments where name = ?"
_FIRST = """
select max(version_num), (select artifact_location from experiments where experiment_id = 0) from alembic_version
"""
_COPIES = """
select t.value, r.run_uuid from runs r join tags t using (run_uuid)
where r.experiment_id = ? and r.lifecycle_stage = 'active' and t.key = ? and t.value in (select value from json_each(?))
order by r.start_time desc, r.run_uuid desc
"""
_TABLE = """
create temp table metrics (
    run_uuid text, key text, timestamp integer, step integer, value real, is_nan integer,
    primary key (run_uuid, key, timestamp, step, is_nan, value)
) without rowid
"""
_PORTION = "select max(rowid) from (select rowid from main.metrics where run_uuid = ? and rowid > ? order by 1 limit ?)"
_TAKE = """
insert into temp.metrics select run_uuid, key, timestamp, step, value, is_nan from main.metrics
where run_uuid = ? and rowid > ? and rowid <= ?
"""
_UNLIKE = """
select key from main.latest_metrics l where run_uuid = ? and (step, timestamp, value) is not (
    select step, timestamp, value from temp.metrics m where m.run_uuid = l.run_uuid and m.key = l.key
    order by step desc, timestamp desc, value desc limit 1)
union all
select distinct key from temp.metrics m where run_uuid = ?
    and not exists (select 1 from main.latest_metrics l where l.run_uuid = m.run_uuid and l.key = m.key)
limit 1
"""


class DatabaseDestination(DatabaseRoad):
    """See `mirror.importers.to_mlflow.destination.Destination`."""

    side_by_side = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.notices: list[str] = []
        self._lock = threading.Lock()
        self._patience = PATIENCE

    def open(self) -> None:
        revision = first = None
        if self.path.exists():
            with self._open() as connection:
                revision, first = connection.execute(_FIRST).fetchone()
        self._store: SqlAlchemyStore = opened(self.path, revision, first)
        self._connection = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        with self._writing():
            revision, _ = self._connection.execute(_FIRST).fetchone()
            self._tables = PointTables(self._connection)
            self._tried = revision in TRIED
        if not self._tried:
            self.notices.append(
                f"`{self.path}` has the schema `{revision}`, which bulk writing was not tried with: points go through "
                "MLflow's own store, which takes much longer"
            )

    # -- what is there ------------------------------------------------------------------------------------

    def experiment(self, name: str) -> Json | None:
        if not self.path.exists():
            return None
        with self._open() as connection:
            found = connection.execute(_EXPERIMENT, [name]).fetchone()
        return None if found is None else dict(found)

    def copies(self, experiment: str, identities: Sequence[str]) -> dict[str, str]:
        with self._open() as connection:
            found = connection.execute(_COPIES, [int(experiment), IDENTITY, json.dumps(identities)])
            return dict(map(tuple, found))  # the oldest comes last

    def active(self, experiment: str, run_ids: Sequence[str]) -> dict[str, Json]:
        found = self.documents(experiment, run_ids)
        return {
            run_id: run
            for run_id, run in found.items()
            if (run["info"]["experiment_id"], run["info"]["lifecycle_stage"]) == (experiment, "active")
        }

    @contextmanager
    def points(self, runs: Sequence[Json]) -> Iterator[dict[str, Points | SourceError]]:
        """Copied into a file of its own before they are handed out: whoever reads keeps writers waiting."""
        ids = [run["info"]["run_id"] for run in runs]
        with self._open() as connection:
            connection.row_factory = None
            connection.execute(_TABLE)
            found: dict[str, Points | SourceError] = {}
            for run_id in ids:
                last = 0
                while (until := connection.execute(_PORTION, [run_id, last, _TOGETHER]).fetchone()[0]) is not None:
                    connection.execute(_TAKE, [run_id, last, until])
                    connection.execute("commit")
                    connection.execute("begin")
                    last = until
            for run_id in ids:
                unlike = connection.execute(_UNLIKE, [run_id, run_id]).fetchone()
                found[run_id] = Points(connection, run_id) if unlike is None else _not_last(run_id, unlike[0])
            connection.execute("commit")
            yield found

    def files(self, run: Json) -> list[FileEntry] | None:
        found = super().files(run)
        if found is None:
            with self._told("its artifacts cannot be listed"):
                found = list(_listed(self._artifacts(run["info"]["artifact_uri"]), None))
        return found

    # -- writing ------------------------------------------------------------------------------------------

    def make_experiment(self, name: str) -> str:
        with self._writing():
            return str(self._store.create_experiment(name))

    def make_run(self, experiment: str, name: str, began: int, tags: Pairs) -> str:
        from mlflow.entities import RunTag

        listed = [RunTag(key, value) for key, value in tags.items()]
        with self._writing():
            return str(self._store.create_run(experiment, "", began, listed, name).info.run_id)

    def log(self, run_id: str, points: Iterator[Point], params: Pairs, tags: Pairs) -> Iterator[int]:
        from mlflow.entities import Metric, Param, RunTag

        left = [(iter(params.items()), Param), (iter(tags.items()), RunTag)]
        while any(some := [[kind(*pair) for pair in islice(pairs, PAIRS)] for pairs, kind in left]):
            with self._writing():
                self._store.log_batch(run_id, [], *some)
        if self._tried:
            for batch in batches(points):
                with self._writing():
                    self._tables.write(run_id, batch)
                yield len(batch)
            return
        metrics = (Metric(name, math.nan if value is None else value, at, step) for at, step, name, value in points)
        while some := list(islice(metrics, ENTITIES)):
            with self._writing():
                self._store.log_batch(run_id, some, [], [])
            yield len(some)

    def update(self, run_id: str, changes: Json) -> None:
        from mlflow.entities import RunStatus

        status = RunStatus.from_string(changes["status"])
        with self._writing():
            self._store.update_run_info(run_id, status, changes.get("end_time"), changes["run_name"])

    def put_file(self, experiment: str, run_id: str, name: str, content: bytes | Path) -> None:
        """By MLflow's own client of wherever the run's artifacts are."""
        run = self.documents(experiment, [run_id])[run_id]
        place = PurePosixPath(name)
        with ExitStack() as stack:
            stack.enter_context(self._told(f"`{name[:200]}` was refused"))
            repository = self._artifacts(run["info"]["artifact_uri"])
            local = Path(stack.enter_context(tempfile.TemporaryDirectory()), place.name)
            if isinstance(content, bytes):
                local.write_bytes(content)
            else:
                local.symlink_to(content.absolute())
            folder = str(place.parent)
            repository.log_artifact(str(local), None if folder == "." else folder)

    def _artifacts(self, uri: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if uri.startswith("mlflow-artifacts:"):
            raise TerminalSourceError(
                f"the artifacts of this experiment are at `{uri[:200]}`, kept by its server alone: send to that "
                "server (--to mlflow:http://HOST:PORT), or into another experiment (--remap)"
            )
        return get_artifact_repository(uri)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One thread at a time, when no other program writes."""
        from mlflow.exceptions import MlflowException

        with self._lock:
            try:
                self._connection.execute(f"pragma busy_timeout = {round(self._patience * 1000)}")
                self._connection.execute("begin immediate")
                self._connection.execute("rollback")
                self._patience = PATIENCE
                yield
            except (sqlite3.Error, MlflowException) as e:
                if "locked" in str(e) or "busy" in str(e):
                    self._patience = min(1.0, PATIENCE)
                    raise TransientSourceError(
                        f"`{self.path}` is locked by another program: run the same command again when it is done", e
                    ) from e
                raise TerminalSourceError(f"`{self.path}` cannot be written: {str(e)[:500]}", e) from e

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except MirrorError:
            raise
        except Exception as e:  # of any of the clients of object stores that MLflow uses
            raise TerminalSourceError(f"{what}: {type(e).__name__}: {str(e)[:300]}", e) from e


def _listed(repository: Any, folder: str | None) -> Iterator[FileEntry]:
    for entry in repository.list_artifacts(folder):
        if entry.is_dir:
            yield from _listed(repository, entry.path)
        else:
            yield FileEntry(entry.path, int(entry.file_size or 0))


def _not_last(run_id: str, key: str) -> SourceError:
    return TransientSourceError(
        f"what MLflow lists as the last point of `{key[:100]}` of run `{run_id}` is not: send it again"
    )
