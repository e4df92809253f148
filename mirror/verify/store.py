"""The mirror itself verified: every file, every count, every cell, every document, every blob; nothing is changed.

A file's checksum shows that it is what was written. The rest shows that what was written fits together: rows without
gaps, cells of the form their kind demands, documents that agree with their nodes, blobs that are what they are called.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirror.store import jsontext
from mirror.store.blobs import blob_path
from mirror.store.catalog import Catalog, FileRow
from mirror.store.documents import explode
from mirror.store.health import intact
from mirror.store.segments import footer
from mirror.verify.findings import Findings, as_json

if TYPE_CHECKING:
    import duckdb

    from mirror.store import Reader

_ROWS_AT_ONCE = 50_000_000
"""Rows of histories whose places are marked in memory at the same time, a byte each."""
_RUNS_AT_ONCE = 200
_WAITS = (0.0, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.0, 2.0)
"""Seconds before each try to read catalog and snapshot of one moment; between the two a writer may be kept waiting."""
_STORE = "(the mirror)"

Progress = Callable[[str, int, int], None]
"""Called with what is being looked at, how much more of it was, and how much there is (0 if nobody knows)."""


def verify_store(reader: Reader, findings: Findings, progress: Progress = lambda what, n, total: None) -> None:
    """Look at everything below the mirror's root. Raises StoreError if the catalog cannot be read at all."""
    damaged = _segments(reader, findings, progress)
    if "runs" in damaged:  # which everything else is counted by
        findings.doubt(_STORE, "rows, cells and documents were not looked at: a file of `runs` is damaged")
        return
    _agree(reader, findings)
    db = reader.connect()

    def sound(what: str, *of: str) -> bool:
        if broken := sorted(damaged.intersection(of)):
            findings.doubt(_STORE, f"{what} were not looked at: a file of `{broken[0]}` is damaged")
        return not broken

    for stream, table in (("history", "history"), ("system", "system_metrics")):
        if sound(f"rows of `{table}`", table):
            _rows(db, stream, table, findings)
            _cells(db, stream, table, findings, progress)
    if sound("config and summary", "config", "summary"):
        _documents(db, findings, progress)
    if sound("files, console lines and artifacts", "files", "logs", "artifacts", "artifact_entries"):
        _manifests(db, findings)
        _blobs(reader, db, findings, progress)


# -- segments -------------------------------------------------------------------------------------------------


def _segments(reader: Reader, findings: Findings, progress: Progress) -> set[str]:
    """Compare every file with its checksum and what it says of itself; the tables that damaged ones belong to."""
    import pyarrow.parquet as pq

    root = reader.layout.root
    damaged: dict[str, str] = {}
    files = _listed(reader)
    for file in files:
        progress("files", 1, len(files))
        findings.count(segments=1, bytes=file.bytes)
        if not intact(reader.layout, file, deep=True):
            damaged[file.path] = file.table
            continue
        said = footer(root / file.path)
        rows = pq.read_metadata(root / file.path).num_rows
        if rows != file.rows:
            findings.differ(file.path, "segment", key="rows", here=str(rows), there=f"{file.rows} in the catalog")
        if said is None or said["table"] != file.table or said["rids"] != file.rids:
            findings.differ(file.path, "segment", key="footer", here=as_json(said)[:200], there="the catalog")
    if damaged:  # a merge may have replaced a file while the others were read
        damaged = {path: damaged[path] for path in {file.path for file in _listed(reader)} & damaged.keys()}
    for path in sorted(damaged):
        findings.differ(path, "segment", here="missing, or not as it was written: `mirror repair`")
    return set(damaged.values())


def _listed(reader: Reader) -> list[FileRow]:
    with closing(Catalog(reader.layout, read_only=True)) as catalog:
        return catalog.files()


