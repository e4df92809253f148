"""Compaction: many small segments become few, and rows that are no longer live go away.

Segments of a table are merged when ten of about the same size have come together, so every row is rewritten a
handful of times at most, however many commits brought it. Cells lie in a folder for each project; small segments are
merged across projects, into the folder 0. Small merges are done along with a commit, large ones at
the end of a sync. What was replaced stays on the disk for a grace period, because readers that opened an older
snapshot still read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirror.store import segments
from mirror.store.catalog import Catalog, FileRow, iso, now
from mirror.store.layout import Layout
from mirror.store.locks import held
from mirror.store.merge import Keep, merged
from mirror.store.schema import CELL_TABLES, ITEM_TABLES, STREAM_TABLE, coded, tables
from mirror.store.snapshot import publish

FEW = 10
"""Segments of about the same size that may lie side by side."""
LARGE = 128 << 20
"""Bytes of a segment that is large enough: about 20 million cells."""
AT_ONCE = 8 << 20
"""Bytes that a commit may merge along: a second's work at most."""
_OPEN, _OPEN_FILE = 56 << 20, 7 << 20  # bytes of memory that open files may take
_STEP = 8.0  # each size class is this many times the one below
_SMALL = 2 << 20
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


@dataclass(frozen=True)
class Compacted:
    """What a compaction did: segments merged, segments that came of them, and their bytes."""

    merged: int = 0
    made: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    def plus(self, files: list[FileRow], made: FileRow) -> Compacted:
        return Compacted(
            self.merged + len(files),
            self.made + (made.rows > 0),
            self.bytes_before + sum(f.bytes for f in files),
            self.bytes_after + (made.bytes if made.rows else 0),
        )


Progress = Callable[[list[list[FileRow]]], Iterable[list[FileRow]]]
"""May wrap the groups that are merged one after the other."""


def compact(
    layout: Layout,
    catalog: Catalog,
    session: str,
    name: Callable[[], str],
    *,
    most: int = AT_ONCE,
    everything: bool = False,
    progress: Progress = iter,
) -> Compacted:
    """Merge what has become due, once, into segments of up to `most` bytes; with `everything` also what could wait.

    Can be interrupted at any time: each merge is a commit of its own.
    """
    done = Compacted()
    groups = _all(catalog.files(), most) if everything else due(catalog.files(), most)
    while groups:
        for files in progress(groups):
            if len(files) == 1 and not _holds_dead_rows(layout, catalog, files[0]):
                continue
            made = _merge(layout, catalog, session, name(), files)
            if made is not None:
                done = done.plus(files, made)
                # At once: the files it replaced are kept for a period of grace only, which has begun.
                with held(layout.commit_lock):
                    publish(layout, catalog)
        # Many files that are merged at all become one in several rounds.
        groups = [g for g in _all(catalog.files(), most) if len(g) > 1] if everything else []
    if everything:
        _forget_the_dead(layout, catalog)
        with held(layout.commit_lock):
            publish(layout, catalog)
    return done


def due(files: list[FileRow], most: int = AT_ONCE) -> list[list[FileRow]]:
    """Groups of segments of one table and size class, of one folder unless they are small, that should become one."""
    groups: dict[tuple[str, str, int], list[FileRow]] = {}
    for file in files:
        size = int(math.log(max(file.bytes, 4096), _STEP))
        groups.setdefault((file.table, _together(file), size), []).append(file)
    found = []
    for group in groups.values():
        if len(group) >= FEW:
            chosen = _fitting(sorted(group, key=lambda f: f.bytes), most)[0]
            if len(chosen) >= FEW // 2:  # fewer are not worth the copying
                found.append(chosen)
    return found


def _all(files: list[FileRow], most: int) -> list[list[FileRow]]:
    """All segments, in groups that should become one; those of one file only lose their dead rows."""
    groups: dict[tuple[str, str], list[FileRow]] = {}
    for file in files:
        groups.setdefault((file.table, _together(file)), []).append(file)
    return [part for group in groups.values() for part in _fitting(sorted(group, key=lambda f: f.bytes), most)]


def _fitting(files: list[FileRow], most: int) -> list[list[FileRow]]:
    """Files cut into groups of up to `most` bytes that are not too many to be open at once."""
    groups: list[list[FileRow]] = [[]]
    size = held = 0
    for file in files:
        # An open file takes about 7 MB, a small one three times its size.
        size, held = size + file.bytes, held + min(3 * file.bytes, _OPEN_FILE)
        if groups[-1] and (size > most or held > _OPEN):
            groups.append([])
            size, held = file.bytes, min(3 * file.bytes, _OPEN_FILE)
        groups[-1].append(file)
    return groups


def _folder(file: FileRow) -> str:
    return file.path.rpartition("/")[0]


def _together(file: FileRow) -> str:
    """What a segment may be merged with: the others of its project's folder, while it is small those of all projects.
    A thousand small projects would be a thousand files otherwise, which every question has to open."""
    return "" if file.bytes < _SMALL else _folder(file)


