"""Which runs logged and used which artifacts, compared: as runs tell it, and what comparing versions needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mirror.errors import SourceError
from mirror.importers.places import Namespace, RunName
from mirror.importers.versions import EXPORTS
from mirror.query.sql import asking
from mirror.verify.findings import Findings
from mirror.verify.other import HeldProject, Other
from mirror.wandb.artifacts import Listed, fetch_uses
from mirror.wandb.client import Client
from mirror.wandb.lineage import LinkedArtifact, fetch_links

if TYPE_CHECKING:
    from mirror.store import Reader

_LINKS = """
select 'logged' as kind, run_id, storage_id, entity, project, collection, version from artifacts
where source = $source and run_entity = $entity and run_project = $project and run_id in (select unnest($runs))
  and deleted_at is null and coalesce(state, 'COMMITTED') = 'COMMITTED' and type is distinct from $exports
union all
select 'used', u.run_id, u.storage_id, u.entity, u.project, u.collection, u.version from artifact_uses u
semi join artifacts a on a.source = u.source and a.storage_id = u.storage_id and a.deleted_at is null
where u.source = $source and u.run_entity = $entity and u.run_project = $project and u.run_id in (select unnest($runs))
  and u.type is distinct from $exports
"""
_AT_ONCE = 200


def _links(reader: Reader, held: HeldProject, run_ids: list[str], columns: str = "*") -> list[tuple[Any, ...]]:
    """`kind` (logged or used), `run_id`, and of the artifact storage_id, entity, project, collection and version."""
    values = {
        "source": held.source, "entity": held.here.entity, "project": held.here.project, "runs": run_ids,
        "exports": EXPORTS,
    }  # fmt: skip
    with asking(reader) as connection:
        return list(connection.execute(f"select distinct {columns} from ({_LINKS})", values).fetchall())


def places_of(reader: Reader, held: HeldProject) -> list[Namespace]:
    """The projects whose artifacts are compared with a project's runs: its own, where they logged others and, if not
    all of its runs are meant, where those are that they used."""
    links = _links(reader, held, [str(row["run_id"]) for row in held.runs], "kind, entity, project")
    found = {Namespace(*place) for kind, *place in links if kind == "logged" or not held.whole}
    return sorted(found | ({held.here} if held.whole else set()), key=lambda here: (here != held.here, here.path))


def compare_links(reader: Reader, held: HeldProject, other: Other, findings: Findings) -> None:
    """See that the mirror knows of everything that runs logged and used at the server they came from. Runs that the
    server does not show are left to others."""
    run_ids = [str(row["run_id"]) for row in held.runs]
    for start in range(0, len(run_ids), _AT_ONCE):
        part = run_ids[start : start + _AT_ONCE]
        mine: dict[tuple[str, str], dict[str, str]] = {}
        for kind, run_id, storage_id, entity, project, collection, version in _links(reader, held, part):
            mine.setdefault((kind, run_id), {})[storage_id] = f"{entity}/{project}/{collection}:v{version}"
        try:
            told = fetch_links(other.source.client, held.here.entity, held.here.project, part)
        except SourceError as e:
            findings.doubt(held.here.path, f"what runs logged and used could not be read: {e}")
            continue
        for run_id, links in told.items():
            for kind, there in links.items():
                where = f"{held.here.path}/{run_id}"
                if there is None:
                    findings.doubt(where, f"the server does not say what it {kind}")
                else:
                    _compare(reader, held.source, where, kind, mine.get((kind, run_id), {}), there, findings)


def _compare(
    reader: Reader,
    source: str,
    where: str,
    kind: str,
    mine: dict[str, str],
    links: Sequence[LinkedArtifact],
    findings: Findings,
) -> None:
    there = {link.storage_id: link for link in links if link.type != EXPORTS}
    findings.count(**{f"artifacts_that_runs_{kind}": len(mine)})
    for storage_id in sorted(there.keys() - mine.keys()):
        path, by = there[storage_id].path, there[storage_id].logged_by
        if kind == "logged" and by is not None and "/".join(by) != where and _is_held(reader, source, storage_id):
            findings.count(artifacts_that_another_run_logged_first=1)
            continue
        sync = f"`mirror sync {path.rpartition('/')[0]}`"
        findings.doubt(where, f"it {kind} {path}, which the mirror does not know: {sync}")
    for storage_id in sorted(mine.keys() - there.keys()):
        findings.differ(where, "lineage", key=kind, here=mine[storage_id])


def _is_held(reader: Reader, source: str, storage_id: str) -> bool:
    with asking(reader) as connection:
        query = "select 1 from artifacts where source = ? and storage_id = ? and deleted_at is null"
        return connection.execute(query, [source, storage_id]).fetchone() is not None


def runs_that_used(client: Client, listed: Listed) -> set[RunName] | None:
    """All runs that used a version; None if the server does not tell. Raises a SourceError."""
    uses = fetch_uses(client, listed.artifact) if listed.uses_cut_off else listed.artifact.uses
    return None if uses is None else {(use.entity, use.project, use.run_id) for use in uses}


def is_of_another_source(reader: Reader, source: str, run: RunName) -> bool:
    """Whether the mirror holds a run of this name from elsewhere alone: what it used, no other server knows."""
    with asking(reader) as connection:
        found = connection.execute(
            "select distinct source from raw.live where entity = ? and project = ? and run_id = ?", list(run)
        ).fetchall()
    return bool(found) and (source,) not in found
