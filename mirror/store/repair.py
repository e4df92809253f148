"""`mirror repair`: make a mirror whole again after its catalog, its snapshot or some of its files were lost.

Every segment's footer and the rows of `runs` carry what the catalog knew. A run whose cells were lost with a
file is marked incomplete, and its next sync fetches it anew; nothing that is still there is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mirror.errors import StoreError
from mirror.records import Fetched, ItemKey, RunKey, Stream
from mirror.store import segments, versions
from mirror.store.catalog import Catalog, FileRow, Identity, ItemIdentity, StreamState, iso, now
from mirror.store.cells import fingerprint, rows_as_json
from mirror.store.disk import sha256
from mirror.store.health import intact
from mirror.store.layout import Layout
from mirror.store.locks import held
from mirror.store.metrics import MetricStats
from mirror.store.schema import CELL_TABLES, ITEM_TABLES
from mirror.store.snapshot import publish
from mirror.store.views import write_database
from mirror.store.writer import Writer

_CELL_STREAMS: tuple[Stream, ...] = ("history", "system")
LOST = "lost"
"""Stands for the fingerprint of a last row that is gone, so that the next sync sees a difference."""


class Mender(Writer):
    """A writer that can also say that something is lost."""

    def holds_version(self, identity: Identity) -> bool:
        """Whether the live version of a run is still in the data."""
        return identity.gen in self._committer.read("runs", [identity.rid], [identity.gen])["gen"].to_pylist()

    def mark_lost(self, key: RunKey, stream: Stream, fingerprint: str, *, visible: bool) -> None:
        """Rows of a stream are gone: say so, and make the next incremental read start over."""
        found = self._opened(key)
        note = "rows were lost with a damaged file; the next sync fetches them again"
        found.streams[stream] = replace(
            found.live[stream],
            last_fingerprint=fingerprint,
            fetched=Fetched(stream, "rows", complete=False, note=note),
        )
        if visible:
            found.changed.add(stream)
        else:
            state = found.streams[stream]
            self._batch.later.append(lambda: self.catalog.save_stream(found.identity.rid, stream, state))

    def recount_metrics(self, key: RunKey) -> None:
        """Make the rows of `metric` anew from the cells."""
        found = self._opened(key)
        state = found.live.get("history")
        if state:
            found.stats, found.stats_gen = MetricStats(), state.gen
            found.stats.add(self._committer.read("history", [found.identity.rid], [state.gen]).sort_by("row"), 0)
            found.metrics_changed = True
            found.changed.add("history")

    def forget(self, key: RunKey) -> None:
        """Treat the run's documents as unknown, so that its next sync writes them whatever they are."""
        found = self._opened(key)
        found.identity.fingerprint, found.identity.digest = None, ""
        self._save_later(found.identity)
        if files := found.streams.get("files"):
            unknown = replace(files, last_fingerprint=None)
            self._batch.later.append(lambda: self.catalog.save_stream(found.identity.rid, "files", unknown))


@dataclass
class Repaired:
    """What `repair` found and did. `lost` are segments that are missing or damaged, `runs` the paths of runs
    that lost rows with them."""

    files: int = 0
    rebuilt_catalog: bool = False
    lost: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


def repair(root: str | Path, *, progress: Callable[[Iterable[FileRow]], Iterable[FileRow]] = iter) -> Repaired:
    """Check every file of the mirror at `root`, rebuild what is missing, publish again.

    `progress` may wrap the files that are being checked. `StoreError` if `root` holds nothing of a mirror.
    """
    layout = Layout(root)
    if not (layout.catalog.exists() or layout.snapshot.exists() or any(layout.data.rglob("*.parquet"))):
        layout.read_snapshot()  # says what is wrong
        raise StoreError(f"`{layout.root}` holds nothing to repair: name a mirror with --mirror (or MIRROR_ROOT)")
    report = Repaired()
    if not _catalog_works(layout):
        report.rebuilt_catalog = True
        _rebuild(layout)
    with Mender(layout.root) as writer:
        files = writer.catalog.files()
        report.files = len(files)
        lost = [file for file in progress(files) if not intact(layout, file, deep=True)]
        if lost:
            report.lost = [file.path for file in lost]
            with held(layout.commit_lock), writer.catalog.transaction():
                number = writer.catalog.new_snapshot(now(), writer.session)
                for file in lost:
                    writer.catalog.db.execute("update files set removed = ? where path = ?", [number, file.path])
                    writer.catalog.doubt_items(r for first, last in file.rids for r in range(first, last + 1))
            report.runs = _mark_damaged(writer, lost)
        writer.commit()
        with held(layout.commit_lock):
            write_database(layout, publish(layout, writer.catalog))
    return report


def _catalog_works(layout: Layout) -> bool:
    if not layout.catalog.exists():
        return False
    try:
        catalog = Catalog(layout)
        try:
            return bool(catalog.db.execute("pragma integrity_check").fetchone()[0] == "ok")
        finally:
            catalog.close()
    except StoreError as e:
        if "damaged" in str(e):
            return False
        raise


