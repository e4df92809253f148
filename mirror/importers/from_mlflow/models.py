"""Versions of MLflow's registered models as artifacts of type `model`.

A registered model becomes a collection, a version of it a version there. Its entries are the files of the run's
artifacts that its source names, as far as the mirror holds their bytes, and a text that says which version it is: so
that two versions are two even if their files are the same, or are elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.query.sql import asking, dicts
from mirror.records import Artifact, ArtifactEntry, ItemKey, manifest_digest
from mirror.store.blobs import blob_path

if TYPE_CHECKING:
    from mirror.importers.places import Namespace
    from mirror.store import Reader

ABOUT = "mlflow-model-version.json"
"""The path of the entry that says which version it is: name, version, source, run, time."""
_LOCAL = ("runs:/{run_id}/", "{artifact_uri}/")
"""How a source names an artifact of its run."""


@dataclass(frozen=True)
class ModelVersion:
    """A version as an artifact, and the number by which the mirror holds it. `lacking` says which bytes are not,
    `texts` are those that no file of the mirror has, by SHA-256."""

    rid: int
    artifact: Artifact
    lacking: str | None
    texts: Mapping[str, bytes]


def model_versions(reader: Reader, source: str, here: Namespace) -> list[ModelVersion]:
    """The versions that runs of an experiment made, each sequence in its order."""
    with asking(reader) as connection:
        cursor = connection.execute(
            "select a.*, l.rid as run_rid, r.config_raw from raw.artifacts_live a "
            "left join raw.live l on l.source = a.source and l.entity = a.entity and l.project = a.project "
            "and l.run_id = a.run_id left join runs_raw r on r.rid = l.rid "
            "where a.source = ? and a.entity = ? and a.project = ? and a.deleted_at is null "
            "order by a.collection, a.version",
            [source, here.entity, here.project],
        )
        rows = dicts(cursor)
    newest = {row["collection"]: row["version"] for row in rows}
    staged = {(row["collection"], stage): row["version"] for row in rows if (stage := _stage(row))}
    return [_version(reader, row, newest, staged) for row in rows]


def collection_name(name: str) -> str:
    """A registered model's name as W&B takes it for an artifact; no two get the same.

    >>> [collection_name(name) for name in ("model-1.2_x", "My model")]
    ['model-1.2_x', 'My-model-9a0a04']
    """
    allowed = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)
    if allowed == name:
        return name
    return f"{allowed.strip('-') or 'model'}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"


def tags_of(texts: Sequence[str] | None) -> list[str]:
    """`key=value` as W&B takes it for a tag: words between single spaces.

    >>> tags_of(["stage=pre-prod (eu)", "="])
    ['stage pre-prod eu']
    """
    return [tag for text in texts or () if (tag := " ".join(re.findall(r"[-\w]+", text)))]


def _version(
    reader: Reader, row: Mapping[str, Any], newest: Mapping[str, int], staged: Mapping[tuple[str, str], int]
) -> ModelVersion:
    about = json.loads(row["metadata"] or "{}")
    name, number = row["collection"], row["version"]
    entries, lacking = _files(reader, row, str(about.get("source") or ""))
    which = {"name": name, "version": number, "source": about.get("source"), "run_id": row["run_id"]}
    text = json.dumps(which | {"created_at": _time(row["created_at"])}, indent=1).encode()
    sha256 = hashlib.sha256(text).hexdigest()
    path = ABOUT if ABOUT not in {entry.path for entry in entries} else f"{ABOUT} (mlflow)"
    entries.append(ArtifactEntry(path, _md5([text]), len(text), sha256=sha256))
    aliases = set(row["aliases"] or ())
    aliases |= {"latest"} if newest[name] == number else set()
    aliases |= {stage} if (stage := _stage(row)) and staged[name, stage] == number else set()
    about |= which | {"status": row["state"], "user_id": row["username"], "created_at": _time(row["created_at"])}
    about["tags"] = list(row["tags"] or ())
    artifact = Artifact(
        ItemKey(row["source"], row["storage_id"], row["entity"], row["project"]),
        type="model",
        collection=collection_name(name),
        version=number,
        state="COMMITTED",
        digest=manifest_digest((entry.path, entry.digest) for entry in entries),
        aliases=tuple(sorted(aliases)),
        tags=tuple(tags_of(row["tags"])),
        description=row["description"],
        metadata=json.dumps({"mlflow": {key: value for key, value in about.items() if value not in (None, [])}}),
        size=sum(entry.size or 0 for entry in entries),
        file_count=len(entries),
        run_entity=row["run_entity"],
        run_project=row["run_project"],
        run_id=row["run_id"],
        entries=tuple(sorted(entries, key=lambda entry: entry.path)),
    )
    return ModelVersion(row["rid"], artifact, lacking, {sha256: text})


def _stage(row: Mapping[str, Any]) -> str | None:
    """The stage of a version, as an alias; None if it has none."""
    stage = json.loads(row["metadata"] or "{}").get("current_stage")
    return str(stage).lower() if stage and stage != "None" else None


def _files(reader: Reader, row: Mapping[str, Any], source: str) -> tuple[list[ArtifactEntry], str | None]:
    """The files behind a source, and what is to be said of those whose bytes the mirror does not hold."""
    uri = json.loads(row["config_raw"] or "{}").get("_mlflow", {}).get("value", {}).get("artifact_uri")
    starts = [start.format(run_id=row["run_id"], artifact_uri=uri) for start in _LOCAL]
    folder = next((source.removeprefix(start).strip("/") for start in starts if source.startswith(start)), None)
    if folder is None:
        return [], f"`{source}` is no artifact of its run, which are all that is mirrored"
    with asking(reader) as connection:
        listed = connection.execute(
            "select name, size, sha256 from files where rid = ? and (name = ? or starts_with(name, ?)) order by name",
            [row["run_rid"], folder, f"{folder}/" if folder else ""],
        ).fetchall()
    return _held(reader, folder, listed)


def _held(
    reader: Reader, folder: str, listed: Sequence[tuple[str, int, str | None]]
) -> tuple[list[ArtifactEntry], str | None]:
    entries = []
    for name, size, sha256 in listed:
        path = blob_path(reader.layout.blobs, sha256) if sha256 else None
        if path is not None and path.is_file():
            inside = name[len(folder) :].strip("/") or name.rpartition("/")[2]
            entries.append(ArtifactEntry(inside, _md5(_chunks(path)), size, sha256=sha256))
    if not listed:
        return [], f"the run has no artifact `{folder}`"
    if len(entries) < len(listed):
        absent = len(listed) - len(entries)
        return entries, f"the mirror does not hold the bytes of {absent} of {len(listed)} files: sync with --all-bytes"
    return entries, None


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def _md5(chunks: Iterable[bytes]) -> str:
    """As W&B has it, in base64."""
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()


def _time(value: Any) -> str | None:
    return value.isoformat().replace("+00:00", "Z") if value is not None else None
