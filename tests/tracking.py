"""A real `mlflow server` over a SQLite file, and what it holds according to MLflow's own client."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from ports import free_port

Point = tuple[int, int, str, str]
"""Milliseconds, step, name, value as text."""


@dataclass(frozen=True)
class Tracking:
    url: str
    database: Path
    client: MlflowClient
    pid: int

    def runs(self, experiment: str) -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        return [] if found is None else list(self.client.search_runs([found.experiment_id], max_results=1000))

    def copies(self, experiment: str) -> dict[str, Any]:
        """Runs by the path that they were mirrored under; none may be there twice."""
        found = self.runs(experiment)
        by_path = {run.data.tags["mirror.path"]: run for run in found}
        assert len(by_path) == len(found)
        return by_path

    def points(self, run: Any) -> Counter[Point]:
        return Counter(
            (point.timestamp, point.step, key, text(point.value))
            for key in run.data.metrics
            for point in self.client.get_metric_history(run.info.run_id, key)
        )


def text(value: float) -> str:
    """NaN equals itself; MLflow keeps infinities as the largest floats there are, and SQLite no negative zero."""
    return repr(max(-sys.float_info.max, min(sys.float_info.max, value)) + 0.0) if value == value else "nan"


@contextmanager
def tracking(folder: Path, *options: str) -> Iterator[Tracking]:
    port = free_port()
    database, log = folder / "store.db", folder / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *options]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")]
    environ = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environ, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                if requests.get(f"{url}/health", timeout=300).ok:
                    break
            except requests.ConnectionError:
                pass
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Tracking(url, database, MlflowClient(url), server.pid)
    finally:
        os.killpg(server.pid, 15)
        server.wait(120)
