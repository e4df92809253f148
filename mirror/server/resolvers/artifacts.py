"""Artifacts as they are read: versions, collections, types, files, lineage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphql import GraphQLResolveInfo

from mirror.errors import AmbiguousError, UsageError
from mirror.records import Artifact, ArtifactCollection
from mirror.server import ids
from mirror.server.artifacts.artifacts import PENDING, sequence_of
from mirror.server.artifacts.drafts import Draft, token_for
from mirror.server.artifacts.stored import ALIVE, Held, HeldCollection, StoredArtifacts
from mirror.server.context import Context, ProjectNode, RunNode, context
from mirror.server.listings import MAX_PAGE
from mirror.server.resolvers.artifact_files import MAX_FILES, files_page, manifest_node, wire_id
from mirror.server.shelf import EPOCH
from mirror.server.wire import connection, paged, wire_time

_NO_TIME = wire_time(EPOCH)
_ORDERS = {
    "createdat": "created_at",
    "updatedat": "updated_at",
    "name": "collection",
    "versionindex": "version",
    "version": "version",
    "size": "size",
}


# -- ids --------------------------------------------------------------------------------------------------


def find(ctx: Context, artifact_id: str) -> Held | Draft | None:
    """The artifact of an id that came over the wire, if whoever asks may see it."""
    source, storage_id = ids.parse_mirrored_run_id(artifact_id) or (None, artifact_id)
    found = ctx.artifacts.find(source, storage_id)
    if found is None or (isinstance(found, Held) and found.deleted) or not visible(ctx, found.artifact.key.entity):
        return None
    return found


def visible(ctx: Context, entity: str) -> bool:
    return ctx.look.sees(entity)


def find_collection(ctx: Context, collection_id: str) -> HeldCollection | None:
    source, storage_id = ids.parse_mirrored_run_id(collection_id) or (ctx.home.source, collection_id)
    names = ids.decode(storage_id, "ArtifactNames", 3)
    stored = ctx.artifacts.stored
    if names:
        found = stored.collection(names[0], names[1], names[2])
    else:
        found = stored.collections("source = ? and storage_id = ?", (source, storage_id))
    return next((c for c in found if visible(ctx, c.collection.key.entity)), None)


def _collection_id(ctx: Context, held: HeldCollection) -> str:
    key = held.collection.key
    if key.storage_id:
        return wire_id(ctx, key.source, key.storage_id)
    return ids.encode("ArtifactNames", key.entity, key.project, held.collection.collection)


# -- nodes ------------------------------------------------------------------------------------------------


def node(found: Held | Draft, info: GraphQLResolveInfo) -> dict[str, Any]:
    """An artifact as the source of the fields of type `Artifact`."""
    ctx, artifact = context(info), found.artifact
    key = artifact.key
    made: dict[str, Any] = {
        "id": wire_id(ctx, key.source, key.storage_id),
        "digest": artifact.digest or "",
        "digestAlgorithm": "MANIFEST_MD5",
        "description": artifact.description,
        "state": PENDING if isinstance(found, Draft) else artifact.state or "COMMITTED",
        "size": artifact.size or 0,
        "fileCount": artifact.file_count or 0,
        "versionIndex": artifact.version,
        "metadata": artifact.metadata,
        "commitHash": artifact.commit_hash,
        "createdAt": wire_time(artifact.created_at) or _NO_TIME,
        "updatedAt": wire_time(artifact.updated_at),
        "historyStep": artifact.history_step,
        # The SDK insists on a number; what is not above zero means that nothing expires.
        "ttlDurationSeconds": artifact.ttl_seconds or -2,
        "ttlIsInherited": artifact.ttl_seconds is None,
        "tags": [{"id": ids.encode("Tag", tag), "name": tag} for tag in artifact.tags],
        "aliases": _aliases(found, info),
        "artifactSequence": sequence_node(artifact, info),
        "artifactType": _type_node(key.entity, key.project, artifact.type, None),
        "createdBy": lambda info: _run_node(info, artifact.run_entity, artifact.run_project, artifact.run_id),
    }
    if isinstance(found, Held):
        made |= {
            "currentManifest": manifest_node(ctx, found),
            "files": lambda info, **page: files_page(info, found, **page),
            "filesByManifestEntries": lambda info, entries=None, first=None, after=None, **_: files_page(
                info, found, [e["name"] for e in entries or []], first or MAX_FILES, after
            ),
            "usedBy": lambda info, **page: _used_by(info, found, **page),
            "artifactMemberships": lambda info, **_: connection([membership_node(found, info)]),
        }
    else:
        made |= {"currentManifest": None, "files": connection([]), "usedBy": connection([])}
        made |= {"artifactMemberships": connection([]), "filesByManifestEntries": connection([])}
    return made


def _aliases(found: Held | Draft, info: GraphQLResolveInfo) -> list[dict[str, Any]]:
    """The aliases with the implicit `vN`, which W&B's server lists among them."""
    artifact = found.artifact
    implicit = [f"v{artifact.version}"] if artifact.version is not None else []
    return [
        {
            "id": ids.encode("ArtifactAlias", artifact.key.storage_id, alias),
            "alias": alias,
            "artifactCollectionName": artifact.collection,
            "artifactCollection": sequence_node(artifact, info),
        }
        for alias in (*artifact.aliases, *implicit)
    ]


