"""Runs as rows: a version of a run becomes one row of `runs` and the nodes of its documents, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import pyarrow as pa

from mirror.records import Fetched, Run, RunKey
from mirror.store.catalog import Identity, StreamState
from mirror.store.documents import explode
from mirror.store.schema import tables

_ATTRIBUTES = [
    "name", "state", "group", "job_type", "notes", "description", "user_name", "username", "created_at",
    "heartbeat_at", "updated_at", "commit", "host", "sweep", "url", "system_summary", "history_keys", "metadata",
    "exit_code", "fork_run_id", "fork_step", "origin",
]  # fmt: skip

_ADDED_LATER = ("fork_run_id", "fork_step")
"""Attributes that count only where they are set, so that a run's digest stays the one of earlier releases."""


@dataclass
class Version:
    """Everything one row of `runs` says. `nodes_of` lists the documents whose nodes are written along."""

    identity: Identity
    run: Run
    streams: Mapping[str, StreamState]
    mirrored_at: datetime
    nodes_of: tuple[str, ...] = ("config", "summary")


def digest(run: Run) -> str:
    """`attributes:config:summary:metadata`, a digest each: which of the four a new version changes."""

    def of(value: object) -> str:
        return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    skipped = {"config", "summary", "metadata", "key", "origin"}
    attributes = [
        (f.name, value)
        for f in fields(run)
        if f.name not in skipped and ((value := getattr(run, f.name)) is not None or f.name not in _ADDED_LATER)
    ]
    names = (run.key.entity, run.key.project, run.key.run_id)
    return ":".join(map(of, [(names, attributes), run.config, run.summary, run.metadata]))


_AT_ONCE = 1000  # versions that are Python objects at the same time


def document_tables(versions: Sequence[Version]) -> dict[str, pa.Table]:
    """The rows of `runs`, `config` and `summary` for these versions."""
    parts = [_tables_of(versions[i : i + _AT_ONCE]) for i in range(0, max(len(versions), 1), _AT_ONCE)]
    return {name: pa.concat_tables([part[name] for part in parts]) for name in parts[0]}


def _tables_of(versions: Iterable[Version]) -> dict[str, pa.Table]:
    rows = []
    nodes: dict[str, list[list[Any]]] = {name: [[] for _ in tables()[name]] for name in ("config", "summary")}
    for version in versions:
        row = _run_row(version)
        for name, raw in (("config", version.run.config), ("summary", version.run.summary)):
            row[name], exploded = explode(raw, unwrap=name == "config")
            if name in version.nodes_of:
                columns = nodes[name]
                columns[0].extend([version.identity.rid] * len(exploded))
                columns[1].extend([row[f"{name}_gen"]] * len(exploded))
                for column, values in zip(columns[2:], zip(*exploded, strict=True), strict=False):
                    column.extend(values)
        rows.append(row)
    made = {"runs": pa.Table.from_pylist(rows, schema=tables()["runs"])}
    for name, columns in nodes.items():
        made[name] = pa.table(columns, schema=tables()[name])
    return made


def _run_row(version: Version) -> dict[str, Any]:
    i, run, key = version.identity, version.run, version.identity.key
    none = StreamState()
    history, system, files, logs = (version.streams.get(s, none) for s in ("history", "system", "files", "logs"))
    read = history.fetched or Fetched("history", "none", complete=False)
    sampled = system.fetched or Fetched("system", "none")
    row = {name: getattr(run, name) for name in _ATTRIBUTES}
    return row | {
        "rid": i.rid,
        "gen": i.gen,
        "source": key.source,
        "entity": key.entity,
        "project": key.project,
        "run_id": key.run_id,
        "storage_id": key.storage_id,
        "origin": i.origin,
        "merged_into": i.merged_into,
        "tags": list(run.tags),
        "config_raw": run.config,
        "summary_raw": run.summary,
        "config_gen": i.config_gen,
        "summary_gen": i.summary_gen,
        "metric_gen": i.metric_gen,
        "history_gen": history.gen,
        "history_rows": history.rows,
        "history_total": run.history_line_count if read.total is None else read.total,
        "history_last_step": history.last_step,
        "history_complete": read.complete and not read.sampled,
        "history_lossless": read.lossless,
        "history_road": None if read.road == "none" else read.road,
        "history_note": read.note,
        "system_gen": system.gen,
        "system_rows": system.rows,
        "system_asked": sampled.asked,
        "system_got": sampled.got,
        "system_total": run.events_line_count if sampled.total is None else sampled.total,
        "system_sampled": sampled.sampled,
        "files_gen": files.gen,
        "files_count": files.rows if files.gen else None,
        "logs_gen": logs.gen,
        "logs_rows": logs.rows,
        "logs_total": run.log_line_count,
        "mirrored_at": version.mirrored_at,
        "deleted_at": datetime.fromisoformat(i.deleted_at) if i.deleted_at else None,
    }


def run_of(row: Mapping[str, Any]) -> Run:
    """The record a row of `runs` was made from."""
    return Run(
        key=RunKey(row["source"], row["storage_id"], row["entity"], row["project"], row["run_id"]),
        tags=tuple(row["tags"] or ()),
        config=row["config_raw"],
        summary=row["summary_raw"],
        history_line_count=row["history_total"],
        events_line_count=row["system_total"],
        log_line_count=row["logs_total"],
        **{name: row[name] for name in _ATTRIBUTES},
    )


def run_json(run: Run) -> str:
    """A run record as one line of JSON, for the spool."""
    found = {f.name: getattr(run, f.name) for f in fields(run)}
    found["key"] = run.key.__dict__
    return json.dumps(found, default=lambda at: at.isoformat())


def run_from_json(line: str) -> Run:
    found = json.loads(line)
    for name in ("created_at", "heartbeat_at", "updated_at"):
        found[name] = datetime.fromisoformat(found[name]) if found[name] else None
    return Run(**found | {"key": RunKey(**found["key"]), "tags": tuple(found["tags"])})
