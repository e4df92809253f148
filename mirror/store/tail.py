"""The live tail of a server as rows of the tables: runs that are still logging, seen by every reader.

Made by the same code that makes segments, so that a row looks the same before and after it is drained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mirror.records import Fetched, Run
from mirror.store.catalog import Identity, StreamState, now
from mirror.store.cells import decode
from mirror.store.console import parsed
from mirror.store.layout import Layout
from mirror.store.live import last_version, live_logs, read_lines
from mirror.store.metrics import MetricStats
from mirror.store.schema import STREAM_TABLE, tables
from mirror.store.segments import read, sorted_cells
from mirror.store.snapshot import Snapshot
from mirror.store.versions import Version, document_tables


def tail_tables(layout: Layout, content: dict[str, Any], folders: list[Path]) -> dict[str, pa.Table]:
    """Table name -> rows that the live runs in `folders` add to the snapshot `content`."""
    snapshot = Snapshot(content)
    versions: list[Version] = []
    parts: dict[str, list[pa.Table]] = {}
    cells: dict[str, list[tuple[int, int, int, pa.Table]]] = {}
    for folder in folders:
        run = last_version(folder)
        if run is None:  # the folder was made a moment ago
            continue
        rid = int(folder.name)
        stored = _stored(layout, snapshot, rid)
        version = _version(rid, run, stored)
        stats = MetricStats()
        if stored and version.identity.metric_gen:
            rows = _rows(layout, snapshot, "metric", rid)
            stats.load(rows.filter(pa.compute.equal(rows["gen"], stored["metric_gen"])))
        streams = dict(version.streams)
        for stream in ("history", "system"):
            state = streams[stream]
            lines = list(read_lines(folder, stream, state.rows))
            if lines:
                batch = decode(lines)
                cells.setdefault(STREAM_TABLE[stream], []).append((rid, state.gen, state.rows, batch.table))
                steps = [s for s in (state.last_step, batch.last_step) if s is not None]
                if stream == "history":
                    stats.add(batch.table, state.rows)
                state = replace(state, rows=state.rows + batch.rows, last_step=max(steps, default=None))
            streams[stream] = replace(state, fetched=Fetched(stream, "serve", total=state.rows))
        logs = [(n, text) for n, text in live_logs(folder) if n >= streams["logs"].rows]
        if logs:
            named = [(n, *parsed(text)) for n, text in logs]
            rows_of_logs = [
                {"rid": rid, "gen": streams["logs"].gen, "line": n, "ts": ts, "level": level, "text": text}
                for n, ts, level, text in named
            ]
            parts.setdefault("logs", []).append(pa.Table.from_pylist(rows_of_logs, schema=tables()["logs"]))
            streams["logs"] = replace(streams["logs"], rows=logs[-1][0] + 1)
        version.streams = streams
        version.identity.metric_gen = version.identity.gen
        metric = stats.table()
        ids = [pa.repeat(pa.scalar(n, pa.int64()), metric.num_rows) for n in (rid, version.identity.gen)]
        parts.setdefault("metric", []).append(
            pa.table([*ids, *metric.columns], names=["rid", "gen", *metric.column_names]).cast(tables()["metric"])
        )
        versions.append(version)
    if not versions:
        return {}
    made_tables = document_tables(versions)
    made_tables |= {name: pa.concat_tables(found) for name, found in parts.items()}
    made_tables |= {name: sorted_cells(found).cast(tables()[name]) for name, found in cells.items()}
    return made_tables


def _version(rid: int, run: Run, stored: dict[str, Any] | None) -> Version:
    """The version the run would get if it were drained now."""
    if stored is None:
        identity = Identity(rid, run.key, gen=1, config_gen=1, summary_gen=1)
        return Version(identity, run, {s: StreamState(gen=1) for s in STREAM_TABLE}, now())
    gen = stored["gen"] + 1
    identity = Identity(rid, run.key, gen, gen, gen, stored["metric_gen"])
    rows = {"history": "history_rows", "system": "system_rows", "files": "files_count", "logs": "logs_rows"}
    streams = {
        stream: StreamState(
            gen=max(stored[f"{stream}_gen"], 1 if stream != "files" else 0),
            rows=stored[column] or 0,
            last_step=stored["history_last_step"] if stream == "history" else None,
        )
        for stream, column in rows.items()
    }
    if run.metadata is None:
        run = replace(run, metadata=stored["metadata"])
    return Version(identity, run, streams, now())


def _stored(layout: Layout, snapshot: Snapshot, rid: int) -> dict[str, Any] | None:
    rows = _rows(layout, snapshot, "runs", rid).to_pylist()
    return max(rows, key=lambda row: row["gen"], default=None)


def _rows(layout: Layout, snapshot: Snapshot, table: str, rid: int) -> pa.Table:
    parts = [tables()[table].empty_table()]
    for file in snapshot.files(table, rid):
        parts.append(read(layout.root / file["path"], table, [("rid", "=", rid)]))
    return pa.concat_tables(parts)
