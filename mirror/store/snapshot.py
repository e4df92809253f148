"""The published snapshot: the list of live files that readers go by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import mirror
from mirror.store.catalog import Catalog
from mirror.store.disk import explained, write_durably
from mirror.store.layout import Layout
from mirror.store.schema import SCHEMA_VERSION


class Snapshot:
    """A published snapshot: `id` grows with every commit, `store_id` names the mirror for good."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.id: int = content["snapshot"]
        self.store_id: str = content["store_id"]
        self.published_at: str = content["published_at"]

    def files(self, table: str, rid: int | None = None) -> list[dict[str, Any]]:
        """The table's live files (path relative to the root, rows, bytes, sha256, rids, version), or those of
        them that hold a run."""
        found = self.content["tables"].get(table, {"files": []})["files"]
        return [f for f in found if rid is None or holds(f["rids"], rid)]


def holds(ranges: Sequence[Sequence[int]], rid: int) -> bool:
    """Whether [first, last] ranges of rids contain one."""
    return any(first <= rid <= last for first, last in ranges)


def publish(layout: Layout, catalog: Catalog) -> dict[str, Any]:
    """Write snapshot.json from the catalog, atomically. Called under the commit lock, after the transaction."""
    number, at = catalog.last_snapshot()
    superseded = catalog.superseded()
    listed: dict[str, dict[str, Any]] = {}
    for file in catalog.files():
        entry = listed.setdefault(file.table, {"superseded": file.table in superseded, "files": []})
        entry["files"].append(
            {
                "path": file.path,
                "rows": file.rows,
                "bytes": file.bytes,
                "sha256": file.sha256,
                "rids": file.rids,
                "version": file.version,
            }
        )
    snapshot = {
        "format": "wandb-mirror",
        "schema_version": SCHEMA_VERSION,
        "store_id": catalog.get("store_id"),
        "snapshot": number,
        "published_at": at,
        "written_by": f"wandb-mirror {mirror.__version__}",
        "tables": listed,
    }
    text = json.dumps(snapshot, separators=(",", ":")).encode()
    with explained("publishing the snapshot"):
        write_durably(layout.snapshot, lambda f: f.write(text))
    return snapshot
