"""A real `mirror serve` in a process of its own, for tests: started on a free port, stopped or killed by its pid.

with serving(tmp_path / "mirror") as server:
    os.environ |= server.env          # what wandb's SDK needs
    requests.post(server.url + "/graphql", auth=("api", server.key), json={...})
    server.kill(); server.start()     # kill -9 and come back on the same port
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from ports import free_port
from starting import Started, run_mirror

SERVE = [sys.executable, "-c", "import sys; sys.argv[0] = 'mirror'; from mirror.cli import main; main()", "serve"]
"""`mirror serve`, as the console script calls it."""


class Server:
    """One server process over `root`; `start` may be called again after `stop` or `kill`."""

    def __init__(self, root: Path, *options: str, key: str | None = None) -> None:
        self.root = root
        self.key = key or secrets.token_hex(20)
        self.port = free_port()
        self.options = options
        self.process: Started | None = None
        self.log = root.parent / f"serve-{self.port}.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """Environment of a client; wandb's own files go beside the mirror."""
        place = self.root.parent / "wandb-client"
        place.mkdir(exist_ok=True)
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": self.key,
            "WANDB_DIR": str(place),
            "WANDB_CACHE_DIR": str(place / "cache"),
            "WANDB_CONFIG_DIR": str(place / "config"),
            "WANDB_DATA_DIR": str(place / "data"),
            "WANDB_ARTIFACT_DIR": str(place / "artifacts"),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
        }

    def start(self, timeout: float = 240.0) -> None:
        """Start the process and wait until it answers."""
        command = ["serve", "--mirror", str(self.root), "--port", str(self.port), *self.options]
        with self.log.open("ab") as log:
            self.process = Started(command, stdout=log, stderr=log, env=os.environ | {"MIRROR_API_KEY": self.key})
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                if requests.get(f"{self.url}/ready", timeout=300).ok:
                    return
            except requests.RequestException:
                time.sleep(0.05)
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()}")

    def stop(self, timeout: float = 180.0) -> int:
        """SIGTERM, and wait; returns the exit code."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self, timeout: float = 180.0) -> None:
        """SIGKILL, and wait."""
        self._end(signal.SIGKILL, timeout)

    def _end(self, how: signal.Signals, timeout: float) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(how)
        return process.wait(timeout)

    # -- the wire, for tests that speak it themselves -----------------------------------------------------

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """`data` of a query; AssertionError with the answer if there are errors."""
        answer = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, auth=("api", self.key), timeout=300
        )
        body = answer.json()
        assert answer.ok and "errors" not in body, f"{answer.status_code}: {body}"
        data: dict[str, Any] = body["data"]
        return data

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", json=body, auth=("api", self.key), timeout=300)

    def upsert(self, project: str, name: str, entity: str = "local", **fields: Any) -> dict[str, Any]:
        """`upsertBucket`: make or change a run; returns its bucket."""
        query = (
            "mutation U($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted bucket "
            "{ id name displayName state historyLineCount project { id name entity { name } } } } }"
        )
        found = self.graphql(query, i={"entityName": entity, "modelName": project, "name": name} | fields)
        bucket: dict[str, Any] = found["upsertBucket"]["bucket"] | {"inserted": found["upsertBucket"]["inserted"]}
        return bucket

    def stream(self, project: str, name: str, entity: str = "local", **body: Any) -> requests.Response:
        """A post to the run's file_stream."""
        return self.post(f"/files/{entity}/{project}/{name}/file_stream", body)


def client(server: Server, script: str, *args: str, timeout: float = 300, **env: str) -> Any:
    """Run a Python script with the real SDK against the server, in a process of its own (the SDK reads its
    environment once a process); returns what the script printed last, as JSON."""
    place = server.env["WANDB_DIR"]
    done = run_mirror(args, script=script, env=os.environ | server.env | env, cwd=place, timeout=timeout)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{server.log.read_text()[-2000:]}"
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


@contextmanager
def serving(root: Path, *options: str, key: str | None = None) -> Iterator[Server]:
    """A server over `root` for the length of a block."""
    server = Server(root, *options, key=key)
    try:
        server.start()
        yield server
    finally:
        server.stop()
