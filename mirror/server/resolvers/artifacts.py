"""Logging of artifacts, in the order of PROTOCOL 3.5, and what the SDK looks up on the way."""

from __future__ import annotations

from typing import Any

from graphql import GraphQLResolveInfo

from mirror.errors import UsageError
from mirror.server import ids
from mirror.server.artifacts import Artifact, new_id, timestamp
from mirror.server.context import Context, ProjectNode, context
from mirror.server.resolvers.edits import by_path, checked_part
from mirror.server.wire import connection


def bytes_path(artifact_id: str, kind: str, name: str) -> str:
    return f"/artifact-files/{artifact_id}/{kind}/{name}"


def _sequence(found: Artifact, info: GraphQLResolveInfo) -> dict[str, Any]:
    return {
        "__typename": "ArtifactSequence",
        "id": ids.encode("ArtifactSequence", "v1", *found.sequence),
        "name": found.collection,
        "state": "READY",
        "project": ProjectNode(found.entity, found.project),
        "defaultArtifactType": _type(found),
        "tags": {"edges": []},
        "aliases": connection([]),
        "artifacts": connection([]),
        "digestAlgorithm": found.algorithm,
        "latestArtifact": lambda _info: (
            latest and node(latest, info) if (latest := context(info).artifacts.latest(found.sequence)) else None
        ),
    }


def _type(found: Artifact) -> dict[str, Any]:
    return {"id": ids.encode("ArtifactType", "v1", found.entity, found.project, found.type), "name": found.type}


def node(found: Artifact, info: GraphQLResolveInfo) -> dict[str, Any]:
    """An artifact as the source of the fields of type `Artifact`."""
    ctx = context(info)
    sizes = [p.size or 0 for p in found.files.values()]
    sequence = _sequence(found, info)
    aliases = [*found.aliases, *([f"v{found.version}"] if found.version is not None else [])]
    manifest = found.current_manifest
    return {
        "id": found.id,
        "digest": found.digest,
        "digestAlgorithm": found.algorithm,
        "description": found.description,
        "state": found.state,
        "size": sum(sizes),
        "fileCount": len(sizes),
        "versionIndex": found.version,
        "metadata": found.metadata,
        "createdAt": found.created_at,
        "updatedAt": found.created_at,
        "historyStep": found.history_step,
        # The SDK insists on a number; what is not above zero means that nothing expires.
        "ttlDurationSeconds": -2 if found.ttl is None else found.ttl,
        "ttlIsInherited": found.ttl is None,
        "tags": [{"id": ids.encode("Tag", t), "name": t} for t in found.tags],
        "aliases": [
            {
                "id": ids.encode("ArtifactAlias", found.id, alias),
                "alias": alias,
                "artifactCollectionName": found.collection,
                "artifactCollection": sequence,
            }
            for alias in aliases
        ],
        "artifactSequence": sequence,
        "artifactType": _type(found),
        "currentManifest": _manifest(found, manifest, ctx) if manifest else None,
        "files": connection([]),
        "usedBy": connection([]),
    }


def _manifest(found: Artifact, manifest_id: str, ctx: Context) -> dict[str, Any]:
    path = bytes_path(found.id, "manifest", manifest_id)
    return {
        "id": manifest_id,
        "digest": found.manifests[manifest_id].md5,
        "file": {
            "id": manifest_id,
            "name": "wandb_manifest.json",
            "sizeBytes": found.manifests[manifest_id].size or 0,
            "uploadUrl": ctx.link(path, sign="PUT"),
            "uploadHeaders": [],
            "directUrl": ctx.link(path, sign="GET"),
        },
    }


def _artifact(_: None, info: GraphQLResolveInfo, id: str | None = None) -> dict[str, Any] | None:
    found = context(info).artifacts.find(id or "")
    return node(found, info) if found else None


def _client_id(_: None, info: GraphQLResolveInfo, clientID: str) -> dict[str, Any] | None:
    found = context(info).artifacts.by_client_id(clientID)
    return {"serverID": found.id} if found else None


