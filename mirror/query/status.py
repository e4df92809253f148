"""What a mirror holds, how fresh it is and how complete: the facts behind `mirror status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mirror.paths import WandbPath
from mirror.query.runs import check_held, condition
from mirror.query.sql import execute

if TYPE_CHECKING:
    from mirror.store import Reader

# Of a run whose source said nothing about its history, and that never got one, nothing is missing.
_MISSING = (
    "not {0}.history_complete and {0}.deleted_at is null "
    "and ({0}.history_road is not null or {0}.history_total is not null)"
)
_PROJECTS = f"""
with everything as (
  select source, entity, project from projects
  union select source, entity, project from runs
  union select source, entity, project from sync_log
)
select
  p.source, p.entity, p.project,
  count(r.rid) as runs,
  count(r.rid) filter (where r.state = 'running') as running,
  count(r.rid) filter (where r.deleted_at is not null) as deleted,
  count(r.rid) filter (where {_MISSING.format("r")}) as incomplete,
  count(r.rid) filter (where not r.history_lossless) as lossy,
  count(r.rid) filter (where r.system_sampled) as system_sampled,
  count(r.rid) filter (where r.logs_rows < r.logs_total and r.deleted_at is null
    and r.state not in ('running', 'pending', 'preempting')) as short_logs,
  coalesce(sum(r.history_rows), 0)::bigint as history_rows,
  coalesce(sum(r.system_rows), 0)::bigint as system_rows,
  max(r.mirrored_at) as last_change,
  any_value(d.deleted_at) as deleted_at
from everything p
left join projects d on d.source = p.source and d.entity = p.entity and d.project = p.project
left join runs r on r.source = p.source and r.entity = p.entity and r.project = p.project
group by all order by all
"""
_BYTES = """
select source, entity, project, coalesce(sum(size), 0)::bigint as bytes,
       coalesce(sum(size) filter (where sha256 is not null), 0)::bigint as bytes_held
from (
  select f.source, f.entity, f.project, f.size, f.sha256
  from files f join raw.live l using (rid) where l.deleted_at is null
  union all
  select a.source, a.entity, a.project, e.size, e.sha256
  from raw.artifact_entries e join raw.artifacts_live a on a.rid = e.rid and a.entries_gen = e.gen
  where a.deleted_at is null and (e.ref is null or e.sha256 is not null)
)
group by all
"""
_LAST_SYNCS = """
select source, entity, project, finished_at as at, outcome, message from (
  select *, row_number() over (partition by source, entity, project order by finished_at desc) as n from sync_log
) where n = 1
"""
_INCOMPLETE = f"""
select runs.source, runs.entity || '/' || runs.project || '/' || runs.run_id as path, runs.state,
       runs.history_rows, runs.history_total, runs.history_note
from runs where {_MISSING.format("runs")} and {{where}} order by path, source
"""
_QUARANTINE = """
select runs.source, runs.entity || '/' || runs.project || '/' || runs.run_id as path, runs.stage, runs.error,
       runs.attempts, runs.next_try
from quarantine as runs where {where} order by path, stage
"""


@dataclass(frozen=True)
class Status:
    """All times are in UTC, sizes in bytes. `projects`, `incomplete` and `quarantined` are rows as dicts."""

    root: str
    snapshot: int
    published_at: str
    projects: Sequence[dict[str, Any]]
    incomplete: Sequence[dict[str, Any]]
    quarantined: Sequence[dict[str, Any]]
    on_disk: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def status(reader: Reader, path: WandbPath | None = None) -> Status:
    """The state of the mirror, or of the part of it that `path` names. NotFoundError if it holds nothing of that."""
    from mirror.query.filters.sql import written

    if path is not None:
        check_held(reader, path, None)
    where = "true" if path is None else written(condition(path))
    return Status(
        root=str(reader.layout.root),
        snapshot=reader.snapshot.id,
        published_at=reader.snapshot.published_at,
        projects=[p for p in _projects(reader) if path is None or _within(p, path)],
        incomplete=_rows(reader, _INCOMPLETE.format(where=where)),
        quarantined=_rows(reader, _QUARANTINE.format(where=where)),
        on_disk=_on_disk(reader),
    )


def _projects(reader: Reader) -> list[dict[str, Any]]:
    from mirror.store.freshness import checked_projects

    last = {(s["source"], s["entity"], s["project"]): s for s in _rows(reader, _LAST_SYNCS)}
    for checked in checked_projects(reader.layout):
        name = (checked.source, checked.entity, checked.project)
        if name not in last or last[name]["at"] <= checked.at:
            last[name] = {"at": checked.at, "outcome": checked.outcome, "message": checked.message}
    found = _rows(reader, _PROJECTS)
    sizes = {(s["source"], s["entity"], s["project"]): s for s in _rows(reader, _BYTES)}
    for project in found:
        of_files = sizes.get((project["source"], project["entity"], project["project"]), {})
        project |= {name: of_files.get(name, 0) for name in ("bytes", "bytes_held")}
        sync = last.get((project["source"], project["entity"], project["project"]), {})
        project["last_sync"] = sync.get("at")
        project["outcome"] = sync.get("outcome")
        project["message"] = sync.get("message")
    return found


def _within(project: dict[str, Any], path: WandbPath) -> bool:
    return project["entity"] == path.entity and path.project in (None, project["project"])


def _on_disk(reader: Reader) -> dict[str, int]:
    """Bytes by what they are: live segments by table, replaced ones, and everything else in the root."""
    layout = reader.layout
    found = {
        table: sum(file["bytes"] for file in reader.snapshot.files(table))
        for table in reader.snapshot.content["tables"]
    }
    folders = {"blobs": layout.blobs, "live": layout.live}
    found |= {name: sum(_size(p) for p in folder.rglob("*")) for name, folder in folders.items()}
    everything = sum(_size(p) for p in layout.root.rglob("*"))
    return {name: size for name, size in found.items() if size} | {
        "other": everything - sum(found.values()),
        "total": everything,
    }


def _size(path: Any) -> int:
    try:
        return int(path.stat().st_size) if path.is_file() else 0
    except OSError:  # gone meanwhile
        return 0


def _rows(reader: Reader, query: str) -> list[dict[str, Any]]:
    found = execute(reader, query)
    return [dict(zip(found.columns, row, strict=True)) for row in found]


def since(at: datetime, now: datetime) -> str:
    """How long ago, in words: `3 h ago`."""
    seconds = max((now - at).total_seconds(), 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"
