"""The artifacts of a project: collections, their versions, manifests and who logged and used them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.errors import SourceError, TerminalSourceError, TransientSourceError
from mirror.records import Artifact, ArtifactCollection, ArtifactEntry, ArtifactUse, ItemKey, manifest_digest
from mirror.wandb.client import Client, Fields, next_cursor, nodes, when
from mirror.wandb.paging import Paged, read_all
from mirror.wandb.transport import BRIEF, NORMAL, Patience, RefusedQuery, UnknownFields, loads

PAGE = 50
COLLECTIONS_AT_ONCE = 20
MANIFEST_LIMIT = 1 << 30

_COLLECTION = ("__typename", "description", "createdAt", "updatedAt", "tags { edges { node { name } } }")
_ARTIFACT = (
    "digest", "description", "state", "size", "fileCount", "versionIndex", "metadata", "commitHash", "createdAt",
    "updatedAt", "historyStep", "ttlDurationSeconds", "tags { name }",
    "aliases { alias artifactCollection { name project { name entityName } } }",
    "artifactSequence { name project { name entityName } }",
    "createdBy { __typename ... on Run { name project { name entityName } } ... on User { username } }",
    "usedBy { edges { node { name project { name entityName } } } pageInfo { hasNextPage } }",
    "currentManifest { file { directUrl } }",
)  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """An artifact without its entries. `manifest_url` is where they are, for now: signed addresses expire."""

    artifact: Artifact
    manifest_url: str | None
    uses_cut_off: bool


def list_collections(client: Client, entity: str, project: str) -> tuple[list[ArtifactCollection], Paged]:
    """Every collection of a project, of every type. Portfolios only link to versions of other collections."""

    def types(f: Fields) -> str:
        return (
            "query ArtifactTypes($entity: String!, $project: String!, $first: Int!, $after: String) {"
            " project(name: $project, entityName: $entity) { name entityName"
            " artifactTypes(first: $first, after: $after) {"
            " edges { node { name } } pageInfo { endCursor hasNextPage } } } }"
        )

    def collections(f: Fields) -> str:
        return (
            "query ArtifactCollections($entity: String!, $project: String!, $type: String!, $first: Int!,"
            " $after: String) { project(name: $project, entityName: $entity) { name entityName"
            " artifactType(name: $type) { artifactCollections(first: $first, after: $after) { edges { node {"
            f" id name {f.of('ArtifactCollection', _COLLECTION)} }} }} pageInfo {{ endCursor hasNextPage }} }} }} }} }}"
        )

    where = {"entity": entity, "project": project}
    every = read_all(client, types, where, ("project", "artifactTypes"), first=PAGE)
    made: list[ArtifactCollection] = []
    complete = every.complete
    for kind in [str(node["name"]) for node in every.nodes]:
        path = ("project", "artifactType", "artifactCollections")
        found = read_all(client, collections, {**where, "type": kind}, path, first=PAGE)
        complete &= found.complete
        for node in found.nodes:
            if node.get("__typename") == "ArtifactPortfolio":
                continue
            made.append(
                ArtifactCollection(
                    key=ItemKey(client.source, str(node["id"]), entity, project),
                    type=kind,
                    collection=str(node["name"]),
                    description=node.get("description"),
                    tags=tuple(str(t["name"]) for t in nodes(node.get("tags")) if t.get("name")),
                    created_at=when(node.get("createdAt")),
                    updated_at=when(node.get("updatedAt")),
                )
            )
    return made, Paged(complete=complete)


def list_artifacts(
    client: Client, collections: Sequence[ArtifactCollection], trouble: Callable[[str], None]
) -> Iterator[tuple[list[Listed], bool]]:
    """The versions of collections of one project, a request's worth at a time, and whether that part is complete.
    `trouble` hears of collections that cannot be read; the others are read all the same."""
    waiting: list[tuple[ArtifactCollection, str | None]] = [(c, None) for c in collections]
    seen: set[tuple[str, str]] = set()
    while waiting:
        asked, waiting = waiting[:COLLECTIONS_AT_ONCE], waiting[COLLECTIONS_AT_ONCE:]
        pages = _isolated(client, asked, trouble)
        made: list[Listed] = []
        complete = True
        for (collection, _), page in zip(asked, pages, strict=True):
            if page is None:
                complete = False
                continue
            made += [_listed(client, collection, node) for node in nodes(page)]
            after = next_cursor(page)
            if after is None:
                complete &= not (page.get("pageInfo") or {}).get("hasNextPage")
            elif (collection.key.storage_id, after) in seen:
                complete = False
            else:
                seen.add((collection.key.storage_id, after))
                waiting.append((collection, after))
        yield made, complete


def _isolated(
    client: Client, asked: Sequence[tuple[ArtifactCollection, str | None]], trouble: Callable[[str], None]
) -> list[dict[str, Any] | None]:
    """A page of each of these collections; when they cannot be had together, of parts of them."""
    try:
        return _ask(client, asked, BRIEF if len(asked) > 1 else NORMAL)
    except (TransientSourceError, RefusedQuery) as e:
        if isinstance(e, UnknownFields):
            raise
        client.probe()  # a server that is away is nobody's fault
        if len(asked) == 1:
            trouble(f"the versions of artifact `{asked[0][0].collection}` could not be read: {e}")
            return [None]
        middle = len(asked) // 2
        return _isolated(client, asked[:middle], trouble) + _isolated(client, asked[middle:], trouble)


def _ask(
    client: Client, asked: Sequence[tuple[ArtifactCollection, str | None]], patience: Patience
) -> list[dict[str, Any] | None]:
    """A page of each of these collections, in one request."""
    variables: dict[str, Any] = {"entity": asked[0][0].key.entity, "project": asked[0][0].key.project}
    for i, (collection, after) in enumerate(asked):
        variables |= {f"t{i}": collection.type, f"c{i}": collection.collection, f"a{i}": after}

    def build(f: Fields) -> str:
        declared = "".join(f", $t{i}: String!, $c{i}: String!, $a{i}: String" for i in range(len(asked)))
        parts = " ".join(
            f"c{i}: artifactType(name: $t{i}) {{ artifactCollection(name: $c{i}) {{"
            f" artifacts(first: {PAGE}, after: $a{i}) {{ ...page }} }} }}"
            for i in range(len(asked))
        )
        return (
            f"query Artifacts($entity: String!, $project: String!{declared}) {{"
            f" project(name: $project, entityName: $entity) {{ name entityName {parts} }} }}"
            " fragment page on VersionedArtifactConnection { edges { node {"
            f" id {f.of('Artifact', _ARTIFACT)} }} }} pageInfo {{ endCursor hasNextPage }} }}"
        )

    data, _ = client.ask(build, variables, patience=patience)
    shown = data.get("project") or {}
    pages = []
    for i in range(len(asked)):
        page = ((shown.get(f"c{i}") or {}).get("artifactCollection") or {}).get("artifacts")
        pages.append(page if isinstance(page, dict) else None)
    return pages


def _listed(client: Client, collection: ArtifactCollection, node: dict[str, Any]) -> Listed:
    maker = node.get("createdBy") or {}
    run = maker if maker.get("__typename") == "Run" else {}
    where = run.get("project") or {}
    used = node.get("usedBy")
    manifest = ((node.get("currentManifest") or {}).get("file") or {}).get("directUrl")
    artifact = Artifact(
        key=ItemKey(client.source, str(node["id"]), collection.key.entity, collection.key.project),
        type=collection.type,
        collection=collection.collection,
        version=_integer(node.get("versionIndex")),
        state=node.get("state"),
        digest=node.get("digest"),
        aliases=_aliases(collection, node.get("aliases")),
        tags=tuple(str(t["name"]) for t in node.get("tags") or () if isinstance(t, dict) and t.get("name")),
        description=node.get("description"),
        metadata=node["metadata"] if isinstance(node.get("metadata"), str) else None,
        size=_integer(node.get("size")),
        file_count=_integer(node.get("fileCount")),
        history_step=_integer(node.get("historyStep")),
        ttl_seconds=_integer(node.get("ttlDurationSeconds")),
        commit_hash=node.get("commitHash"),
        run_entity=where.get("entityName"),
        run_project=where.get("name"),
        run_id=run.get("name"),
        username=maker.get("username"),
        created_at=when(node.get("createdAt")),
        updated_at=when(node.get("updatedAt")),
        uses=None if used is None else [use for one in nodes(used) if (use := _use(one))],
    )
    cut_off = bool(((used or {}).get("pageInfo") or {}).get("hasNextPage"))
    return Listed(artifact, manifest, cut_off)


def _aliases(collection: ArtifactCollection, given: Any) -> tuple[str, ...]:
    """The aliases a version has in its own collection, without the implicit `vN`."""
    found = []
    for one in given or ():
        of = (one or {}).get("artifactCollection") or {"name": collection.collection}
        alias = str((one or {}).get("alias") or "")
        implicit = alias[:1] == "v" and alias[1:].isdigit()
        if alias and not implicit and of.get("name") == collection.collection:
            found.append(alias)
    return tuple(sorted(dict.fromkeys(found)))


def _use(run: dict[str, Any]) -> ArtifactUse | None:
    where = run.get("project") or {}
    if not (run.get("name") and where.get("name")):
        return None  # a run that was deleted
    return ArtifactUse(str(where.get("entityName") or ""), str(where["name"]), str(run["name"]))


def _integer(value: Any) -> int | None:
    """An Int64, which some servers write as a string."""
    if isinstance(value, str) and value.lstrip("-").isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def fetch_artifact(client: Client, collection: ArtifactCollection, storage_id: str) -> Artifact | None:
    """A version by its storage id, without its entries; None if there is none."""

    def build(f: Fields) -> str:
        return f"query Artifact($id: ID!) {{ artifact(id: $id) {{ id {f.of('Artifact', _ARTIFACT)} }} }}"

    data, _ = client.ask(build, {"id": storage_id})
    node = data.get("artifact")
    return _listed(client, collection, node).artifact if isinstance(node, dict) else None


def server_ids(client: Client, client_ids: Sequence[str]) -> dict[str, str]:
    """The storage ids of artifacts that a client knows by ids of its own; of those the server knows, too. A server that
    has no such ids knows none."""
    found: dict[str, str] = {}
    for start in range(0, len(client_ids), PAGE):
        found |= _server_ids(client, client_ids[start : start + PAGE])
    return found


def _server_ids(client: Client, client_ids: Sequence[str]) -> dict[str, str]:
    declared = ", ".join(f"$c{i}: ID!" for i in range(len(client_ids)))
    asked = " ".join(f"m{i}: clientIDMapping(clientID: $c{i}) {{ serverID }}" for i in range(len(client_ids)))
    try:
        data, _ = client.ask(
            lambda _: f"query ClientIDs({declared}) {{ {asked} }}", {f"c{i}": own for i, own in enumerate(client_ids)}
        )
    except SourceError as e:
        if isinstance(e, UnknownFields) or isinstance(e.__cause__, UnknownFields):
            return {}
        raise
    said = {own: (data.get(f"m{i}") or {}).get("serverID") for i, own in enumerate(client_ids)}
    return {own: server_id for own, server_id in said.items() if isinstance(server_id, str)}


def fetch_uses(client: Client, artifact: Artifact) -> list[ArtifactUse]:
    """All runs that used an artifact, where its listing shows only the first ones."""

    def build(f: Fields) -> str:
        return (
            "query ArtifactUses($id: ID!, $first: Int!, $after: String) { artifact(id: $id) {"
            " usedBy(first: $first, after: $after) { edges { node { name project { name entityName } } }"
            " pageInfo { endCursor hasNextPage } } } }"
        )

    found = read_all(client, build, {"id": artifact.key.storage_id}, ("artifact", "usedBy"), first=PAGE)
    return [use for one in found.nodes if (use := _use(one))]


def fetch_entries(client: Client, listed: Listed) -> list[ArtifactEntry]:
    """An artifact's entries out of its manifest. Raises a SourceError if it is gone or not what its digest says."""
    name = f"{listed.artifact.collection}:v{listed.artifact.version}"
    content = client.transport.download(str(listed.manifest_url), limit=MANIFEST_LIMIT)
    if content is None:
        raise TerminalSourceError(f"the manifest of artifact `{name}` is gone: sync again")
    try:
        contents = loads(content)["contents"]
        entries = [_entry(path, contents[path]) for path in sorted(contents)]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise TerminalSourceError(f"the manifest of artifact `{name}` cannot be read ({e!r:.200})", e) from e
    if (
        listed.artifact.digest
        and (digest := manifest_digest((e.path, e.digest) for e in entries)) != listed.artifact.digest
    ):
        raise TerminalSourceError(
            f"the manifest of artifact `{name}` has the digest `{digest}`, the server says `{listed.artifact.digest}`"
        )
    return entries


