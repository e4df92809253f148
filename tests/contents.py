"""Everything a user can see in a mirror, compared with what is in another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from mirror.store import Reader

Content: TypeAlias = dict[str, list[tuple[Any, ...]]]

VIEWS = {
    # Not which numbers this store gave, when it wrote, nor by which road and after how many questions rows came.
    "runs": "* exclude (rid, mirrored_at, history_road, history_note, system_asked)",
    "history": "* exclude (rid)",
    "system_metrics": "* exclude (rid)",
    "config": "* exclude (rid)",
    "summary": "* exclude (rid)",
    "metrics": "* exclude (rid)",
    "files": "* exclude (rid, url)",
    "logs": "* exclude (rid)",
    "sweeps": "* exclude (mirrored_at)",
    "artifact_collections": "* exclude (mirrored_at)",
    "artifacts": "* exclude (mirrored_at)",
    "artifact_entries": "*",
    "artifact_uses": "*",
    "reports": "* exclude (mirrored_at)",
    "projects": "* exclude (mirrored_at, run_count)",
    "quarantine": "*",
}


def content(root: Path) -> Content:
    """The rows of every view."""
    with Reader(root) as reader:
        db = reader.connect()
        queries = {view: f"select {columns} from {view}" for view, columns in VIEWS.items()}
        return {view: sorted(db.execute(query).fetchall(), key=repr) for view, query in queries.items()}


def same(found: Content, expected: Content) -> None:
    """Every view has the same rows; the message shows some that differ, cell by cell."""
    for view, rows in expected.items():
        if found[view] == rows:
            continue
        left, right = set(map(repr, rows)), set(map(repr, found[view]))
        missing = [row for row in rows if repr(row) not in right]
        more = [row for row in found[view] if repr(row) not in left]
        cells = [
            [(a, b) for a, b in zip(one, other, strict=True) if repr(a) != repr(b)]
            for one, other in zip(more[:3], missing[:3], strict=False)
        ]
        assert (len(found[view]), missing, more) == (len(rows), [], []), (
            f"{view}: {len(found[view])} rows for {len(rows)}", cells or more[:3] or missing[:3]
        )  # fmt: skip
