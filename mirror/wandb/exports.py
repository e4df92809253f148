"""Parquet exports of a run's history: where they are, and what is not in them yet."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.records import RunKey
from mirror.wandb.client import Client, Fields

_PREFIX = "mirror-export-"
_YOUNG = 60.0
"""Seconds in which a folder may not be locked yet."""


@dataclass(frozen=True)
class Exports:
    """The addresses of a run's exports, in no order, and whether some rows are not in them yet."""

    urls: tuple[str, ...]
    more: bool


def find_exports(client: Client, key: RunKey) -> Exports:
    """The exports of a run; none where the server makes none, or has made none yet."""

    def build(f: Fields) -> str:
        asked = f.of("Run", ('parquetHistory(liveKeys: ["_step"]) { parquetUrls liveData }',))
        return (
            "query Exports($entity: String!, $project: String!, $name: String!)"
            f" {{ project(name: $project, entityName: $entity) {{ name entityName"
            f" run(name: $name) {{ id name {asked} }} }} }}"
        )

    variables = {"entity": key.entity, "project": key.project, "name": key.run_id}
    data, _ = client.ask(build, variables)
    found: Any = ((data.get("project") or {}).get("run") or {}).get("parquetHistory") or {}
    urls = tuple(u for u in found.get("parquetUrls") or () if isinstance(u, str))
    return Exports(urls, bool(found.get("liveData")))


@contextmanager
def downloaded(client: Client, exports: Exports) -> Iterator[list[Path]]:
    """The exports as files, for as long as the context lasts. Raises a SourceError if one cannot be had whole."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, _locked(Path(folder)):
        paths = []
        for i, url in enumerate(exports.urls):
            path = Path(folder) / f"{i}.parquet"
            with path.open("wb") as out:
                client.transport.save(url, out)
            paths.append(path)
        yield paths


def remove_leftovers() -> None:
    """Remove the exports of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or just removed
            if folder.stat().st_mtime < time.time() - _YOUNG:
                with _locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which the kernel drops when the process dies. BlockingIOError if another holds it."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)