def find_entries(client: Client, wanted: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, str]]:
    """Where the bytes of entries can be downloaded now, by path, for each of some artifacts (storage id, paths).
    Entries that the server does not have are left out. One request."""

    def build(f: Fields) -> str:
        declared = ", ".join(f"$i{i}: ID!, $f{i}: [String!], $k{i}: Int!" for i in range(len(wanted)))
        asked = " ".join(
            f"a{i}: artifact(id: $i{i}) {{ files(names: $f{i}, first: $k{i}) {{ ...files }} }}"
            for i in range(len(wanted))
        )
        file = f.of("File", ("id", "name", "url", "directUrl"))
        return (
            f"query ArtifactFiles({declared}) {{ {asked} }}"
            f" fragment files on FileConnection {{ edges {{ node {{ {file} }} }} }}"
        )

    variables: dict[str, Any] = {}
    for i, (storage_id, paths) in enumerate(wanted):
        variables |= {f"i{i}": storage_id, f"f{i}": list(paths), f"k{i}": len(paths)}
    data, _ = client.ask(build, variables)
    pages = [(data.get(f"a{i}") or {}).get("files") for i in range(len(wanted))]
    return [
        {str(node["name"]): url for node in nodes(page) if (url := node.get("directUrl") or node.get("url"))}
        for page in pages
    ]


def _entry(path: str, said: Mapping[str, Any]) -> ArtifactEntry:
    extra = said.get("extra")
    return ArtifactEntry(
        path=path,
        digest=said.get("digest"),
        size=_integer(said.get("size")),
        ref=said.get("ref"),
        birth_id=said.get("birthArtifactID"),
        extra=json.dumps(extra) if extra else None,
    )