# -- a new catalog out of the files ------------------------------------------------------------------------


def _rebuild(layout: Layout) -> None:
    """Set the old catalog aside and make a new one from the snapshot or, without it, from every footer."""
    for old in layout.root.glob("catalog.sqlite*"):
        if not old.name.endswith(".damaged"):
            old.replace(old.with_name(old.name + ".damaged"))
    try:
        content: dict[str, Any] | None = layout.read_snapshot()
    except StoreError as e:
        if "newer release" in str(e):
            raise
        content = None
    layout.make_folders()
    files = _listed(content) if content else _found(layout)
    catalog = Catalog(layout)
    try:
        with held(layout.commit_lock), catalog.transaction():
            if content:
                catalog.put("store_id", content["store_id"])
                catalog.db.execute(
                    "insert into snapshots values (?, ?, 'repair')",
                    [content["snapshot"], content["published_at"]],
                )
            number = catalog.new_snapshot(now(), "repair")
            for file in files:
                catalog.add_file(file, number)
            _restore_runs(layout, catalog, files)
    finally:
        catalog.close()


def _listed(content: dict[str, Any]) -> list[FileRow]:
    return [
        FileRow(f["path"], table, f["rows"], f["bytes"], f["sha256"], f["rids"], f["version"])
        for table, entry in content["tables"].items()
        for f in entry["files"]
    ]


def _found(layout: Layout) -> list[FileRow]:
    """Every readable segment that no other one replaces."""
    found: list[FileRow] = []
    replaced: set[str] = set()
    for path in sorted(layout.data.rglob("*.parquet")):
        try:
            footer = segments.footer(path)
        except (OSError, ValueError):  # pyarrow's errors for a torn file are ValueErrors
            continue
        if footer:
            replaced |= set(footer["replaces"])
            rows = pq.read_metadata(path).num_rows
            name = str(path.relative_to(layout.root))
            found.append(
                FileRow(
                    name,
                    footer["table"],
                    rows,
                    path.stat().st_size,
                    sha256(path),
                    footer["rids"],
                    footer["schema_version"],
                )
            )
    return [file for file in found if Path(file.path).stem not in replaced]


def _restore_runs(layout: Layout, catalog: Catalog, files: list[FileRow]) -> None:
    rows = _newest(layout, files, "runs")
    for table in ("config", "summary", "metric", "runs", *ITEM_TABLES, "artifact_entries", "artifact_uses"):
        # Whether rows of these tables are all live is not worth finding out: readers may look.
        catalog.supersede(table, 1)
    last = max([r[1] for file in files for r in file.rids] + [*rows], default=0)
    catalog.put("next_rid", str(last + 1))
    tails = _last_rows(layout, files, rows)
    for rid, row in rows.items():
        run = versions.run_of(row)
        identity = Identity(
            rid,
            run.key,
            row["gen"],
            row["config_gen"],
            row["summary_gen"],
            row["metric_gen"],
            versions.digest(run),
        )
        identity.deleted_at = iso(row["deleted_at"])
        identity.origin, identity.merged_into = row.get("origin"), row.get("merged_into")
        catalog.save_run(identity)
        for stream, state in _states(row).items():
            if state.gen:
                fingerprinted = StreamState(**state.__dict__ | {"last_fingerprint": tails.get((rid, stream))})
                catalog.save_stream(rid, stream, fingerprinted)
    _restore_dead_generations(layout, catalog, files)
    for table in ITEM_TABLES:
        _restore_items(catalog, table, _newest(layout, files, table))
    projects: dict[tuple[str, str, str], int] = {}
    for file in files:
        if file.table == "projects" and (layout.root / file.path).exists():
            for row in segments.read(layout.root / file.path, file.table).to_pylist():
                name = (row["source"], row["entity"], row["project"])
                projects[name] = max(projects.get(name, 0), row["gen"])
    for (source, entity, project), gen in projects.items():
        catalog.save_project(source, entity, project, gen, "")


def _newest(layout: Layout, files: list[FileRow], table: str) -> dict[int, dict[str, Any]]:
    """rid -> the row of the highest gen, in a table that has one row per version."""
    rows: dict[int, dict[str, Any]] = {}
    for file in files:
        if file.table == table and (layout.root / file.path).exists():
            for row in segments.read(layout.root / file.path, file.table).to_pylist():
                if row["gen"] > rows.get(row["rid"], {"gen": 0})["gen"]:
                    rows[row["rid"]] = row
    return rows


def _restore_items(catalog: Catalog, kind: str, rows: dict[int, dict[str, Any]]) -> None:
    for rid, row in rows.items():
        key = ItemKey(row["source"], row["storage_id"], row["entity"], row["project"])
        gens = {name: row[name] for name in ("entries_gen", "uses_gen") if name in row}
        catalog.save_item(ItemIdentity(rid, kind, key, row["gen"], deleted_at=iso(row["deleted_at"]), **gens))