def sequence_node(artifact: Artifact, info: GraphQLResolveInfo) -> dict[str, Any]:
    """The collection of an artifact. What only the collection itself knows is read when it is asked for."""
    key = artifact.key

    def of_collection(name: str) -> Callable[..., Any]:
        def resolve(info: GraphQLResolveInfo, **arguments: Any) -> Any:
            found = next(
                (
                    c
                    for c in context(info).artifacts.stored.collection(key.entity, key.project, artifact.collection)
                    if c.collection.key.source == key.source
                ),
                None,
            )
            value = collection_node(found, info)[name] if found else _BEFORE_THE_FIRST[name]
            return value(info, **arguments) if callable(value) else value

        return resolve

    return {
        "__typename": "ArtifactSequence",
        "name": artifact.collection,
        "project": ProjectNode(key.entity, key.project),
        "defaultArtifactType": _type_node(key.entity, key.project, artifact.type, None),
        "digestAlgorithm": "MANIFEST_MD5",
        **{name: of_collection(name) for name in _BEFORE_THE_FIRST},
        "latestArtifact": lambda info: _latest(info, artifact),
    }


def _latest(info: GraphQLResolveInfo, artifact: Artifact | ArtifactCollection) -> dict[str, Any] | None:
    newest = context(info).artifacts.stored.newest(artifact.key.source, sequence_of(artifact))
    return node(newest, info) if newest else None


_BEFORE_THE_FIRST: dict[str, Any] = {
    "id": ids.encode("ArtifactSequence", "new"),
    "state": "READY",
    "description": None,
    "createdAt": _NO_TIME,
    "updatedAt": None,
    "tags": {"edges": []},
    "aliases": connection([]),
    "artifacts": connection([]),
    "artifactMembership": None,
}
"""What a collection says before its first version is committed."""


def collection_node(held: HeldCollection, info: GraphQLResolveInfo) -> dict[str, Any]:
    """A collection as the source of the fields of type `ArtifactSequence`."""
    ctx, found = context(info), held.collection
    key = found.key
    mine = (key.source, key.entity, key.project, found.collection)
    within = f"source = ? and entity = ? and project = ? and collection = ? and {ALIVE}"

    def versions(
        info: GraphQLResolveInfo,
        first: int | None = None,
        after: str | None = None,
        order: str | None = None,
        filters: str | None = None,
    ) -> dict[str, Any]:
        by = ordering(order, "version desc")
        return _versions(info, (within, mine, by), filters, first, after)

    def membership(info: GraphQLResolveInfo, aliasName: str) -> dict[str, Any] | None:
        stored = context(info).artifacts.stored
        same = [h for h in stored.named(*mine[1:], aliasName) if h.artifact.key.source == key.source]
        return membership_node(same[0], info) if same else None

    def aliases(info: GraphQLResolveInfo, first: int | None = None, after: str | None = None) -> dict[str, Any]:
        with_some = f"{within} and len(aliases) > 0"
        named = context(info).artifacts.stored.versions(with_some, mine, order="version desc")
        nodes = [alias for h in named for alias in _aliases(h, info)]
        return paged(nodes, first, after, default=MAX_PAGE)

    return {
        "__typename": "ArtifactSequence",
        "id": _collection_id(ctx, held),
        "name": found.collection,
        "state": "READY",
        "description": found.description,
        "createdAt": wire_time(found.created_at) or _NO_TIME,
        "updatedAt": wire_time(found.updated_at),
        "project": ProjectNode(key.entity, key.project),
        "defaultArtifactType": _type_node(key.entity, key.project, found.type, None),
        "tags": {"edges": [{"node": {"id": ids.encode("Tag", tag), "name": tag}} for tag in found.tags]},
        "digestAlgorithm": "MANIFEST_MD5",
        "aliases": aliases,
        "artifacts": versions,
        "artifactMembership": membership,
        "latestArtifact": lambda info: _latest(info, found),
    }


def membership_node(found: Held, info: GraphQLResolveInfo) -> dict[str, Any]:
    """A version as a member of its own collection: there are no others here."""
    artifact = found.artifact
    return {
        "id": ids.encode("ArtifactCollectionMembership", artifact.key.storage_id),
        "createdAt": wire_time(artifact.created_at) or _NO_TIME,
        "versionIndex": artifact.version,
        "aliases": _aliases(found, info),
        "artifact": node(found, info),
        "artifactCollection": sequence_node(artifact, info),
        "files": lambda info, **page: files_page(info, found, **page),
    }


