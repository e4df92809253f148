"""What a road to an MLflow store hands out, and the choice of the road."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

from mirror.errors import SourceError, UsageError
from mirror.records import FileEntry
from mirror.sources.mlflow.points import Points
from mirror.wandb.transport import Sink, Traffic

PREFIX = "mlflow:"
Json: TypeAlias = dict[str, Any]


class Road(Protocol):
    """A way to read a store. Experiments, runs and model versions are as in MLflow's REST API; `deleted` asks for
    deleted ones, too. Raises SourceError. Used by several threads at once."""

    @property
    def name(self) -> str:
        """The canonical name of the store."""
        ...

    @property
    def traffic(self) -> Traffic: ...

    def experiments(self, deleted: bool) -> list[Json]: ...

    def runs(self, experiment_id: str, deleted: bool, filter_: str | None = None) -> Iterator[tuple[Json, int | None]]:
        """Runs, each with its number of points if the road can count them."""
        ...

    def documents(self, experiment_id: str, run_ids: Sequence[str]) -> dict[str, Json]:
        """Some runs of an experiment, deleted or not, by run id; those that are not there are left out."""
        ...

    def points(self, runs: Sequence[Json]) -> AbstractContextManager[Mapping[str, Points | SourceError]]:
        """All points of all metrics of some runs, by run id; an error if those of a run cannot all be had."""
        ...

    def files(self, run: Json) -> list[FileEntry] | None:
        """The artifacts of a run; None if this road does not lead there."""
        ...

    def addresses(self, run_id: str, names: Sequence[str]) -> dict[str, str]:
        """Where the bytes of some artifacts of a run are, for `save`, as far as this road leads there."""
        ...

    def save(self, address: str, out: Sink) -> None:
        """Write the bytes behind an address to `out`, from the first on."""
        ...

    def models(self) -> list[Json]:
        """All registered models."""
        ...

    def versions(self) -> list[Json]:
        """All versions of all registered models; their aliases are told by the models."""
        ...

    def url(self, run: Json) -> str | None:
        """Where a browser shows a run."""
        ...


def open_road(text: str, environ: Mapping[str, str]) -> Road:
    """The road that `mlflow:URI` names. Raises UsageError."""
    uri = text.removeprefix(PREFIX)
    if uri.startswith(("http://", "https://")):
        from mirror.sources.mlflow.rest import RestRoad

        return RestRoad(uri, environ)
    if uri == "databricks" or uri.startswith("databricks://"):
        from mirror.sources.mlflow.databricks import DatabricksRoad

        return DatabricksRoad(uri, environ)
    if uri.startswith("databricks-uc"):
        raise UsageError(f"`{text}` names a registry of models: name the tracking server, mlflow:databricks")
    if uri.startswith("sqlite:"):
        from mirror.sources.mlflow.database import DatabaseRoad

        return DatabaseRoad(sqlite_file(uri, text))
    raise UsageError(
        f"`{text}` is read neither as a server nor as a SQLite file: write mlflow:http://HOST:PORT, "
        "mlflow:databricks or mlflow:sqlite:///PATH; for other stores start `mlflow server --backend-store-uri URI` "
        "and name that server"
    )


def sqlite_file(uri: str, text: str) -> Path:
    """The file of a URI as SQLAlchemy writes it: `sqlite:///relative`, `sqlite:////absolute`. `text` is what the
    user wrote. Raises UsageError."""
    url = urlsplit(uri)
    if url.netloc or len(url.path) < 2:
        raise UsageError(f"`{text}` names no file: write mlflow:sqlite:///relative/path or mlflow:sqlite:////absolute")
    return Path(url.path[1:])