def _merge(layout: Layout, catalog: Catalog, session: str, name: str, files: list[FileRow]) -> FileRow | None:
    """Put one segment in the place of these; None if another writer has merged some of them meanwhile."""
    table = files[0].table
    before = catalog.superseded_rows(table)
    schema = coded_schema(table)
    live = _live(catalog, files)
    footers = [segments.footer(layout.root / f.path) or {} for f in files]
    identities = {i[0]: i for footer in footers for i in footer.get("identities", [])}
    said = {
        "rids": segments.rid_ranges(sorted({rid for f in files for a, b in f.rids for rid in range(a, b + 1)})),
        "identities": [identities[rid] for rid in sorted(identities)],
        "streams": _extents(footers, live),
        "replaces": [f.path.rpartition("/")[2].removesuffix(".parquet") for f in files],
    }
    pieces = merged([layout.root / f.path for f in files], schema, segments.ORDER.get(table, ()), live.keep)
    shard = int(files[0].path.split("/")[2]) if len({_folder(f) for f in files}) == 1 else 0
    made = segments.write_pieces(layout, name, table, pieces, schema, said, shard=shard)
    with held(layout.commit_lock), catalog.transaction():
        standing = {f.path for f in catalog.files() if f.table == table}
        ours = {f.path for f in files}
        meanwhile = not standing >= ours
        if not meanwhile:
            number = catalog.new_snapshot(now(), session)
            catalog.remove_files(sorted(ours), number)
            if made.rows:
                catalog.add_file(made, number)
            if standing == ours:
                catalog.supersede(table, -before)
    if meanwhile or not made.rows:
        segments.remove_readonly(layout.root / made.path)
    return None if meanwhile else made


def coded_schema(table: str) -> pa.Schema:
    """How the rows of a table are read to be written again."""
    return coded(tables()[table]) if table in CELL_TABLES else tables()[table]


@dataclass(frozen=True)
class _Live:
    """The (rid, gen) that are visible, or being fetched. `packed` is None for tables whose rows all stay."""

    packed: np.ndarray | None

    @property
    def keep(self) -> Keep | None:
        return None if self.packed is None else lambda rows: pa.array(self.holds(rows["rid"], rows["gen"]))

    def holds(self, rids: object, gens: object) -> np.ndarray:
        assert self.packed is not None
        return np.isin(_packed(rids, gens), self.packed)


def _packed(rids: object, gens: object) -> np.ndarray:
    return np.asarray(rids, dtype=np.int64) * (1 << 24) + np.asarray(gens, dtype=np.int64)


def _live(catalog: Catalog, files: list[FileRow]) -> _Live:
    """Which rows of these files belong to a version that is visible, or is being fetched."""
    table = files[0].table
    if table not in _VERSION and table not in _STREAM:
        return _Live(None)
    rids = sorted({rid for file in files for first, last in file.rids for rid in range(first, last + 1)})
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
    return _Live(_packed([rid for rid, _ in keep], [gen for _, gen in keep]))


def _extents(footers: list[dict[str, list[list[int]]]], live: _Live) -> list[list[int]]:
    """(rid, gen, first row, last row) of what stays, neighbours joined."""
    found: list[list[int]] = []
    for rid, gen, first, last in sorted(e for footer in footers for e in footer.get("streams", [])):
        if not live.holds([rid], [gen])[0]:
            continue
        if found and found[-1][:2] == [rid, gen] and first <= found[-1][3] + 1:
            found[-1][3] = max(found[-1][3], last)
        else:
            found.append([rid, gen, first, last])
    return found


def _holds_dead_rows(layout: Layout, catalog: Catalog, file: FileRow) -> bool:
    live = _live(catalog, [file])
    if live.packed is None:
        return False
    if file.table in CELL_TABLES:  # the footer tells without a look at the rows
        extents = (segments.footer(layout.root / file.path) or {}).get("streams", [])
        return not live.holds([e[0] for e in extents], [e[1] for e in extents]).all()
    with pq.ParquetFile(layout.root / file.path) as opened:
        return any(
            not live.holds(piece["rid"], piece["gen"]).all() for piece in opened.iter_batches(columns=["rid", "gen"])
        )


def _forget_the_dead(layout: Layout, catalog: Catalog) -> None:
    """Where no segment of a table holds a dead row, readers need not look for them any more."""
    by_table: dict[str, list[FileRow]] = {}
    counted = {table: catalog.superseded_rows(table) for table in (*_VERSION, *_STREAM)}
    dead = list(catalog.db.execute("select rid, stream, gen from streams where live = 0"))
    for file in catalog.files():
        by_table.setdefault(file.table, []).append(file)
    clean = [
        table for table in counted if not any(_holds_dead_rows(layout, catalog, f) for f in by_table.get(table, []))
    ]
    with held(layout.commit_lock), catalog.transaction():
        for table in clean:
            catalog.supersede(table, -counted[table])
        for rid, stream, gen in dead:
            if STREAM_TABLE[stream] in clean:
                # One that is newer than the live one is still being fetched.
                catalog.db.execute(
                    "delete from streams where rid = ? and stream = ? and gen = ? and live = 0 and exists (select 1 "
                    "from streams s where s.rid = streams.rid and s.stream = streams.stream and s.live = 1 "
                    "and s.gen > streams.gen)",
                    [rid, stream, gen],
                )


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
            # Only the last commit, and those that replaced a file that is still there, are asked for again.
            catalog.db.execute(
                "delete from snapshots where at < ? and id < (select max(id) from snapshots) "
                "and id not in (select removed from files where removed is not null)",
                [before],
            )
    return len(gone)
