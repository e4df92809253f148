"""MLflow's REST API, asked without MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from mirror.errors import SourceError, TerminalSourceError, TransientSourceError
from mirror.paths import api_url, canonical_source
from mirror.pool import Pool
from mirror.records import FileEntry
from mirror.sources.mlflow.histories import Histories, close
from mirror.sources.mlflow.points import Points, Spool
from mirror.sources.mlflow.road import Json
from mirror.wandb.transport import Sink, Traffic

_RUNS = 200
"""How many runs to list at once; a run may have thousands of params and metrics."""
_AT_ONCE = 6
"""Requests at the same time: a server's few workers have no use for more."""
_CONNECTIONS = 32
PATIENCE = (10, 120)
"""Seconds to connect, and between two pieces of an answer."""
_RETRY = Retry(total=5, connect=2, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
"""Every request may be made twice: those by POST read as well, or write what MLflow keeps once."""
_MAKES_RUNS = "api/2.0/mlflow/runs/create"
_ONCE = Retry(connect=2, read=0, status=2, backoff_factor=0.5, status_forcelist=(429, 503), allowed_methods=None)
"""All but this one: made again only if the server did nothing."""


class RestRoad:
    """See `mirror.sources.mlflow.road.Road`. A key is taken from where MLflow's own client takes it:
    MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        self.base_url = api_url(url)
        self.traffic = Traffic()
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=_CONNECTIONS, max_retries=_RETRY))
        self._session.mount(f"{self.base_url}/{_MAKES_RUNS}", HTTPAdapter(pool_maxsize=_CONNECTIONS, max_retries=_ONCE))
        if token := environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user := environ.get("MLFLOW_TRACKING_USERNAME"):
            self._session.auth = (user, environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        self._pool = Pool(_AT_ONCE, "mlflow")
        self._histories = Histories(
            lambda path, asked: self._ask("GET", path, asked) or {},
            lambda path, asked: self._ask("GET", path, asked, api="ajax-api") or {},
            self._pool,
            _AT_ONCE,
        )

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

    def documents(self, experiment_id: str, run_ids: Sequence[str]) -> dict[str, Json]:
        """One by one, several at a time: `runs/search` leaves out model inputs (mlflow 3.17)."""

        def ask(run_id: str) -> Json | None:
            return self._ask("GET", "runs/get", {"run_id": run_id}, none_if_missing=True)

        answers = [(run_id, self._pool.submit(ask, run_id)) for run_id in run_ids]
        return {run_id: found["run"] for run_id, future in answers if (found := future.result()) is not None}

    def models(self) -> list[Json]:
        return list(self._pages("registered-models/search", {"max_results": 1000}, "registered_models", "GET"))

    def versions(self) -> list[Json]:
        return list(self._pages("model-versions/search", {"max_results": 1000}, "model_versions", "GET"))

    # -- a run --------------------------------------------------------------------------------------------

    @contextmanager
    def points(self, runs: Sequence[Json]) -> Iterator[dict[str, Points | SourceError]]:
        """Gathered on disk, several requests at a time."""
        found = self._histories.gather(runs)
        try:
            yield {run_id: one.points() if isinstance(one, Spool) else one for run_id, one in found.items()}
        finally:
            close(found)

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

    def addresses(self, run_id: str, names: Sequence[str]) -> dict[str, str]:
        return {name: f"get-artifact?{urlencode({'path': name, 'run_id': run_id})}" for name in names}

    def save(self, address: str, out: Sink) -> None:
        """By the server, wherever it keeps its artifacts."""
        try:
            with self._session.get(f"{self.base_url}/{address}", timeout=PATIENCE, stream=True) as response:
                if response.status_code != 200:
                    raise TerminalSourceError(f"the server answers {response.status_code}")
                for chunk in response.iter_content(1 << 20):
                    self.traffic.count(nbytes=len(chunk))
                    out.write(chunk)
        except requests.exceptions.RequestException as e:
            raise TransientSourceError(f"the download broke off ({type(e).__name__}): sync again", e) from e

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

    def _ask(
        self, method: str, path: str, asked: Json | bytes, *, none_if_missing: bool = False, api: str = "api"
    ) -> Json | None:
        how: dict[str, Any] = {"params": asked} if method == "GET" else {"json": asked}
        if isinstance(asked, bytes):
            how = {"data": asked, "headers": {"Content-Type": "application/json"}}
        try:
            response = self._request(method, f"/{api}/2.0/mlflow/{quote(path)}", **how)
            content = response.content
        except requests.exceptions.RequestException as e:
            raise TransientSourceError(
                f"cannot reach the MLflow server `{self.base_url}` ({type(e).__name__}): check address and network", e
            ) from e
        self.traffic.count(queries=1, nbytes=len(content))
        if none_if_missing and response.status_code == 404 and b"RESOURCE_DOES_NOT_EXIST" in content:
            return None
        if response.status_code in (401, 403):
            raise self._refused(response.status_code, path)
        try:
            answer = _decoded(content)
            assert isinstance(answer, dict)
        except (ValueError, AssertionError) as e:
            raise TerminalSourceError(
                f"`{self.base_url}` is no MLflow server (it answers {response.status_code} to {path} without JSON)", e
            ) from e
        if response.status_code != 200:
            why = str(answer.get("message") or answer.get("error_code") or "no reason")[:500]
            raise TerminalSourceError(f"`{self.base_url}` refused {path} ({response.status_code}): {why}")
        return answer

    def _request(self, method: str, path: str, **how: Any) -> requests.Response:
        return self._session.request(method, self.base_url + path, timeout=PATIENCE, **how)

    def _refused(self, status: int, path: str) -> TerminalSourceError:
        return TerminalSourceError(
            f"`{self.base_url}` answers {status} to {path}: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )


def _decoded(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)  # which takes the NaN that `get-history-bulk` writes


def _view(deleted: bool) -> str:
    return "ALL" if deleted else "ACTIVE_ONLY"
