"""What a purge still has to delete once its transaction is through, noted so that a later writer can finish it.

The note, ROOT/purge.json, holds numbers and checksums only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mirror.store import segments
from mirror.store.blobs import blob_path, remove_partial, table_path
from mirror.store.catalog import Catalog
from mirror.store.disk import explained, write_durably
from mirror.store.layout import Layout
from mirror.store.locks import FileLock
from mirror.store.views import write_database


def note(
    layout: Layout, snapshot: int, rids: Sequence[int], blobs: Sequence[str], named: Iterable[tuple[str, str]]
) -> None:
    """Say what is to be deleted when `snapshot` is committed. `named` are source and storage id of what is to go."""
    checksums = sorted(_checksum(*pair) for pair in named)
    text = json.dumps({"snapshot": snapshot, "rids": rids, "blobs": blobs, "named": checksums}).encode()
    with explained("writing purge.json"):
        write_durably(_note(layout), lambda f: f.write(text))


def forget(layout: Layout) -> None:
    """The purge was not committed."""
    _note(layout).unlink(missing_ok=True)


def finish(layout: Layout, catalog: Catalog) -> None:
    """Delete what was noted, if its purge was committed; nothing if there was none. To be called under the commit
    lock, after the snapshot is published."""
    try:
        noted: dict[str, Any] = json.loads(_note(layout).read_bytes())
    except FileNotFoundError:
        return
    if catalog.last_snapshot()[0] >= noted["snapshot"]:
        query = "select f.path from files f join snapshots s on s.id = f.removed where s.by = 'purge'"
        gone = [path for (path,) in catalog.db.execute(query)]
        for path in gone:
            segments.remove_readonly(layout.root / path)
        for rid in noted["rids"]:
            shutil.rmtree(layout.live / str(rid), ignore_errors=True)
            shutil.rmtree(layout.exports / str(rid), ignore_errors=True)
            (layout.sweeps / f"{rid}.jsonl").unlink(missing_ok=True)
        for sha256 in noted["blobs"]:
            blob_path(layout.blobs, sha256).unlink(missing_ok=True)
            table_path(layout.tables, sha256).unlink(missing_ok=True)
        for ledger in layout.ledgers:
            _strike(ledger, set(noted["named"]))
        remove_partial(layout.blobs)  # whosever they are: they begin anew
        for path in layout.leases.glob("*.lock"):  # they name projects; one that is needed is made again
            lock = FileLock(path)
            if lock.acquire(wait=False):
                lock.release(remove=True)
        with catalog.transaction():
            catalog.db.executemany("delete from files where path = ?", [[path] for path in gone])
        catalog.db.execute("vacuum")  # freed pages still hold names
        write_database(layout, layout.read_snapshot())
    forget(layout)


def _strike(ledger: Path, named: set[str]) -> None:
    """Take lines about what is gone, and lines that a crash tore, out of a ledger."""

    def stays(line: bytes) -> bool:
        try:
            found = json.loads(line)
            return _checksum(found["source"], found["storage_id"]) not in named
        except (ValueError, KeyError, TypeError):
            return False

    lines = ledger.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if stays(line)]
    if len(kept) < len(lines):
        with explained("writing a ledger"):
            write_durably(ledger, lambda f: f.writelines(kept), mode=0o600)


def _checksum(source: str, storage_id: str) -> str:
    return hashlib.sha256(f"{source}\0{storage_id}".encode("utf-8", "surrogatepass")).hexdigest()


def _note(layout: Layout) -> Path:
    return layout.root / "purge.json"
