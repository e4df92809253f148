"""Compaction: many small segments become few, and rows that are no longer live go away.

Segments of a table are merged when ten of about the same size have come together, so every row is rewritten a
handful of times at most, however many commits brought it. What was replaced stays on the disk for a grace period,
because readers that opened an older snapshot still read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mirror.store import segments
from mirror.store.catalog import Catalog, FileRow, iso, now
from mirror.store.layout import Layout
from mirror.store.locks import held
from mirror.store.schema import CELL_TABLES, ITEM_TABLES, STREAM_TABLE, tables
from mirror.store.snapshot import publish

FEW = 10
"""Segments of about the same size that may lie side by side."""
_STEP = 8.0  # each size class is this many times the one below
# What is merged at a time, so that memory stays flat: rows, and bytes before compression (cells can be long).
_MOST_ROWS = {"runs": 10_000, "config": 500_000, "summary": 500_000, "metric": 250_000}
_MOST_CELLS = 600_000
_MOST_BYTES = 32 << 20
GRACE = timedelta(minutes=10)
_STREAM = {table: stream for stream, table in STREAM_TABLE.items()}
_VERSION = {
    "runs": ("runs", "gen"),
    "config": ("runs", "config_gen"),
    "summary": ("runs", "summary_gen"),
    "metric": ("runs", "metric_gen"),
    **dict.fromkeys(ITEM_TABLES, ("items", "gen")),
    "artifact_entries": ("items", "entries_gen"),
    "artifact_uses": ("items", "uses_gen"),
}
"""Which column of which table of the catalog names the live version of a row."""


def compact(layout: Layout, catalog: Catalog, session: str, name: Callable[[], str]) -> bool:
    """Merge what has become due, once; True if anything was merged."""
    merged = False
    for table, files in due(layout, catalog.files()):
        merged |= _merge(layout, catalog, session, name(), table, files)
    if merged:
        with held(layout.commit_lock):
            publish(layout, catalog)
    return merged


def due(layout: Layout, files: list[FileRow]) -> list[tuple[str, list[FileRow]]]:
    """Groups of segments of one table, folder and size class that should become one."""
    groups: dict[tuple[str, str, int], list[FileRow]] = {}
    for file in files:
        folder = file.path.rpartition("/")[0]
        groups.setdefault((file.table, folder, int(math.log(max(file.bytes, 4096), _STEP))), []).append(file)
    found = []
    for (table, _, _), group in groups.items():
        if len(group) < FEW:
            continue
        chosen: list[FileRow] = []
        rows, size = _MOST_ROWS.get(table, _MOST_CELLS), _MOST_BYTES
        for file in sorted(group, key=lambda f: f.rows):
            rows -= file.rows
            size -= _uncompressed(layout.root / file.path)
            if rows < 0 or size < 0:
                break
            chosen.append(file)
        if len(chosen) > 1:
            found.append((table, chosen))
    return found


def _uncompressed(path: Path) -> int:
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def _merge(layout: Layout, catalog: Catalog, session: str, name: str, table: str, files: list[FileRow]) -> bool:
    before = catalog.superseded_rows(table)
    parts = [pq.read_table(layout.root / f.path).cast(tables()[table]) for f in files]
    rows = pa.concat_tables(parts)
    if "rid" in rows.column_names and table not in ("quarantine",):
        rows = rows.filter(_live(catalog, table, rows))
    if table in CELL_TABLES:
        rows = rows.sort_by([("key", "ascending"), ("rid", "ascending"), ("row", "ascending")])
    identities = {i[0]: i for f in files for i in (segments.footer(layout.root / f.path) or {}).get("identities", [])}
    shard = int(files[0].path.split("/")[2])
    made = segments.write_segment(
        layout,
        name,
        table,
        rows,
        shard=shard,
        identities=[identities[rid] for rid in sorted(identities)],
        replaces=[f.path.rpartition("/")[2].removesuffix(".parquet") for f in files],
    )
    with held(layout.commit_lock), catalog.transaction():
        standing = {f.path for f in catalog.files() if f.table == table}
        if not standing >= {f.path for f in files}:
            other = True  # another writer merged some of them meanwhile
        else:
            other = False
            number = catalog.new_snapshot(now(), session)
            catalog.remove_files([f.path for f in files], number)
            catalog.add_file(made, number)
            if standing == {f.path for f in files}:
                catalog.supersede(table, -before)
    if other:
        segments.remove_readonly(layout.root / made.path)
    return not other


def _live(catalog: Catalog, table: str, rows: pa.Table) -> pa.Array:
    """Which rows belong to a version that is visible, or is being fetched."""
    rids = pc.unique(rows["rid"]).to_pylist()
    if table in _VERSION:
        of, column = _VERSION[table]
        keep = set(catalog.versions(rids, column, of))
    else:
        keep = {
            (rid, state.gen)
            for (rid, stream), states in catalog.streams(rids).items()
            if stream == _STREAM[table]
            for live, state in states.items()
            if live or True not in states or state.gen > states[True].gen
        }
    wanted = np.array([rid * (1 << 24) + gen for rid, gen in keep], dtype=np.int64)
    found = rows["rid"].to_numpy() * (1 << 24) + rows["gen"].to_numpy()
    return pa.array(np.isin(found, wanted))


def vacuum(layout: Layout, catalog: Catalog, *, grace: timedelta = GRACE) -> int:
    """Delete segments that were replaced longer than `grace` ago; returns how many."""
    before = iso(now() - grace)
    gone = [
        path
        for (path,) in catalog.db.execute(
            "select f.path from files f join snapshots s on s.id = f.removed where s.at < ?", [before]
        )
    ]
    if gone:
        for path in gone:
            segments.remove_readonly(layout.root / path)
        with catalog.transaction():
            catalog.db.executemany("delete from files where path = ?", [[path] for path in gone])
    return len(gone)