def _type_node(entity: str, project: str, name: str, created_at: Any) -> dict[str, Any]:
    def one(info: GraphQLResolveInfo, name: str, _type: str = name) -> dict[str, Any] | None:
        found = _collection(context(info), entity, project, name)
        return collection_node(found, info) if found and found.collection.type == _type else None

    def artifact(info: GraphQLResolveInfo, name: str, _type: str = name) -> dict[str, Any] | None:
        found = named(context(info), entity, project, name)
        return node(found, info) if found and found.artifact.type == _type else None

    def many(info: GraphQLResolveInfo, _type: str = name, **page: Any) -> dict[str, Any]:
        return _collections(info, "entity = ? and project = ? and type = ?", (entity, project, _type), **page)

    return {
        "id": ids.encode("ArtifactType", "v1", entity, project, name),
        "name": name,
        "description": None,
        "createdAt": wire_time(created_at) or _NO_TIME,
        "artifact": artifact,
        "artifactCollection": one,
        "artifactSequence": one,
        "artifactCollections": many,
    }


# -- lineage ----------------------------------------------------------------------------------------------


def _run_node(info: GraphQLResolveInfo, entity: str | None, project: str | None, run_id: str | None) -> RunNode | None:
    if not (entity and project and run_id):
        return None
    look = context(info).look
    found = look.run(entity, project, run_id)
    return RunNode(found, look) if found else None


def _used_by(
    info: GraphQLResolveInfo, held: Held, first: int | None = None, after: str | None = None
) -> dict[str, Any]:
    ctx = context(info)
    uses = [u for u in ctx.artifacts.stored.uses(held) if visible(ctx, u.entity)]
    runs = list(dict.fromkeys((u.entity, u.project, u.run_id) for u in uses))
    found = paged(runs, first, after, default=MAX_PAGE)
    for edge in found["edges"]:
        edge["node"] = _run_node(info, *edge["node"])
    found["edges"] = [edge for edge in found["edges"] if edge["node"]]
    return found


def _logged(run: RunNode, info: GraphQLResolveInfo, **page: Any) -> dict[str, Any]:
    where = f"run_entity = ? and run_project = ? and run_id = ? and {ALIVE}"
    return _versions(info, (where, (run.key.entity, run.key.project, run.key.run_id), "created_at"), None, **page)


def _used(run: RunNode, info: GraphQLResolveInfo, **page: Any) -> dict[str, Any]:
    ctx = context(info)
    mine = (run.key.entity, run.key.project, run.key.run_id)
    return _page_of_versions(
        info, ("used", *mine), lambda: ctx.artifacts.stored.used_by(*mine), page.get("first"), page.get("after")
    )


# -- listings ---------------------------------------------------------------------------------------------


def ordering(order: str | None, default: str) -> str:
    """SQL of an order like `-createdAt`."""
    if not order:
        return default
    name = order.lstrip("+-").replace("_", "").lower()
    if name not in _ORDERS:
        raise UsageError(f"artifacts cannot be ordered by `{order[:100]}`: use one of {', '.join(sorted(_ORDERS))}")
    return f"{_ORDERS[name]} {'desc' if order.startswith('-') else 'asc'}"


def _is_plain(filters: str | None) -> bool:
    """Whether a filter lets everything through that is listed without one."""
    text = (filters or "").replace(" ", "")
    return text in ("", "{}", "null", '{"state":"COMMITTED"}')