def _states(row: dict[str, Any]) -> dict[str, StreamState]:
    history = Fetched(
        "history",
        row["history_road"] or "none",
        total=row["history_total"],
        complete=row["history_complete"],
        lossless=row["history_lossless"],
        note=row["history_note"],
    )
    system = Fetched(
        "system",
        "rows",
        asked=row["system_asked"],
        got=row["system_got"],
        total=row["system_total"],
        sampled=row["system_sampled"],
    )
    return {
        "history": StreamState(row["history_gen"], row["history_rows"], row["history_last_step"], fetched=history),
        "system": StreamState(row["system_gen"], row["system_rows"], fetched=system),
        "files": StreamState(row["files_gen"], row["files_count"] or 0),
        "logs": StreamState(row["logs_gen"], row["logs_rows"]),
    }


def _last_rows(layout: Layout, files: list[FileRow], rows: dict[int, dict[str, Any]]) -> dict[tuple[int, str], str]:
    """(rid, stream) -> fingerprint of the last row held, read back from the cells."""
    import duckdb

    found: dict[tuple[int, str], str] = {}
    for stream, table in (("history", "history"), ("system", "system_metrics")):
        paths = [str(layout.root / f.path) for f in files if f.table == table and (layout.root / f.path).exists()]
        wanted = [(rid, r[f"{stream}_gen"], r[f"{stream}_rows"] - 1) for rid, r in rows.items() if r[f"{stream}_rows"]]
        if not paths or not wanted:
            continue
        with duckdb.connect() as db:
            db.execute("set TimeZone = 'UTC'")
            db.execute("create table wanted (rid bigint, gen bigint, row bigint)")
            db.executemany("insert into wanted values (?, ?, ?)", wanted)
            cells = db.sql(
                "select c.* from read_parquet(?, hive_partitioning = false) c semi join wanted w "
                "on w.rid = c.rid and w.gen = c.gen and w.row = c.row order by c.rid",
                params=[paths],
            ).to_arrow_table()
        for rid in set(cells["rid"].to_pylist()):
            row = cells.filter([r == rid for r in cells["rid"].to_pylist()])
            found[(rid, stream)] = fingerprint(next(iter(rows_as_json(row))))
    return found


def _restore_dead_generations(layout: Layout, catalog: Catalog, files: list[FileRow]) -> None:
    """Generations in the files that no run shows: still being fetched once, or replaced. Readers must skip them."""
    live = {(rid, stream, gen) for rid, stream, gen in catalog.db.execute("select rid, stream, gen from streams")}
    for (rid, stream, gen), extents in _extents(layout, files).items():
        if (rid, stream, gen) not in live:
            catalog.db.execute(
                "insert or replace into streams values (?, ?, ?, 0, ?, null, ?, null)",
                [rid, stream, gen, _contiguous(extents), LOST],
            )


def _extents(layout: Layout, files: Iterable[FileRow]) -> dict[tuple[int, str, int], list[tuple[int, int]]]:
    """(rid, stream, gen) -> row ranges [first, last] present in the files."""
    found: dict[tuple[int, str, int], list[tuple[int, int]]] = {}
    for file in files:
        path = layout.root / file.path
        if file.table in CELL_TABLES and path.exists():
            stream = "history" if file.table == "history" else "system"
            for rid, gen, first, last in (segments.footer(path) or {"streams": []})["streams"]:
                found.setdefault((rid, stream, gen), []).append((first, last))
    return found


def _contiguous(extents: list[tuple[int, int]]) -> int:
    """How many rows are there from row 0 on without a gap."""
    rows = 0
    for first, last in sorted(extents):
        if first > rows:
            break
        rows = max(rows, last + 1)
    return rows


# -- runs that lost rows ------------------------------------------------------------------------------------


def _mark_damaged(writer: Mender, lost: list[FileRow]) -> list[str]:
    """Mark runs that lost something as incomplete, so that their next sync fetches it; returns their paths."""
    damaged: list[str] = []
    extents = _extents(writer.layout, writer.catalog.files())
    tables = {file.table for file in lost}
    for rid in sorted({rid for file in lost for first, last in file.rids for rid in range(first, last + 1)}):
        found = writer.catalog.db.execute("select source, storage_id from runs where rid = ?", [rid]).fetchone()
        identity = writer.catalog.find(*found) if found else None
        if identity is None:
            continue
        visible = writer.holds_version(identity)
        short = []
        for (_, stream), states in writer.catalog.streams([rid]).items():
            for live, state in states.items():
                if _contiguous(extents.get((rid, stream, state.gen), [])) >= state.rows or stream not in _CELL_STREAMS:
                    continue
                if live:
                    writer.mark_lost(identity.key, stream, LOST, visible=visible)
                    short.append(stream)
                else:  # what was being fetched is fetched again from its first row
                    writer.begin(identity.key, stream, keep=True)
        if "metric" in tables and visible and "history" not in short:
            writer.recount_metrics(identity.key)
        if short or tables - {*CELL_TABLES, "metric"}:
            writer.forget(identity.key)
            damaged.append(identity.key.path)
    writer.commit()
    return damaged
