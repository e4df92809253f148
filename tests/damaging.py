"""Segments of a mirror changed behind its back, for tests of what is found."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def segment(root: Path, table: str, holding: str | None = None, column: str = "key") -> Path:
    """A segment of a table; the one with a value in a column (a key, if none is named), if one is given."""
    for path in sorted((root / "data" / table).rglob("*.parquet")):
        if holding is None or holding in set(pq.read_table(path)[column].to_pylist()):
            return path
    raise AssertionError(table)


def rewrite(root: Path, path: Path, change: Any) -> None:
    """Write a segment anew with other rows, and make the catalog and the snapshot believe that it is so."""
    old = pq.read_table(path)
    made = change(old)
    path.chmod(0o644)
    pq.write_table(made.replace_schema_metadata(old.schema.metadata), path)
    name = str(path.relative_to(root))
    fields = (len(made), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    with sqlite3.connect(root / "catalog.sqlite") as db:
        db.execute("update files set rows = ?, bytes = ?, sha256 = ? where path = ?", [*fields, name])
    snapshot = json.loads((root / "snapshot.json").read_text())
    for entry in snapshot["tables"].values():
        for file in entry["files"]:
            if file["path"] == name:
                file["rows"], file["bytes"], file["sha256"] = fields
    (root / "snapshot.json").write_text(json.dumps(snapshot))
