"""MLflow's REST API, asked without MLflow: page by page, never by the calls that thin out or cut off.

`metrics/get-history-bulk` ends after 25,000 points and `get-history-bulk-interval` samples, both without a word
(mlflow 3.17); `metrics/get-history` gives all points of one metric in pages, which is what is asked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from mirror.errors import TerminalSourceError, TransientSourceError
from mirror.paths import api_url, canonical_source
from mirror.records import FileEntry
from mirror.sources.mlflow.document import number
from mirror.sources.mlflow.points import Point, Points, Spool
from mirror.sources.mlflow.road import Json
from mirror.wandb.transport import Traffic

_RUNS, _POINTS = 200, 20_000
"""How many runs and points to ask for at once; a run may have thousands of params and metrics."""
_RETRY = Retry(total=5, connect=2, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
"""Every request only reads, those by POST too."""


class RestRoad:
    """See `mirror.sources.mlflow.road.Road`. A key is taken from where MLflow's own client takes it:
    MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        self.base_url = api_url(url)
        self.traffic = Traffic()
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(max_retries=_RETRY))
        self._session.mount("https://", HTTPAdapter(max_retries=_RETRY))
        if token := environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user := environ.get("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (user, environ.get("MLFLOW_TRACKING_PASSWORD", ""))

    @property
    def name(self) -> str:
        return f"mlflow:{canonical_source(self.base_url)}"

    def url(self, run: Json) -> str | None:
        info = run["info"]
        return f"{self.base_url}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"

    # -- what there is ------------------------------------------------------------------------------------

    def experiments(self, deleted: bool) -> list[Json]:
        asked = {"max_results": 1000, "view_type": _view(deleted)}
        return list(self._pages("experiments/search", asked, "experiments"))

    def runs(self, experiment_id: str, deleted: bool, filter_: str | None = None) -> Iterator[tuple[Json, int | None]]:
        asked = {
            "experiment_ids": [experiment_id],
            "run_view_type": _view(deleted),
            "max_results": _RUNS,
            "order_by": ["attributes.start_time ASC"],  # so that runs begun meanwhile come last
        }
        if filter_ is not None:
            asked["filter"] = filter_
        for run in self._pages("runs/search", asked, "runs"):
            yield run, None

    def run(self, run_id: str) -> Json | None:
        found = self._ask("GET", "runs/get", {"run_id": run_id}, none_if_missing=True)
        return None if found is None else found["run"]

    def versions(self) -> list[Json]:
        found = list(self._pages("model-versions/search", {"max_results": 1000}, "model_versions", "GET"))
        for version in found:  # searching leaves out the aliases of versions
            version.setdefault("aliases", [])
        aliases: dict[tuple[str, str], list[str]] = {}
        if found:
            for model in self._pages("registered-models/search", {"max_results": 1000}, "registered_models", "GET"):
                for alias in model.get("aliases", ()):
                    aliases.setdefault((model["name"], str(alias["version"])), []).append(alias["alias"])
        for version in found:
            held = {*version["aliases"], *aliases.get((version["name"], str(version["version"])), ())}
            version["aliases"] = sorted(held)
        return found

    # -- a run --------------------------------------------------------------------------------------------

    @contextmanager
    def points(self, run: Json) -> Iterator[Points]:
        """Key by key, gathered on disk. Raises SourceError if a metric's last point is not among those that came."""
        run_id = run["info"]["run_id"]
        spool = Spool(run_id)
        with closing(spool.connection):
            for latest in run.get("data", {}).get("metrics", ()):
                key = latest["key"]
                missing = _Seek((int(latest["timestamp"]), int(latest.get("step", 0)), number(latest["value"])))
                spool.add(missing.watch(self._history(run_id, key)))
                if not missing.found:
                    raise TransientSourceError(
                        f"`{self.base_url}` did not give all points of metric `{key}` of run {run_id}: sync again later"
                    )
            yield spool.points()

    def _history(self, run_id: str, key: str) -> Iterator[Point]:
        asked = {"run_id": run_id, "metric_key": key, "max_results": _POINTS}
        for point in self._pages("metrics/get-history", asked, "metrics", "GET"):
            value = number(point["value"])
            yield int(point["timestamp"]), int(point.get("step", 0)), key, None if value != value else value

    def files(self, run: Json) -> list[FileEntry] | None:
        found, folders = list[FileEntry](), [""]
        seen = set(folders)
        while folders:
            folder = folders.pop()
            asked = {"run_id": run["info"]["run_id"]} | ({"path": folder} if folder else {})
            for entry in self._pages("artifacts/list", asked, "files", "GET"):
                if not entry.get("is_dir"):
                    found.append(FileEntry(entry["path"], int(entry.get("file_size") or 0)))
                elif entry["path"] not in seen:
                    seen.add(entry["path"])
                    folders.append(entry["path"])
        return sorted(found, key=lambda entry: entry.name)

    # -- asking -------------------------------------------------------------------------------------------

    def _pages(self, path: str, asked: Json, name: str, method: str = "POST") -> Iterator[Json]:
        token, seen = None, set[str]()
        while True:
            answer = self._ask(method, path, asked | ({"page_token": token} if token else {})) or {}
            yield from answer.get(name, ())
            token = answer.get("next_page_token")
            if not token:
                return
            if token in seen:
                raise TerminalSourceError(f"`{self.base_url}` sends the same page of {path} again and again")
            seen.add(token)

    def _ask(self, method: str, path: str, asked: Json, *, none_if_missing: bool = False) -> Json | None:
        url = f"{self.base_url}/api/2.0/mlflow/{quote(path)}"
        how: dict[str, Any] = {"params": asked} if method == "GET" else {"json": asked}
        try:
            response = self._session.request(method, url, timeout=(10, 120), **how)
            content = response.content
        except requests.exceptions.RequestException as e:
            raise TransientSourceError(
                f"cannot reach the MLflow server `{self.base_url}` ({type(e).__name__}): check address and network", e
            ) from e
        self.traffic.count(queries=1, nbytes=len(content))
        if none_if_missing and response.status_code == 404 and b"RESOURCE_DOES_NOT_EXIST" in content:
            return None
        if response.status_code in (401, 403):
            raise TerminalSourceError(
                f"`{self.base_url}` answers {response.status_code} to {path}: set MLFLOW_TRACKING_TOKEN, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        try:
            answer = orjson.loads(content)
            assert isinstance(answer, dict)
        except (ValueError, AssertionError) as e:
            raise TerminalSourceError(
                f"`{self.base_url}` is no MLflow server (it answers {response.status_code} to {path} without JSON)", e
            ) from e
        if response.status_code != 200:
            why = str(answer.get("message") or answer.get("error_code") or "no reason")[:500]
            raise TerminalSourceError(f"`{self.base_url}` refused {path} ({response.status_code}): {why}")
        return answer


class _Seek:
    """Looks for one point among those that pass."""

    def __init__(self, point: tuple[int, int, float]) -> None:
        self._at, self._step, self._value = point
        self.found = False

    def watch(self, points: Iterator[Point]) -> Iterator[Point]:
        for point in points:
            if point[0] == self._at and point[1] == self._step:
                self.found |= point[3] == self._value or (point[3] is None and self._value != self._value)
            yield point


def _view(deleted: bool) -> str:
    return "ALL" if deleted else "ACTIVE_ONLY"
