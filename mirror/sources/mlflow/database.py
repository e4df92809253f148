"""The SQLite file of an MLflow backend store, read without MLflow. Its tables are those that MLflow made from 2.14 on;
the columns used here have not changed since."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mirror.errors import SourceError, TerminalSourceError, TransientSourceError
from mirror.records import FileEntry
from mirror.sources.mlflow.points import Points
from mirror.sources.mlflow.road import Json
from mirror.wandb.transport import Sink, Traffic

_EXPERIMENTS = """
select cast(experiment_id as text) as experiment_id, name, lifecycle_stage, creation_time, last_update_time
from experiments e where ? or lifecycle_stage = 'active' order by e.experiment_id
"""
_RUN = """
select run_uuid as run_id, name as run_name, cast(experiment_id as text) as experiment_id, user_id, status, start_time,
    end_time, artifact_uri, lifecycle_stage from runs
"""
_METRICS = """
select key, case when is_nan then 'NaN' else value end as value, timestamp, step from latest_metrics
where run_uuid = ? order by key
"""
_DATASETS = """
select i.input_uuid, d.name, d.digest, d.dataset_source_type as source_type, d.dataset_source as source,
    d.dataset_schema as schema, d.dataset_profile as profile
from inputs i join datasets d on d.dataset_uuid = i.source_id
where i.source_type = 'DATASET' and i.destination_type = 'RUN' and i.destination_id = ? order by d.name, d.digest
"""
_MODELS = """
select i.* from inputs i
where i.source_type = ? and i.destination_type = ? and i.source_id = ? order by i.destination_id
"""
_REGISTERED = """
select name, creation_time as creation_timestamp, last_updated_time as last_updated_timestamp, description
from registered_models order by name
"""
_VERSIONS = """
select name, version, creation_time as creation_timestamp, last_updated_time as last_updated_timestamp, description,
    user_id, current_stage, source, run_id, status, run_link from model_versions