def _versions(
    info: GraphQLResolveInfo,
    wanted: tuple[str, tuple[Any, ...], str],
    filters: str | None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    stored: StoredArtifacts = context(info).artifacts.stored

    def make() -> list[int]:
        rids = stored.rids(*wanted)
        return rids if _is_plain(filters) else stored.filtered(filters or "", rids)

    return _page_of_versions(info, ("versions", *wanted, filters), make, first, after)


def _page_of_versions(
    info: GraphQLResolveInfo, name: tuple[Any, ...], make: Callable[[], list[int]], first: int | None, after: str | None
) -> dict[str, Any]:
    ctx = context(info)
    page = ctx.listings.page((ctx.home.shelves.newest().number, *name), make, first, after)
    cursors = {rid: cursor for cursor, rid in page.items}
    found = [
        h for h in ctx.artifacts.stored.by_rids([rid for _, rid in page.items]) if visible(ctx, h.artifact.key.entity)
    ]
    made = connection([node(h, info) for h in found], [cursors[h.rid] for h in found], more=page.more)
    for edge, held in zip(made["edges"], found, strict=True):
        edge["version"] = f"v{held.artifact.version}"
    if page.items:
        made["pageInfo"]["endCursor"] = page.items[-1][0]
    return made | {"totalCount": page.total}


def _collections(
    info: GraphQLResolveInfo,
    where: str,
    params: tuple[Any, ...],
    first: int | None = None,
    after: str | None = None,
    order: str | None = None,
    filters: str | None = None,
) -> dict[str, Any]:
    ctx = context(info)
    stored = ctx.artifacts.stored
    by = ordering(order, "rid desc")

    def make() -> list[int]:
        rids = stored.collection_rids(where, params, by)
        return rids if _is_plain(filters) else stored.filtered(filters or "", rids)

    name = (ctx.home.shelves.newest().number, "collections", where, params, by, filters)
    page = ctx.listings.page(name, make, first, after)
    chosen = ", ".join(str(rid) for _, rid in page.items) or "null"
    found = {c.rid: c for c in stored.collections(f"rid in ({chosen})")}
    shown = [(cursor, found[rid]) for cursor, rid in page.items if rid in found]
    made = connection([collection_node(c, info) for _, c in shown], [cursor for cursor, _ in shown], more=page.more)
    return made | {"totalCount": page.total}


# -- by name ----------------------------------------------------------------------------------------------


def _collection(ctx: Context, entity: str, project: str, name: str) -> HeldCollection | None:
    found = ctx.artifacts.stored.collection(entity, project, name)
    if len(found) > 1:
        raise _ambiguous(f"{entity}/{project}/{name}", [c.collection.key.source for c in found])
    return found[0] if found else None


def named(ctx: Context, entity: str, project: str, name: str) -> Held | None:
    """The version that `collection:alias` (or `collection`, for the latest) names."""
    collection, _, alias = name.partition(":")
    found = ctx.artifacts.stored.named(entity, project, collection, alias or "latest")
    if len(found) > 1:
        raise _ambiguous(f"{entity}/{project}/{name}", [h.artifact.key.source for h in found])
    return found[0] if found else None


def _ambiguous(path: str, sources: list[str]) -> AmbiguousError:
    return AmbiguousError(
        f"`{path[:300]}` names artifacts of several sources ({', '.join(f'`{s}`' for s in sources)}): "
        "ask for it with `mirror sql` and a condition on source"
    )


def _artifact(_: None, info: GraphQLResolveInfo, id: str | None = None) -> dict[str, Any] | None:
    found = find(context(info), id or "")
    return node(found, info) if found else None


def _client_id(_: None, info: GraphQLResolveInfo, clientID: str) -> dict[str, Any] | None:
    ctx = context(info)
    found = ctx.artifacts.by_client_id(token_for("client", clientID))
    return {"serverID": found} if found and find(ctx, found) else None


def _collection_by_id(_: None, info: GraphQLResolveInfo, id: str | None = None) -> dict[str, Any] | None:
    found = find_collection(context(info), id or "")
    return collection_node(found, info) if found else None


def _type(project: ProjectNode, info: GraphQLResolveInfo, name: str) -> dict[str, Any] | None:
    types = dict(context(info).artifacts.stored.types(project.entity, project.name))
    return _type_node(project.entity, project.name, name, types[name]) if name in types else None


def _types(
    project: ProjectNode, info: GraphQLResolveInfo, first: int | None = None, after: str | None = None, **_: Any
) -> dict[str, Any]:
    types = context(info).artifacts.stored.types(project.entity, project.name)
    return paged([_type_node(project.entity, project.name, *t) for t in types], first, after)


def _collection_of_project(project: ProjectNode, info: GraphQLResolveInfo, name: str) -> dict[str, Any] | None:
    found = _collection(context(info), project.entity, project.name, name)
    return collection_node(found, info) if found else None


def _collections_of_project(project: ProjectNode, info: GraphQLResolveInfo, **page: Any) -> dict[str, Any]:
    return _collections(info, "entity = ? and project = ?", (project.entity, project.name), **page)


def _membership(project: ProjectNode, info: GraphQLResolveInfo, name: str) -> dict[str, Any] | None:
    found = named(context(info), project.entity, project.name, name)
    return membership_node(found, info) if found else None


def _artifact_of_project(project: ProjectNode, info: GraphQLResolveInfo, name: str, **_: Any) -> dict[str, Any] | None:
    found = named(context(info), project.entity, project.name, name)
    return node(found, info) if found else None


RESOLVERS: dict[str, dict[str, Any]] = {
    "Query": {"artifact": _artifact, "clientIDMapping": _client_id, "artifactCollection": _collection_by_id},
    "Project": {
        "artifact": _artifact_of_project,
        "artifactType": _type,
        "artifactTypes": _types,
        "artifactCollection": _collection_of_project,
        "artifactCollections": _collections_of_project,
        "artifactCollectionMembership": _membership,
    },
    "Run": {"outputArtifacts": _logged, "inputArtifacts": _used},
}