def _agree(reader: Reader, findings: Findings) -> None:
    """Catalog, snapshot and the table of runs say the same. The catalog is read as it was at one moment, so that others
    may go on writing."""
    for wait in _WAITS:
        time.sleep(wait)
        reader.refresh()
        with closing(Catalog(reader.layout, read_only=True)) as catalog:
            catalog.db.execute("begin")
            if catalog.last_snapshot()[0] != reader.snapshot.id:
                continue
            sheet = findings.sheet()
            listed = {file.path: (file.rows, file.sha256) for file in catalog.files()}
            _identities(reader, catalog, sheet)
            break
    else:
        findings.doubt(_STORE, "catalog and snapshot were not compared: the mirror is being written")
        return
    findings.add(sheet)
    tables = reader.snapshot.content["tables"].values()
    published = {file["path"]: (file["rows"], file["sha256"]) for table in tables for file in table["files"]}
    for path in sorted(published.keys() | listed.keys()):
        if published.get(path) != listed.get(path):
            findings.differ(path, "snapshot", here=as_json(published.get(path)), there=as_json(listed.get(path)))


def _identities(reader: Reader, catalog: Catalog, findings: Findings) -> None:
    """The catalog and the table of runs name the same runs in the same versions, with the same rows. Runs that a
    server is taking lines in for are in the catalog when these are in segments."""
    live = {int(path.name) for path in reader.layout.live.glob("*") if path.name.isdigit()}
    cursor = reader.connect().execute(
        "select rid, gen, entity || '/' || project || '/' || run_id, history_gen, history_rows, system_gen, "
        "system_rows from raw.runs_live order by rid"
    )
    seen: set[int] = set()
    while some := cursor.fetchmany(500):
        states = catalog.streams([row[0] for row in some])
        for rid, gen, path, *streams in some:
            findings.count(runs=1)
            if rid in live:
                continue
            seen.add(rid)
            if catalog.live_gen(rid) != gen:
                findings.differ(path, "catalog", key="version", here=str(gen), there=f"{catalog.live_gen(rid)}")
            for stream, (g, rows) in zip(("history", "system"), (streams[:2], streams[2:]), strict=True):
                held = states.get((rid, stream), {}).get(True)
                known = (held.gen, held.rows) if held is not None else (0, 0)
                if known != (g, rows):
                    findings.differ(path, "catalog", key=f"{stream}: generation, rows", here=as_json([g, rows]),
                                    there=f"{as_json(list(known))} in the catalog")  # fmt: skip
    # A run that is shown under another one is in the catalog alone.
    known_runs = catalog.db.execute("select rid from runs where gen > 0 and merged_into is null")
    for rid in sorted({row[0] for row in known_runs} - seen - live):
        findings.differ(f"run number {rid}", "catalog", there="in the catalog")


# -- rows and cells -------------------------------------------------------------------------------------------


def _rows(db: duckdb.DuckDBPyConnection, stream: str, table: str, findings: Findings) -> None:
    """Every row that a run says it has is there: the live cells name each of them and no other."""
    runs = db.execute(
        f"select rid, {stream}_gen, {stream}_rows, entity || '/' || project || '/' || run_id from raw.live order by rid"
    ).fetchall()
    start = 0
    while start < len(runs):
        stop, total = start, 0
        while stop < len(runs) and (stop == start or total + runs[stop][2] <= _ROWS_AT_ONCE):
            total += runs[stop][2]
            stop += 1
        _marked(db, stream, table, runs[start:stop], findings)
        start = stop


