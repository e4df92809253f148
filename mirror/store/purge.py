"""`mirror purge`: remove runs, projects or entities from a mirror for good.

Segments that hold something of them are written anew without it, then one transaction puts these in place and
forgets the identities, then everything else that held a trace goes: the old segments, live lines, exports, blobs that
nothing else names, freed pages of the catalog. What is left to delete is noted in ROOT/purge.json (numbers and
checksums only) before the transaction, so that the next writer finishes a purge that was killed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mirror.errors import LockedError, NotFoundError
from mirror.paths import WandbPath
from mirror.store import segments
from mirror.store.catalog import Catalog, FileRow, iso, now
from mirror.store.compact import coded_schema
from mirror.store.disk import explained
from mirror.store.layout import Layout
from mirror.store.locks import FileLock, held
from mirror.store.merge import merged
from mirror.store.removal import finish, forget, note
from mirror.store.snapshot import publish
from mirror.store.writer import Writer

_BY_NAME = ("projects", "sync_log", "changes", "quarantine")
"""Tables whose rows name their project, whether or not they have a rid."""

_SHA256 = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

Name = tuple[str, str, str]
"""Source, entity, project."""


@dataclass(frozen=True)
class Chosen:
    """What is to go: runs and items by rid, and projects that go whole."""

    runs: dict[int, str]
    items: frozenset[int]
    projects: frozenset[Name]
    leases: frozenset[Name]

    @property
    def rids(self) -> frozenset[int]:
        return self.items | self.runs.keys()


@dataclass(frozen=True)
class Purged:
    """What a purge removed; `bytes` is by how much the root has become smaller."""

    runs: int
    items: int
    files: int
    blobs: int
    bytes: int


def choose(catalog: Catalog, paths: Sequence[WandbPath], source: str | None = None) -> Chosen:
    """What these paths name, runs that were found deleted included. `NotFoundError` for one that names nothing."""
    runs: dict[int, str] = {}
    items: set[int] = set()
    projects: set[Name] = set()
    leases: set[Name] = set()
    for path in paths:
        where, values = ["true"], []
        for column, value in (("source", source), ("entity", path.entity), ("project", path.project)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        names = {
            tuple(row)
            for table in ("runs", "items", "projects")
            for row in catalog.db.execute(
                f"select distinct source, entity, project from {table} where {' and '.join(where)}", values
            )
        }
        of_run = " and run_id = ?" if path.run_id is not None else ""
        query = f"select rid, source, entity, project, run_id from runs where {' and '.join(where)}{of_run}"
        found = catalog.db.execute(query, [*values, *([path.run_id] if path.run_id is not None else [])]).fetchall()
        if not found and (path.run_id is not None or not names):
            raise NotFoundError(
                f"the mirror holds nothing of `{path.text}`: `mirror status` and `mirror runs --deleted` show what "
                "it holds"
            )
        found += _copies(catalog, [row[0] for row in found])
        runs |= {rid: f"{entity}/{project}/{run_id}" for rid, _, entity, project, run_id in found}
        leases |= {(row[1], row[2], row[3]) for row in found}
        if path.run_id is None:
            projects |= names
            leases |= names
            items |= {r for (r,) in catalog.db.execute(f"select rid from items where {' and '.join(where)}", values)}
    return Chosen(runs, frozenset(items), frozenset(projects), frozenset(leases))


def _copies(catalog: Catalog, rids: Sequence[int]) -> list[tuple[int, str, str, str, str]]:
    """The runs that are shown together with these ones: copies of them from other sources, and what they are copies
    of."""
    query = (
        "select rid, source, entity, project, run_id from runs where merged_into = ?1 "
        "or rid = (select merged_into from runs where rid = ?1)"
    )
    return [row for rid in rids for row in catalog.db.execute(query, [rid])]


def purge(
    root: str | Path,
    paths: Sequence[WandbPath],
    *,
    source: str | None = None,
    progress: Callable[[list[FileRow]], Iterable[FileRow]] = iter,
) -> Purged:
    """Remove everything these paths name from the mirror at `root`. Raises LockedError while a server or a sync
    writes there."""
    layout = Layout(root)
    layout.read_snapshot()
    with ExitStack() as stack:
        served = FileLock(layout.serve_lock)
        if not served.acquire(wait=False):
            raise LockedError(f"a `mirror serve` takes runs into `{layout.root}`: stop it, and purge again")
        stack.callback(served.release)
        writer = stack.enter_context(Writer(layout.root, create=False))
        chosen = choose(writer.catalog, paths, source)
        for name in sorted(chosen.leases):
            stack.enter_context(writer.lease(*name))
        return _purge(layout, writer, chosen, progress)


def _purge(
    layout: Layout, writer: Writer, chosen: Chosen, progress: Callable[[list[FileRow]], Iterable[FileRow]]
) -> Purged:
    catalog = writer.catalog
    size = _size(layout.root)
    blobs = _blobs(layout, catalog.files(), chosen.rids)
    written: list[tuple[FileRow, FileRow | None]] = []
    committed = False
    try:
        for file in progress(catalog.files()):
            if _may_hold(file, chosen):
                made, changed = _without(layout, writer, file, chosen)
                if changed:
                    written.append((file, made))
                elif made is not None:
                    segments.remove_readonly(layout.root / made.path)
        kept = [file for file in catalog.files() if file.path not in {old.path for old, _ in written}]
        kept += [made for _, made in written if made is not None]
        named = _blobs(layout, kept, None) | _named_live(layout, chosen.rids)
        blobs = (blobs | _unnamed(layout, writer.session, named)) - named
        with held(layout.commit_lock):
            number = catalog.last_snapshot()[0] + 1
            note(layout, number, sorted(chosen.rids), sorted(blobs), _identities(catalog, chosen))
            catalog.db.execute("pragma secure_delete = on")
            with catalog.transaction():
                _swap(catalog, writer.session, written, chosen)
            committed = True
            publish(layout, catalog)
            finish(layout, catalog)
    finally:
        if not committed:
            for _, made in written:
                if made is not None:
                    segments.remove_readonly(layout.root / made.path)
            forget(layout)
    purged = Purged(len(chosen.runs), len(chosen.items), len(written), len(blobs), max(0, size - _size(layout.root)))
    _audit(layout, purged)
    return purged


def _identities(catalog: Catalog, chosen: Chosen) -> list[tuple[str, str]]:
    """Source and storage id of everything that is chosen."""
    found = []
    for table in ("runs", "items"):
        rows = catalog.db.execute(f"select rid, source, storage_id from {table}")
        found += [(source, storage_id) for rid, source, storage_id in rows if rid in chosen.rids]
    return found


def _may_hold(file: FileRow, chosen: Chosen) -> bool:
    if file.table in _BY_NAME or file.table in ("artifacts", "artifact_uses"):
        return True
    return any(first <= rid <= last for first, last in file.rids for rid in chosen.rids)


def _without(layout: Layout, writer: Writer, file: FileRow, chosen: Chosen) -> tuple[FileRow | None, bool]:
    """The segment without what was chosen, None if nothing is left of it; and whether it differs from the old one."""
    footer = segments.footer(layout.root / file.path) or {}
    rids = pa.array(sorted(chosen.rids), pa.int64())
    names = pa.array(sorted("\0".join(name) for name in chosen.projects), pa.string())
    runs = pa.array(sorted(path.replace("/", "\0", 2) for path in chosen.runs.values()), pa.string())
    run_ids = {path.split("/", 2)[2] for path in chosen.runs.values()}
    blanked = 0

    def blank(rows: pa.Table) -> pa.Table:
        """Take the runs out of what else names them: reports of syncs, artifacts they made."""
        nonlocal blanked
        if file.table == "sync_log":
            column, names = "message", [m is not None and _names(m, run_ids) for m in rows["message"].to_pylist()]
            hit = pa.array(names, pa.bool_())
        elif file.table == "artifacts":
            column, hit = "run_id", pc.is_in(_joined(rows, "run_entity", "run_project", "run_id"), runs)
        else:
            return rows
        blanked += pc.sum(hit).as_py() or 0
        i = rows.column_names.index(column)
        return rows.set_column(i, rows.schema.field(i), pc.if_else(hit, None, rows[column]))

    def keep(rows: pa.Table) -> pa.Array:
        gone = pa.repeat(pa.scalar(False), rows.num_rows)
        if "rid" in rows.column_names:
            gone = pc.is_in(rows["rid"], rids)
        if file.table in _BY_NAME:
            gone = pc.or_(gone, pc.is_in(_joined(rows, "source", "entity", "project"), names))
        if file.table == "artifact_uses":
            gone = pc.or_(gone, pc.is_in(_joined(rows, "entity", "project", "run_id"), runs))
        return pc.invert(gone)

    said = {
        "rids": segments.rid_ranges([r for a, b in file.rids for r in range(a, b + 1) if r not in chosen.rids]),
        "identities": [i for i in footer.get("identities", []) if i[0] not in chosen.rids],
        "streams": [e for e in footer.get("streams", []) if e[0] not in chosen.rids],
        "replaces": [Path(file.path).stem],
    }
    schema = coded_schema(file.table)
    read = merged([layout.root / file.path], schema, segments.ORDER.get(file.table, ()), keep)
    pieces = (_coded_anew(blank(rows)) for rows in read)
    shard = int(file.path.split("/")[2])
    made = segments.write_pieces(layout, writer.new_name(), file.table, pieces, schema, said, shard=shard)
    if made.rows:
        return made, made.rows != file.rows or blanked > 0
    segments.remove_readonly(layout.root / made.path)
    return None, True


def _names(message: str, run_ids: set[str]) -> bool:
    return any(run_id in message for run_id in run_ids)


def _coded_anew(rows: pa.Table) -> pa.Table:
    """The rows with dictionaries of their own: those they were read with hold the values of rows that are gone."""
    columns = [
        column.cast(column.type.value_type).dictionary_encode() if pa.types.is_dictionary(column.type) else column
        for column in rows.columns
    ]
    return pa.table(columns, names=rows.column_names).cast(rows.schema)


def _joined(rows: pa.Table, *columns: str) -> pa.Array:
    return pc.binary_join_element_wise(*(rows[c].cast(pa.string()) for c in columns), "\0")


def _swap(catalog: Catalog, session: str, written: list[tuple[FileRow, FileRow | None]], chosen: Chosen) -> None:
    number = catalog.new_snapshot(now(), "purge")
    catalog.remove_files([old.path for old, _ in written], number)
    for _, made in written:
        if made is not None:
            catalog.add_file(made, number)
    # What compaction replaced a moment ago, and readers of older snapshots still read, goes as well.
    catalog.db.execute("update files set removed = ? where removed is not null", [number])
    ids = [[rid] for rid in chosen.rids]
    for table, rid in (("runs", "rid"), ("streams", "rid"), ("items", "rid")):
        catalog.db.executemany(f"delete from {table} where {rid} = ?", ids)
    for name in chosen.projects:
        for table in ("projects", "quarantine"):
            catalog.db.execute(f"delete from {table} where source = ? and entity = ? and project = ?", name)
    run_ids = {path.split("/", 2)[2] for path in chosen.runs.values()}
    for source, entity, project, message in catalog.db.execute(
        "select source, entity, project, message from projects where message is not null"
    ).fetchall():
        if _names(message, run_ids):
            query = "update projects set message = null where source = ? and entity = ? and project = ?"
            catalog.db.execute(query, [source, entity, project])
    for path in chosen.runs.values():
        catalog.db.execute("delete from quarantine where entity = ? and project = ? and run_id = ?", path.split("/", 2))


def _blobs(layout: Layout, files: list[FileRow], rids: frozenset[int] | None) -> set[str]:
    """Blobs that rows of these segments name: rows of these rids, or of any."""
    found: set[str] = set()
    columns = {"files": ("sha256",), "artifact_entries": ("sha256",), "artifacts": ("manifest_sha256",)}
    for file in files:
        if file.table not in columns or not (layout.root / file.path).exists():
            continue
        schema = coded_schema(file.table)
        wanted = None if rids is None else pa.array(sorted(rids), pa.int64())
        for rows in merged([layout.root / file.path], schema, (), None):
            if wanted is not None:
                rows = rows.filter(pc.is_in(rows["rid"], wanted))
            for name in columns[file.table]:
                found |= {v for v in pc.unique(rows[name]).to_pylist() if v}
    return {v for v in found if len(v) == 64 and set(v) <= set("0123456789abcdef")}


def _named_live(layout: Layout, without: frozenset[int]) -> set[str]:
    """Blobs that lines name which a server took and has not written into segments yet, those of these rids left out."""
    found: set[str] = set()
    for path in layout.live.rglob("*"):
        of_run = path.relative_to(layout.live).parts[0]
        if path.is_file() and not (of_run.isdigit() and int(of_run) in without):
            with path.open("rb") as lines:
                for line in lines:
                    found.update(sha256.decode() for sha256 in _SHA256.findall(line))
    return found


def _unnamed(layout: Layout, session: str, named: set[str]) -> set[str]:
    """Blobs that nothing names any more: bytes of a version that was replaced, or of a download that was killed. None
    as long as another process writes, which may be about to name some."""
    if any(lock.stem != session for lock in layout.sessions.glob("*.lock")):
        return set()
    return {path.name for path in layout.blobs.glob("??/*") if len(path.name) == 64} - named


def _size(root: Path) -> int:
    total = 0
    for path in root.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _audit(layout: Layout, purged: Purged) -> None:
    """A line that says that something was removed, and when, but not what."""
    line = json.dumps({"at": iso(now()), **purged.__dict__})
    with explained("writing purge.log"), (layout.root / "purge.log").open("a", encoding="utf-8") as log:
        log.write(line + "\n")
