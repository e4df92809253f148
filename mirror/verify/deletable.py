"""Which originals could be deleted: runs that the mirror holds whole and that were just found equal, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirror.importers.versions import EXPORTS
from mirror.query.sql import dicts
from mirror.store.blobs import blob_path
from mirror.verify.findings import Findings
from mirror.verify.other import HeldProject, Other

if TYPE_CHECKING:
    from mirror.store import Reader

_GOING_ON = ("running", "pending", "preempting")


@dataclass(frozen=True)
class Verdict:
    """`reasons` say why the original had better stay; none if nothing would be lost with it. `bytes_held` tells
    whether the bytes of all its files and artifacts are here."""

    run: str
    source: str
    bytes_held: bool
    reasons: tuple[str, ...]

    @property
    def deletable(self) -> bool:
        return not self.reasons


def verdicts(
    reader: Reader, projects: Sequence[HeldProject], other: Other, findings: Findings, *, whole_store: bool
) -> list[Verdict]:
    """What is to be said of each run of these projects after they were compared with `other`. `whole_store` is false if
    the mirror itself was found damaged: then nothing may be deleted."""
    found: list[Verdict] = []
    for held in projects:
        general = [] if whole_store else ["the mirror itself is damaged: `mirror verify`, `mirror repair`"]
        if not other.is_origin(held):
            general.append(f"a copy was compared, not the original at {held.source}")
        start = f"{held.here.path}/reports/"
        if reports := sum(n for where, n in findings.different.items() if where.startswith(start)):
            general.append(f"{reports} differences were found in reports of its project")
        for row in _rows(reader, [row["rid"] for row in held.runs]):
            found.append(_verdict(reader, held, row, findings, general))
    return found


def _verdict(
    reader: Reader,
    held: HeldProject,
    row: Mapping[str, Any],
    findings: Findings,
    general: Sequence[str],
) -> Verdict:
    path = f"{held.here.path}/{row['run_id']}"
    reasons = [*general, *_reasons(row)]
    mine = {path, held.here.path}
    if row["sweep"]:
        mine.add(f"{held.here.path}/sweeps/{row['sweep']}")
    for place, name in row["artifacts"] or ():
        mine |= {place, f"{place}/{name}", f"{place}/{name.rpartition(':')[0]}"}
    if count := sum(findings.different.get(where, 0) for where in mine):
        reasons.append(f"{count} differences were found")
    reasons += [reason for where in sorted(mine) for reason in findings.unproven.get(where, ())]
    missing = _missing(reader, row)
    if missing:
        reasons.append(f"the bytes of {missing} files are not held: `mirror sync {held.here.path} --all-bytes`")
    return Verdict(path, row["source"], not missing, tuple(reasons))


def _reasons(row: Mapping[str, Any]) -> list[str]:
    reasons = []
    if row["state"] in _GOING_ON:
        reasons.append(f"it is {row['state']}")
    if not row["history_complete"]:
        reasons.append(f"its history is not complete: {row['history_rows']} of {row['history_total']} rows")
    if not row["history_lossless"]:
        reasons.append("its history came by an export, which cannot tell null from absent")
    if row["system_sampled"] or (row["system_total"] or 0) > row["system_rows"]:
        reasons.append(f"its system metrics are a sample: {row['system_rows']} of {row['system_total']}")
    if (row["logs_total"] or 0) > row["logs_rows"]:
        reasons.append(f"its console is not complete: {row['logs_rows']} of {row['logs_total']} lines")
    if row["files_count"] is None:
        reasons.append("its files were never listed")
    if row["stages"]:
        reasons.append(f"it is in quarantine: {', '.join(row['stages'])}")
    return reasons


def _rows(reader: Reader, rids: Sequence[int]) -> list[dict[str, Any]]:
    cursor = reader.connect().execute(
        """
        select r.rid, r.source, r.entity, r.project, r.run_id, r.state, r.history_complete, r.history_lossless,
               r.history_rows, r.history_total, r.system_sampled, r.system_rows, r.system_total, r.files_count,
               r.logs_rows, r.logs_total, r.sweep,
               (select list(q.stage order by q.stage) from quarantine q where q.rid = r.rid) as stages,
               (select list([a.entity || '/' || a.project, a.collection || ':v' || a.version]) from artifacts a
                where a.source = r.source and a.run_entity = r.entity and a.run_project = r.project
                  and a.run_id = r.run_id and a.deleted_at is null and a.type <> ?) as artifacts
        from runs r where r.rid in (select unnest(?::bigint[])) order by 3, 4, 5
        """,
        [EXPORTS, list(rids)],
    )
    return dicts(cursor)


def _missing(reader: Reader, row: Mapping[str, Any]) -> int:
    """Files of the run, and of the artifacts it made, whose bytes are not here; references have none."""
    query = f"""
        select f.sha256 from {reader.relation("files", row["rid"])} f
        semi join raw.live l on l.rid = f.rid and l.files_gen = f.gen
        union all
        select e.sha256 from artifact_entries e semi join artifacts a on a.storage_id = e.storage_id
          and a.source = e.source and a.run_entity = ? and a.run_project = ? and a.run_id = ? and a.deleted_at is null
          and a.type <> ?
        where e.source = ? and e.ref is null
    """
    params = [row["entity"], row["project"], row["run_id"], EXPORTS, row["source"]]
    blobs = reader.layout.blobs
    missing = 0
    cursor = reader.connect().execute(query, params)
    while some := cursor.fetchmany(1000):
        missing += sum(sha256 is None or not blob_path(blobs, sha256).is_file() for (sha256,) in some)
    return missing
