"""Logging, using and changing artifacts."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from graphql import GraphQLResolveInfo

from mirror.errors import NotFoundError, UsageError
from mirror.records import Artifact, ArtifactCollection, ArtifactUse, ItemKey, Project
from mirror.server import ids
from mirror.server.access.asker import check_entity
from mirror.server.artifacts.artifacts import PENDING, now
from mirror.server.artifacts.drafts import Draft, id_of, new_token, token_for
from mirror.server.artifacts.stored import Held, HeldCollection
from mirror.server.context import Context, context
from mirror.server.resolvers.artifacts import collection_node, find, find_collection, node
from mirror.server.resolvers.edits import by_path, checked_part
from mirror.server.rows import parse_row

_VERSION = re.compile(r"v\d+")
_DISABLED, _INHERIT = -2, -1
_MAX_NAME = 128


# -- what may be given ------------------------------------------------------------------------------------


def _checked_alias(alias: str) -> str:
    if not alias.strip() or len(alias) > _MAX_NAME or "/" in alias or ":" in alias or _VERSION.fullmatch(alias):
        raise UsageError(
            f"`{alias[:150]}` cannot be an alias: it needs 1 to {_MAX_NAME} characters, none of them / or :, and must "
            "not look like a version (`v3`)"
        )
    return alias


def _checked_tags(given: list[dict[str, Any]] | None) -> list[str]:
    tags = [tag["tagName"] for tag in given or []]
    for tag in tags:
        if not tag.strip() or len(tag) > _MAX_NAME:
            raise UsageError(f"`{tag[:150]}` cannot be a tag: it needs 1 to {_MAX_NAME} characters")
    return tags


def _checked_metadata(text: str) -> str:
    try:
        parse_row(text)
    except (ValueError, RecursionError):
        raise UsageError(f"the metadata of the artifact is no JSON object: `{text[:80]}`") from None
    return text


def _ttl(seconds: int | None) -> int | None:
    """Seconds as they are kept: none while the artifact inherits them, 0 if it never expires."""
    if seconds is None or seconds == _INHERIT:
        return None
    return 0 if seconds == _DISABLED else seconds


def _hex_md5(text: str) -> str:
    """The hex of a base64 md5, which can stand in a path."""
    try:
        found = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        found = b""
    if len(found) != 16:
        raise UsageError(f"`{text[:100]}` is no base64 md5 of a file: W&B's SDK sends 24 characters")
    return found.hex()


def _found(ctx: Context, artifact_id: str) -> Held | Draft:
    found = find(ctx, artifact_id)
    if found is None:
        raise NotFoundError(f"there is no artifact with the id `{artifact_id[:100]}` here")
    return found


def _draft(ctx: Context, artifact_id: str) -> Draft:
    found = _found(ctx, artifact_id)
    if isinstance(found, Held):
        raise UsageError(
            f"the artifact `{found.artifact.collection}:v{found.artifact.version}` is committed: its files "
            "cannot change"
        )
    return found


# -- logging ----------------------------------------------------------------------------------------------


def _create(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    ctx.home.writable()
    entity, project = checked_part("entity", input["entityName"]), checked_part("project", input["projectName"])
    check_entity(entity)
    run = input.get("runName")
    if run:
        ctx.home.own(by_path(ctx, input))
    name = input.get("artifactCollectionName") or next(iter(input.get("artifactCollectionNames") or []), "")
    checked_part("collection of artifacts", name)
    if not input["artifactTypeName"].strip() or len(input["artifactTypeName"]) > _MAX_NAME:
        raise UsageError(f"`{input['artifactTypeName'][:150]}` cannot be the type of an artifact")
    if input.get("digestAlgorithm") not in (None, "MANIFEST_MD5"):
        raise UsageError(
            f"the digest algorithm `{input['digestAlgorithm']}` is not understood here: log the artifact without "
            "`digest_algorithm`"
        )
    client, distributed = input.get("clientID"), input.get("distributedID")
    client_token = token_for("client", client) if client else None
    token = token_for("distributed", entity, project, name, distributed) if distributed else client_token
    artifact = Artifact(
        key=ItemKey(ctx.home.source, id_of(token or new_token()), entity, project),
        type=input["artifactTypeName"],
        collection=name,
        state=PENDING,
        digest=input["digest"],
        aliases=tuple(dict.fromkeys(_checked_alias(a["alias"]) for a in input.get("aliases") or [])),
        tags=tuple(dict.fromkeys(_checked_tags(input.get("tags")))),
        description=input.get("description"),
        metadata=_checked_metadata(input["metadata"]) if input.get("metadata") else None,
        history_step=input.get("historyStep"),
        ttl_seconds=_ttl(input.get("ttlDurationSeconds")),
        run_entity=entity if run else None,
        run_project=project if run else None,
        run_id=run or None,
        username=ctx.username,
        created_at=now(),
    )
    if not run and not ctx.look.has_project(entity, project):
        made = Project(ctx.home.source, entity, project, ids.encode("Project", "v1", project, entity), created_at=now())
        ctx.home.writable()[0].do(lambda writer: writer.put_project(made))
    draft = Draft(artifact, bool(input.get("enableDigestDeduplication")), bool(distributed))
    found = ctx.artifacts.create(draft, client_token)
    return {"artifact": node(found, info), "clientMutationId": input.get("clientMutationId")}


def _manifest(draft: Draft, name: str, info: GraphQLResolveInfo) -> dict[str, Any]:
    manifest_id = ids.encode("ArtifactManifest", draft.token, name)
    return {
        "artifactManifest": {
            "id": manifest_id,
            "digest": None,
            "file": {
                "id": manifest_id,
                "name": "wandb_manifest.json",
                "sizeBytes": 0,
                "uploadUrl": context(info).link(f"/artifact-files/{draft.token}/manifest/{name}", sign="PUT"),
                "uploadHeaders": [],
            },
        }
    }


def _create_manifest(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    draft = _draft(ctx, input["artifactID"])
    kind, base = input.get("type") or "FULL", input.get("baseArtifactID")
    if input["digest"]:
        _hex_md5(input["digest"])
    name = ctx.artifacts.drafts.announce_manifest(draft.token, kind, base, input["digest"] or None)
    return _manifest(draft, name, info)


def _update_manifest(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    parts = ids.decode(input["artifactManifestID"], "ArtifactManifest", 2)
    if parts is None:
        raise NotFoundError(f"there is no manifest with the id `{input['artifactManifestID'][:100]}` here")
    draft = _draft(ctx, id_of(parts[0]))
    if input.get("digest"):
        _hex_md5(input["digest"])
        ctx.artifacts.drafts.set_manifest_md5(draft.token, parts[1], input["digest"])
    return _manifest(draft, parts[1], info)


def _create_files(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    """Where to send files. Bytes that an artifact of the same entity holds need not be sent again."""
    ctx = context(info)
    drafts: dict[str, Draft] = {}
    for asked in input["artifactFiles"]:
        if asked["artifactID"] not in drafts:
            drafts[asked["artifactID"]] = _draft(ctx, asked["artifactID"])
    held: set[tuple[str, str]] = set()
    for artifact_id, draft in drafts.items():
        digests = [f["md5"] for f in input["artifactFiles"] if f["artifactID"] == artifact_id]
        found = ctx.artifacts.stored.bytes_of(draft.artifact.key.entity, list(dict.fromkeys(digests)))
        held |= {(artifact_id, md5) for md5 in found}
    made_of = {artifact_id: node(draft, info) for artifact_id, draft in drafts.items()}
    nodes = []
    for asked in input["artifactFiles"]:
        draft, md5 = drafts[asked["artifactID"]], _hex_md5(asked["md5"])
        here = (asked["artifactID"], asked["md5"]) in held
        made: dict[str, Any] = {
            "id": ids.encode("ArtifactFile", draft.token, asked["name"]),
            "name": asked["name"],
            "displayName": asked["name"],
            "storagePath": md5,
            "uploadUrl": None if here else ctx.link(f"/artifact-files/{draft.token}/file/{md5}", sign="PUT"),
            "uploadHeaders": [],
            "artifact": made_of[asked["artifactID"]],
        }
        if asked.get("uploadPartsInput") and not here:
            made["uploadMultipartUrls"] = _part_urls(ctx, draft, md5, asked["uploadPartsInput"])
        nodes.append({"node": made})
    return {"files": {"edges": nodes}}


def _part_urls(ctx: Context, draft: Draft, md5: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    urls = []
    for part in parts:
        number, hashed = part["partNumber"], part["hexMD5"].lower()
        if not (1 <= number <= 10_000 and re.fullmatch(r"[0-9a-f]{32}", hashed)):
            raise UsageError(f"part {number} with md5 `{hashed[:100]}` is no part of a file: parts are 1 to 10000")
        path = f"/artifact-files/{draft.token}/part/{md5}/{number}/{hashed}"
        urls.append({"partNumber": number, "uploadUrl": ctx.link(path, sign="PUT")})
    return {"uploadID": md5, "uploadUrlParts": urls}


def _complete_multipart(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    draft = _draft(ctx, input["artifactID"])
    if not re.fullmatch(r"[0-9a-f]{32}", input["uploadID"]) or input["storagePath"] != input["uploadID"]:
        raise UsageError(f"`{input['uploadID'][:100]}` is no upload of artifact `{draft.artifact.collection}`")
    parts = [(p["partNumber"], p["hexMD5"].strip('"').lower()) for p in input["completedParts"]]
    ctx.artifacts.join_parts(draft, input["uploadID"], parts)
    return {"digest": base64.b64encode(bytes.fromhex(input["uploadID"])).decode()}


def _commit(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    _found(ctx, input["artifactID"])
    return {"artifact": node(ctx.artifacts.commit(input["artifactID"]), info)}


def _use(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    run = by_path(ctx, input)
    ctx.home.own(run)
    found = _found(ctx, input["artifactID"])
    if isinstance(found, Draft):
        raise UsageError(f"artifact `{found.artifact.collection}` is not committed yet and cannot be used")
    key = run.run.key
    ctx.artifacts.use(found, ArtifactUse(key.entity, key.project, key.run_id, input.get("usedAs")))
    return {"artifact": node(found, info)}


# -- changing versions ------------------------------------------------------------------------------------


def _change(info: GraphQLResolveInfo, artifact_id: str, change: Callable[[Artifact], dict[str, Any]]) -> dict[str, Any]:
    ctx = context(info)
    return node(ctx.artifacts.update(_found(ctx, artifact_id), change), info)


def _update(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    fixed: dict[str, Any] = {}
    if input.get("description") is not None:
        fixed["description"] = input["description"]
    if input.get("metadata") is not None:
        fixed["metadata"] = _checked_metadata(input["metadata"])
    if input.get("ttlDurationSeconds") is not None:
        fixed["ttl_seconds"] = _ttl(input["ttlDurationSeconds"])
    if input.get("aliases") is not None:
        names = [a["alias"] for a in input["aliases"] if not _VERSION.fullmatch(a["alias"])]
        fixed["aliases"] = tuple(dict.fromkeys(map(_checked_alias, names)))
    added, removed = _checked_tags(input.get("tagsToAdd")), _checked_tags(input.get("tagsToDelete"))

    def change(artifact: Artifact) -> dict[str, Any]:
        tags = tuple(t for t in dict.fromkeys((*artifact.tags, *added)) if t not in removed)
        return fixed | ({"tags": tags} if tags != artifact.tags else {})

    return {"artifact": _change(info, input["artifactID"], change)}


def _add_aliases(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    _in_its_own_collection(info, input)
    new = [_checked_alias(a["alias"]) for a in input["aliases"]]
    _change(info, input["artifactID"], lambda artifact: {"aliases": tuple(dict.fromkeys((*artifact.aliases, *new)))})
    return {"success": True}


def _delete_aliases(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    _in_its_own_collection(info, input)
    gone = {a["alias"] for a in input["aliases"]}
    _change(info, input["artifactID"], lambda a: {"aliases": tuple(n for n in a.aliases if n not in gone)})
    return {"success": True}


def _in_its_own_collection(info: GraphQLResolveInfo, input: dict[str, Any]) -> None:
    artifact = _found(context(info), input["artifactID"]).artifact
    for alias in input["aliases"]:
        if alias["artifactCollectionName"] != artifact.collection:
            raise UsageError(
                f"the artifact is no member of `{alias['artifactCollectionName'][:100]}`, only of "
                f"`{artifact.collection}`: this server links artifacts to no other collections"
            )


def _delete(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    found = _found(ctx, input["artifactID"])
    made = node(found, info)
    if isinstance(found, Draft):
        ctx.artifacts.drafts.remove(found.token)
    else:
        ctx.artifacts.delete(found, with_aliases=bool(input.get("deleteAliases")))
    return {"artifact": made}


def _no_links(*_: Any, **__: Any) -> None:
    raise UsageError(
        "this server has no registries and no portfolios: artifacts cannot be linked here. Give the version an alias "
        "instead (`artifact.aliases.append(..); artifact.save()`)"
    )


# -- changing collections ---------------------------------------------------------------------------------


def _collection(ctx: Context, collection_id: str) -> HeldCollection:
    found = find_collection(ctx, collection_id)
    if found is None:
        raise NotFoundError(f"there is no collection of artifacts with the id `{collection_id[:100]}` here")
    return found


def _update_collection(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    changes: dict[str, Any] = {}
    if input.get("name") is not None:
        changes["collection"] = checked_part("collection of artifacts", input["name"])
    if input.get("description") is not None:
        changes["description"] = input["description"]
    held = _collection(ctx, input["artifactSequenceID"])
    changed = ctx.artifacts.change_collection(held, lambda c: replace(c, **changes))
    return {"artifactCollection": collection_node(changed, info)}


def _move_collection(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    name = input["destinationArtifactTypeName"]
    if not name.strip() or len(name) > _MAX_NAME:
        raise UsageError(f"`{name[:150]}` cannot be the type of an artifact")
    held = _collection(ctx, input["artifactSequenceID"])
    changed = ctx.artifacts.change_collection(held, lambda c: replace(c, type=name))
    return {"artifactCollection": collection_node(changed, info)}


def _delete_collection(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    held = _collection(ctx, input["artifactSequenceID"])
    made = collection_node(held, info) | {"state": "DELETED"}
    ctx.artifacts.delete_collection(held)
    return {"artifactCollection": made}


def _tagged(
    info: GraphQLResolveInfo, input: dict[str, Any], change: Callable[[ArtifactCollection, list[str]], tuple[str, ...]]
) -> list[str]:
    ctx = context(info)
    path = (input["entityName"], input["projectName"], input["artifactCollectionName"])
    tags = _checked_tags(input["tags"])
    own = [c for c in ctx.artifacts.stored.collection(*path) if find_collection(ctx, c.collection.key.storage_id)]
    if not own:
        raise NotFoundError(f"there is no collection of artifacts `{'/'.join(path)[:300]}` here that can be changed")
    ctx.artifacts.change_collection(own[0], lambda c: replace(c, tags=change(c, tags)))
    return tags


def _add_tags(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    tags = _tagged(info, input, lambda c, new: tuple(dict.fromkeys((*c.tags, *new))))
    return {"tags": [{"id": ids.encode("Tag", tag), "name": tag} for tag in tags]}


def _delete_tags(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    _tagged(info, input, lambda c, gone: tuple(tag for tag in c.tags if tag not in gone))
    return {"success": True}


RESOLVERS: dict[str, dict[str, Any]] = {
    "Mutation": {
        "createArtifact": _create,
        "createArtifactManifest": _create_manifest,
        "updateArtifactManifest": _update_manifest,
        "createArtifactFiles": _create_files,
        "completeMultipartUploadArtifact": _complete_multipart,
        "commitArtifact": _commit,
        "useArtifact": _use,
        "updateArtifact": _update,
        "addAliases": _add_aliases,
        "deleteAliases": _delete_aliases,
        "deleteArtifact": _delete,
        "updateArtifactSequence": _update_collection,
        "moveArtifactSequence": _move_collection,
        "deleteArtifactSequence": _delete_collection,
        "createArtifactCollectionTagAssignments": _add_tags,
        "deleteArtifactCollectionTagAssignments": _delete_tags,
        "linkArtifact": _no_links,
        "unlinkArtifact": _no_links,
        "updateArtifactPortfolio": _no_links,
        "deleteArtifactPortfolio": _no_links,
    },
}