def _create(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    ctx.home.writable()
    entity, project = checked_part("entity", input["entityName"]), checked_part("project", input["projectName"])
    if input.get("runName"):
        by_path(ctx, input)
    names = input.get("artifactCollectionNames") or [input.get("artifactCollectionName")]
    if not names[0]:
        raise UsageError("an artifact needs the name of a collection (`artifactCollectionName`)")
    new = Artifact(
        id=new_id(),
        entity=entity,
        project=project,
        collection=names[0],
        type=input["artifactTypeName"],
        digest=input["digest"],
        created_at=timestamp(),
        run=input.get("runName"),
        algorithm=input.get("digestAlgorithm"),
        description=input.get("description"),
        metadata=input.get("metadata"),
        history_step=input.get("historyStep"),
        ttl=input.get("ttlDurationSeconds"),
        client_id=input.get("clientID"),
        sequence_client_id=input.get("sequenceClientID"),
        aliases=[a["alias"] for a in input.get("aliases") or []],
        tags=[t["tagName"] for t in input.get("tags") or []],
    )
    found = ctx.artifacts.create(new, deduplicate=bool(input.get("enableDigestDeduplication")))
    return {"artifact": node(found, info), "clientMutationId": input.get("clientMutationId")}


def _create_manifest(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    found, manifest_id = ctx.artifacts.add_manifest(input["artifactID"], input["digest"])
    return {"artifactManifest": _manifest(found, manifest_id, ctx)}


def _update_manifest(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    manifest_id = input["artifactManifestID"]
    found = ctx.artifacts.set_manifest_digest(manifest_id, input.get("digest"))
    return {"artifactManifest": _manifest(found, manifest_id, ctx)}


def _create_files(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    announced = [(f["artifactID"], f["name"], f["md5"]) for f in input["artifactFiles"]]
    made: list[dict[str, Any]] = [
        {
            "id": ids.encode("ArtifactFile", found.id, name),
            "name": name,
            "displayName": name,
            "storagePath": name,
            "uploadUrl": None if held else ctx.link(bytes_path(found.id, "file", name), sign="PUT"),
            "uploadHeaders": [],
            "artifact": node(found, info),
        }
        for found, name, held in ctx.artifacts.add_files(announced)
    ]
    return {"files": {"edges": [{"node": n} for n in made]}}


def _commit(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    return {"artifact": node(context(info).artifacts.commit(input["artifactID"]), info)}


def _update(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    names = {"description": "description", "metadata": "metadata", "ttlDurationSeconds": "ttl"}
    changes: dict[str, Any] = {ours: input[n] for n, ours in names.items() if input.get(n) is not None}
    if input.get("aliases") is not None:
        changes["aliases"] = [a["alias"] for a in input["aliases"]]
    return {"artifact": node(context(info).artifacts.update(input["artifactID"], changes), info)}


def _use(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    by_path(ctx, input)
    use = {k: input.get(k) for k in ("entityName", "projectName", "runName", "usedAs")}
    return {"artifact": node(ctx.artifacts.use(input["artifactID"], use), info)}


def _none(*_: Any, **__: Any) -> None:
    return None


def _empty(*_: Any, **__: Any) -> dict[str, Any]:
    return connection([])


RESOLVERS: dict[str, dict[str, Any]] = {
    "Query": {"artifact": _artifact, "clientIDMapping": _client_id, "artifactCollection": _none},
    "Project": {
        "artifact": _none,
        "artifactType": _none,
        "artifactTypes": _empty,
        "artifactCollection": _none,
        "artifactCollections": _empty,
        "artifactCollectionMembership": _none,
    },
    "Mutation": {
        "createArtifact": _create,
        "createArtifactManifest": _create_manifest,
        "updateArtifactManifest": _update_manifest,
        "createArtifactFiles": _create_files,
        "commitArtifact": _commit,
        "updateArtifact": _update,
        "useArtifact": _use,
    },
}