where coalesce(current_stage, '') <> 'Deleted_Internal' order by name, version
"""


class DatabaseRoad:
    """See `mirror.sources.mlflow.road.Road`. The file is opened for reading only."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.traffic = Traffic()

    @property
    def name(self) -> str:
        return f"mlflow:{self.path}"

    def url(self, run: Json) -> str | None:
        return None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the file."""
        if not self.path.is_file():
            raise TerminalSourceError(f"`{self.path}` does not exist: check the path of MLflow's SQLite file")
        try:
            uri = f"{self.path.as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)) as connection:
                connection.isolation_level = None
                connection.row_factory = sqlite3.Row
                connection.execute("begin")
                connection.execute("select run_uuid from runs limit 1").fetchone()
                yield connection
        except sqlite3.OperationalError as e:
            if "locked" in str(e) or "busy" in str(e):
                raise TransientSourceError(f"`{self.path}` is locked by a writer: try again later", e) from e
            raise self._no_store(e) from e
        except sqlite3.Error as e:
            raise self._no_store(e) from e

    def _no_store(self, error: sqlite3.Error) -> SourceError:
        return TerminalSourceError(
            f"`{self.path}` cannot be read as an MLflow store (`{error}`): name the file that `mlflow server` has as "
            "--backend-store-uri, of MLflow 2.14 or later (`mlflow db upgrade`)",
            error,
        )

    def experiments(self, deleted: bool) -> list[Json]:
        with self._open() as connection:
            return _dicts(connection, _EXPERIMENTS, deleted)

    def runs(self, experiment_id: str, deleted: bool, filter_: str | None = None) -> Iterator[tuple[Json, int | None]]:
        if filter_ is not None:
            raise TerminalSourceError("--filter is judged by MLflow's server: name one, mlflow:http://HOST:PORT")
        with self._open() as connection:
            for info in connection.execute(
                f"{_RUN} where experiment_id = ? and (? or lifecycle_stage = 'active') order by start_time, run_uuid",
                [int(experiment_id), deleted],
            ):
                run = self._whole(connection, dict(info))
                count = connection.execute("select count(*) from metrics where run_uuid = ?", [info["run_id"]])
                yield run, count.fetchone()[0]

    def documents(self, experiment_id: str, run_ids: Sequence[str]) -> dict[str, Json]:
        found = {}
        with self._open() as connection:
            for run_id in run_ids:
                info = connection.execute(f"{_RUN} where run_uuid = ?", [run_id]).fetchone()
                if info is not None:
                    found[run_id] = self._whole(connection, dict(info))
        return found

    def _whole(self, connection: sqlite3.Connection, info: Json) -> Json:
        run_id = info["run_id"]
        datasets = _dicts(connection, _DATASETS, run_id)
        inputs = [
            {
                "tags": _dicts(connection, "select name as key, value from input_tags where input_uuid = ?", one),
                "dataset": {name: value for name, value in dataset.items() if value is not None},
            }
            for dataset in datasets
            for one in [dataset.pop("input_uuid")]
        ]
        pairs = "select key, value from {} where run_uuid = ? order by key"
        return {
            "info": {name: value for name, value in info.items() if value is not None},
            "data": {
                "metrics": _dicts(connection, _METRICS, run_id),
                "params": _dicts(connection, pairs.format("params"), run_id),
                "tags": _dicts(connection, pairs.format("tags"), run_id),
            },
            "inputs": {
                "dataset_inputs": inputs,
                "model_inputs": _models(connection, "RUN_INPUT", "MODEL_INPUT", run_id),
            },
            "outputs": {"model_outputs": _models(connection, "RUN_OUTPUT", "MODEL_OUTPUT", run_id)},
        }

    @contextmanager
    def points(self, runs: Sequence[Json]) -> Iterator[dict[str, Points | SourceError]]:
        with self._open() as connection:
            connection.row_factory = None
            yield {run_id: Points(connection, run_id) for run in runs for run_id in [run["info"]["run_id"]]}

    def files(self, run: Json) -> list[FileEntry] | None:
        folder = _folder(run)
        if folder is None:
            return None
        found = []
        for where, _, names in os.walk(folder):
            for name in names:
                path = Path(where, name)
                if not path.is_symlink():
                    found.append(FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size))
        return sorted(found, key=lambda entry: entry.name)

    def addresses(self, run_id: str, names: Sequence[str]) -> dict[str, str]:
        run = self.documents("", [run_id]).get(run_id)
        folder = None if run is None else _folder(run)
        if folder is None:
            return {}
        inside = folder.resolve()
        paths = {name: folder / name for name in names}
        return {n: str(p) for n, p in paths.items() if p.is_file() and p.resolve().is_relative_to(inside)}

    def save(self, address: str, out: Sink) -> None:
        try:
            with Path(address).open("rb") as file:
                while chunk := file.read(1 << 20):
                    self.traffic.count(nbytes=len(chunk))
                    out.write(chunk)
        except OSError as e:
            raise TerminalSourceError(f"the file cannot be read ({e.strerror})", e) from e

    def models(self) -> list[Json]:
        with self._open() as connection:
            found = _dicts(connection, _REGISTERED)
            for model in found:
                tags = "select key, value from registered_model_tags where name = ? order by key"
                aliases = "select alias, cast(version as text) as version from registered_model_aliases where name = ?"
                model["tags"] = _dicts(connection, tags, model["name"])
                model["aliases"] = _dicts(connection, aliases, model["name"])
        return found

    def versions(self) -> list[Json]:
        with self._open() as connection:
            found = _dicts(connection, _VERSIONS)
            tags = "select key, value from model_version_tags where name = ? and version = ? order by key"
            for version in found:
                version["tags"] = _dicts(connection, tags, version["name"], version["version"])
        return found


def _models(connection: sqlite3.Connection, source: str, destination: str, run_id: str) -> list[Json]:
    found = _dicts(connection, _MODELS, source, destination, run_id)
    return [{"model_id": one["destination_id"]} | ({"step": one["step"]} if one.get("step") else {}) for one in found]


def _folder(run: Json) -> Path | None:
    """Where a run's artifacts lie, if that is on this machine."""
    url = urlsplit(run["info"].get("artifact_uri") or "")
    if url.scheme not in ("", "file") or not url.path:
        return None  # `mlflow-artifacts:` and buckets: only a server knows the way
    folder = Path(unquote(url.path) if url.scheme else url.path)
    return folder if folder.is_absolute() else None


def _dicts(connection: sqlite3.Connection, query: str, *params: Any) -> list[Json]:
    return [dict(row) for row in connection.execute(query, params)]
