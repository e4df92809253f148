"""MLflow at Databricks: the same API, asked through MLflow's own client, which knows the ways to sign in there (tokens,
profiles, OAuth). Artifacts come through that client, too, from wherever they are."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from mirror.errors import TerminalSourceError, TransientSourceError, UsageError
from mirror.sources.mlflow.rest import RestRoad
from mirror.sources.mlflow.road import Json
from mirror.wandb.transport import Sink

_PATIENCE = 120
"""Seconds."""


class DatabricksRoad(RestRoad):
    """See `mirror.sources.mlflow.road.Road`. `uri` is `databricks`, or `databricks://PROFILE` of ~/.databrickscfg."""

    def __init__(self, uri: str, environ: Mapping[str, str]) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from mlflow.utils.databricks_utils import get_databricks_host_creds
            from mlflow.utils.rest_utils import http_request
        except ImportError as e:
            raise UsageError(
                f"`{uri}` is read through MLflow's own client ({e}): pip install 'wandb-mirror[mlflow]'"
            ) from e
        self._error = MlflowException
        self._http_request = http_request
        try:
            self._credentials = get_databricks_host_creds(uri)
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        except MlflowException as e:
            raise UsageError(f"MLflow's client cannot sign in at `{uri}`: {e.message}") from e
        super().__init__(self._credentials.host, environ)

    def url(self, run: Json) -> str | None:
        info = run["info"]
        return f"{self.base_url}/ml/experiments/{info['experiment_id']}/runs/{info['run_id']}"

    def addresses(self, run_id: str, names: Sequence[str]) -> dict[str, str]:
        return {name: f"{run_id}/{name}" for name in names}

    def save(self, address: str, out: Sink) -> None:
        run_id, _, name = address.partition("/")
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = Path(self._client.download_artifacts(run_id, name, folder))
            except (self._error, OSError) as e:
                raise TransientSourceError(
                    f"MLflow's client could not fetch `{name[:200]}` ({e}): sync again", e
                ) from e
            self.traffic.count(nbytes=path.stat().st_size)
            with path.open("rb") as held:
                shutil.copyfileobj(held, out, 1 << 20)

    def _request(self, method: str, path: str, **how: Any) -> requests.Response:
        try:
            answer: requests.Response = self._http_request(
                self._credentials, path, method, timeout=_PATIENCE, raise_on_status=False, **how
            )
        except self._error as e:
            raise TransientSourceError(f"MLflow's client cannot reach `{self.base_url}`: {e.message}", e) from e
        return answer

    def _refused(self, status: int, path: str) -> TerminalSourceError:
        return TerminalSourceError(
            f"`{self.base_url}` answers {status} to {path}: set DATABRICKS_TOKEN, or sign in (`databricks auth login`)"
        )
