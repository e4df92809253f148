"""Whether a mirror's files are whole, looked at without changing any of them: the facts behind `mirror doctor`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mirror.store.catalog import Catalog, FileRow
from mirror.store.disk import sha256
from mirror.store.layout import Layout


@dataclass(frozen=True)
class Health:
    """`damaged` are segments that are missing or not as they were written, `orphans` files in the data folder that
    belong to no snapshot, `leases` what holders of projects wrote of themselves; `free` and `total` are bytes."""

    files: int
    bytes: int
    damaged: list[str]
    orphans: list[str]
    published_at: datetime
    leases: list[dict[str, Any]]
    free: int
    total: int


def health(root: str | Path, *, deep: bool = False) -> Health:
    """Compare the files of a mirror with its catalog: their sizes, with `deep` their checksums, too. Raises StoreError
    if `root` is no mirror, or its catalog or snapshot cannot be read."""
    layout = Layout(root)
    snapshot = layout.read_snapshot()
    catalog = Catalog(layout, read_only=True)
    try:
        files = catalog.files()
        listed = {path for (path,) in catalog.db.execute("select path from files")}
    finally:
        catalog.close()
    damaged = [file.path for file in files if not intact(layout, file, deep=deep)]
    found = (str(path.relative_to(layout.root)) for path in layout.data.rglob("*") if path.is_file())
    disk = shutil.disk_usage(layout.root)
    return Health(
        files=len(files),
        bytes=sum(file.bytes for file in files),
        damaged=damaged,
        orphans=sorted(set(found) - listed),
        published_at=datetime.fromisoformat(snapshot["published_at"]),
        leases=[lease for path in sorted(layout.leases.glob("*.lock")) if (lease := _held(path))],
        free=disk.free,
        total=disk.total,
    )


def intact(layout: Layout, file: FileRow, *, deep: bool) -> bool:
    """Whether a segment is there in its size, with `deep` also byte for byte."""
    path = layout.root / file.path
    return path.is_file() and path.stat().st_size == file.bytes and (not deep or sha256(path) == file.sha256)


def _held(path: Path) -> dict[str, Any] | None:
    """Who holds a lease; None if nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            return {"project": "?", "pid": "?", "host": "?", "since": "?"}
        return found
    finally:
        os.close(fd)
    return None