def _marked(
    db: duckdb.DuckDBPyConnection, stream: str, table: str, runs: list[tuple[Any, ...]], findings: Findings
) -> None:
    rids = np.array([run[0] for run in runs], np.int64)
    sizes = np.array([run[2] for run in runs], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    found = np.zeros(offsets[-1], bool)
    beyond: dict[int, int] = {}
    query = f"select rid, row from raw.{table}_live where rid between ? and ?"
    for batch in db.sql(query, params=[int(rids[0]), int(rids[-1])]).to_arrow_reader(1 << 20):
        rid, row = batch.column("rid").to_numpy(), batch.column("row").to_numpy()
        at = np.searchsorted(rids, rid)
        good = (row >= 0) & (row < sizes[at])
        found[offsets[at[good]] + row[good]] = True
        for i in at[~good].tolist():
            beyond[i] = beyond.get(i, 0) + 1
        findings.count(cells=len(row))
    findings.count(rows=int(sizes.sum()))
    for i, run in enumerate(runs):
        here = found[offsets[i] : offsets[i + 1]]
        if not here.all():
            gaps = np.flatnonzero(~here)
            findings.differ(
                run[3], f"{stream} rows", row=int(gaps[0]), here=f"{len(gaps)} of {run[2]} rows are missing"
            )
        if i in beyond:
            findings.differ(run[3], f"{stream} rows", here=f"{beyond[i]} cells beyond the {run[2]} rows it has")


_WELL_FORMED = """
case kind
  when 'number' then v is not null or (j is not null and try_cast(j as double) is not null)
  when 'int' then (v is not null and v = trunc(v)) or regexp_full_match(j, '-?[0-9]+')
  when 'bool' then j is null and v in (0, 1)
  when 'null' then v is null and j is null
  when 'empty' then v is null and j is null
  when 'nonfinite' then isnan(v) or isinf(v)
  else v is null and j is not null and json_valid(j)
end
"""


def _cells(
    db: duckdb.DuckDBPyConnection, stream: str, table: str, findings: Findings, progress: Progress
) -> None:  # fmt: skip
    """Every live cell holds what its kind says. DuckDB refuses JSON that W&B takes (bare NaN): those are read here."""
    query = (
        f"select l.entity || '/' || l.project || '/' || l.run_id, c.row, c.step, c.key, c.kind, c.v, c.j "
        f"from raw.{table}_live c join raw.live l on l.rid = c.rid where ({_WELL_FORMED}) is not true"
    )
    cursor = db.execute(query)
    while some := cursor.fetchmany(1000):
        for path, row, step, key, kind, v, j in some:
            if not _readable(kind, j):
                findings.differ(path, stream, row=row, step=step, key=key, here=f"{kind}: {as_json([v, j])}")
    progress("streams", 1, 2)


def _readable(kind: str, j: str | None) -> bool:
    if kind not in ("string", "list", "dict", "media", "number") or j is None:
        return False
    try:
        value = jsontext.parse_exactly(j)
    except (ValueError, RecursionError):
        return False
    kinds: dict[str, type] = {"string": str, "list": list, "dict": dict, "media": dict, "number": jsontext.Number}
    return isinstance(value, kinds[kind])


# -- documents, manifests, blobs ------------------------------------------------------------------------------


def _documents(db: duckdb.DuckDBPyConnection, findings: Findings, progress: Progress) -> None:
    """Config and summary: the text that is shown and the nodes that filters look at are those of the text that came."""
    query = (
        "select rid, entity || '/' || project || '/' || run_id, config, config_raw, summary, summary_raw "
        "from raw.runs_live order by rid"
    )
    cursor = db.cursor().execute(query)
    while some := cursor.fetchmany(_RUNS_AT_ONCE):
        rids = [row[0] for row in some]
        held = {name: _nodes(db, name, rids) for name in ("config", "summary")}
        for rid, path, *texts in some:
            for name, (shown, raw) in (("config", texts[:2]), ("summary", texts[2:])):
                try:
                    expected, nodes = explode(raw, unwrap=name == "config")
                except Exception as e:  # whatever a text that came over the wire makes of a parser
                    findings.differ(path, name, here=f"cannot be read: {e}")
                    continue
                if expected != shown:
                    findings.differ(path, name, here=str(shown), there=f"{expected} as it came")
                if sorted(map(repr, nodes)) != held[name].get(rid, []):
                    findings.differ(path, name, key="nodes", here=f"{len(held[name].get(rid, []))} nodes",
                                    there=f"{len(nodes)} of the text that came, or others")  # fmt: skip
        findings.count(documents=2 * len(some))
        progress("documents", len(some), 0)


def _nodes(db: duckdb.DuckDBPyConnection, name: str, rids: list[int]) -> dict[int, list[str]]:
    rows = db.execute(
        f"select rid, path, type, num, str from raw.{name}_live where rid between ? and ?", [min(rids), max(rids)]
    ).fetchall()
    found: dict[int, list[str]] = {}
    for rid, *node in rows:
        found.setdefault(rid, []).append(repr(tuple(node)))
    return {rid: sorted(nodes) for rid, nodes in found.items()}


def _manifests(db: duckdb.DuckDBPyConnection, findings: Findings) -> None:
    """As many files, console lines and artifact entries as there should be."""
    query = """
        select r.entity || '/' || r.project || '/' || r.run_id as path, 'files' as what, r.files_count as said,
               count(f.rid) as held
        from raw.runs_live r left join raw.files_live f on f.rid = r.rid where r.files_gen > 0 group by all
        having said <> held
        union all
        select r.entity || '/' || r.project || '/' || r.run_id, 'console lines', r.logs_rows,
               coalesce(max(l.line) + 1, 0) as held
        from raw.runs_live r left join raw.logs_live l on l.rid = r.rid group by all having r.logs_rows <> held
        union all
        select a.entity || '/' || a.project || '/' || a.collection || ':v' || a.version, 'artifact entries',
               a.file_count, count(e.rid) as held
        from raw.artifacts_live a left join raw.artifact_entries e on e.rid = a.rid and e.gen = a.entries_gen
        where a.entries_gen > 0 and a.file_count is not null group by all having a.file_count <> held
    """
    for path, what, said, held in db.execute(query).fetchall():
        findings.differ(path, what, here=str(held), there=f"{said} in its record")
    for table in ("files", "logs", "artifact_entries"):
        row = db.execute(f"select count(*) from {table}").fetchone()
        findings.count(**{table: row[0] if row else 0})


def _blobs(reader: Reader, db: duckdb.DuckDBPyConnection, findings: Findings, progress: Progress) -> None:
    """Bytes that are held are those of their name, and of the digest of everything that is said to have them."""
    query = """
        select sha256, md5, min(path) from (
          select sha256, entity || '/' || project || '/' || run_id || ' ' || name as path, md5 from files
          where sha256 is not null
          union all
          select sha256, entity || '/' || project || '/' || collection || ':v' || version || ' ' || path,
                 case when ref is null then digest end
          from artifact_entries where sha256 is not null
        ) group by sha256, md5 order by sha256, md5 nulls first
    """
    counted = db.execute(f"select count(distinct sha256) from ({query})").fetchone()
    total = counted[0] if counted else 0
    cursor = db.execute(query)
    last, whole, held = "", False, ""
    while some := cursor.fetchmany(1000):
        for sha256, md5, path in some:
            if sha256 != last:
                last, whole, held = sha256, False, ""
                progress("blobs", 1, total)
                findings.count(blobs=1)
                blob = blob_path(reader.layout.blobs, sha256)
                if not blob.is_file():
                    findings.differ(path, "blob", key=sha256, here="the bytes are missing")
                    continue
                found, held = digests(blob)
                whole = found == sha256
                if not whole:
                    findings.differ(path, "blob", key=sha256, here=f"the bytes have the checksum {found}")
            if whole and md5 is not None and held != md5:
                findings.differ(path, "blob", key=sha256, here=f"md5 {held}", there=f"md5 {md5} as listed")


def digests(path: Path) -> tuple[str, str]:
    """SHA-256 in hex and MD5 in base64 of a file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    for chunk in _chunks(path):
        sha256.update(chunk)
        md5.update(chunk)
    return sha256.hexdigest(), base64.b64encode(md5.digest()).decode()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk
