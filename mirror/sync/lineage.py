"""Uses of mirrored artifacts that no source knows of: runs that were logged to a server of this mirror used them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mirror.records import Artifact, ArtifactUse, Project
from mirror.store import LOCAL_SOURCE, Reader, Writer

_QUERY = """
select u.storage_id, u.run_entity, u.run_project, u.run_id, u.used_as
from artifact_uses u
semi join runs r on r.entity = u.run_entity and r.project = u.run_project and r.run_id = u.run_id and r.source = $local
where u.source = $source and u.entity = $entity and u.project = $project
order by all
"""

LocalUses = Mapping[str, Sequence[ArtifactUse]]
"""By the storage id of the artifact."""


def local_uses(writer: Writer, project: Project) -> LocalUses:
    """What the mirror holds of that for the artifacts of a project. To be asked while its lease is held."""
    if not writer.layout.serve_lock.exists():  # nothing was ever logged here
        return {}
    values = {
        "local": f"{LOCAL_SOURCE}-{writer.store_id[:12]}",
        "source": project.source,
        "entity": project.entity,
        "project": project.name,
    }
    writer.commit()
    found: dict[str, list[ArtifactUse]] = {}
    with Reader(writer.layout.root) as reader:
        for storage_id, *use in reader.connect().execute(_QUERY, values).fetchall():
            found.setdefault(storage_id, []).append(ArtifactUse(*use))
    return found


def with_local_uses(artifact: Artifact, local: LocalUses) -> Artifact:
    """The artifact with the uses its source tells of, and those."""
    more = local.get(artifact.key.storage_id, ())
    if artifact.uses is None or not more:
        return artifact
    told = {(use.entity, use.project, use.run_id) for use in artifact.uses}
    kept = [use for use in more if (use.entity, use.project, use.run_id) not in told]
    return replace(artifact, uses=[*artifact.uses, *kept])
