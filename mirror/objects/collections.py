"""Types and collections of artifacts, and artifact versions by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from mirror.errors import AmbiguousError, NotFoundError
from mirror.objects.artifacts import Artifact, Artifacts, read
from mirror.objects.attrs import ArgumentError, Attrs, Name, Text, Texts, Time, refusing
from mirror.objects.held import Held, Record, select
from mirror.objects.sequence import Listed
from mirror.query.text import safe

_VERSION = re.compile(r"v(\d{1,9})")
_ORDERS = {"created_at": "created_at", "createdAt": "created_at", "version": "version", "size": "size"}


class ArtifactType(Attrs):
    """A type of artifacts in a project."""

    def __init__(self, held: Held, entity: str, project: str, name: str) -> None:
        self._held, self._entity, self._project, self._name = held, entity, project, name

    @property
    def name(self) -> str:
        return self._name

    @property
    def entity(self) -> str:
        return self._entity

    @property
    def project(self) -> str:
        return self._project

    def collections(self, per_page: int = 50) -> ArtifactCollections:
        """The collections of this type."""
        return collections(self._held, self.entity, self.project, self.name)

    def collection(self, name: str) -> ArtifactCollection:
        """One of them."""
        return collection(self._held, self.entity, self.project, name, self.name)

    def __repr__(self) -> str:
        return safe(f"<ArtifactType {self.name}>")


class ArtifactCollection(Attrs):
    """A sequence of artifact versions under one name."""

    def __init__(self, held: Held, row: Record) -> None:
        self._held = held
        self._row = row

    id = Text("storage_id")
    name = Name("collection")
    type = Name("type")
    entity = Name("entity")
    project = Name("project")
    source = Name("source")
    description = Text("description")
    tags = Texts("tags")
    created_at = Time("created_at")
    updated_at = Time("updated_at")

    @property
    def aliases(self) -> list[str]:
        """All aliases of its versions."""
        return sorted({alias for one in self.artifacts() for alias in one.aliases})

    def artifacts(self, per_page: int = 50) -> Artifacts:
        """Its versions, the newest first."""
        return versions(self._held, self.entity, self.project, self.type, self.name, source=self.source)

    def is_sequence(self) -> bool:
        return True

    save = refusing("save")
    delete = refusing("delete")

    def __repr__(self) -> str:
        return safe(f"<ArtifactCollection {self.name} ({self.type})>")


class ArtifactCollections(Listed[ArtifactCollection]):
    """Collections by name."""


def find(held: Held, entity: str, project: str, name: str, type: str | None = None) -> Artifact:
    """The version `name:alias` or `name:v3` names; `latest` without either. Raises NotFoundError, AmbiguousError if
    several sources have it, ArgumentError if it is of another type."""
    collection, _, alias = name.partition(":")
    alias = alias or "latest"
    number = _VERSION.fullmatch(alias)
    which = "version = $4" if number else "list_contains(aliases, $4)"
    condition = f"entity = $1 and project = $2 and collection = $3 and {which} and ($5::varchar is null or source = $5)"
    wanted: Any = int(number[1]) if number else alias
    found = read(held, condition, [entity, project, collection, wanted, held.source])
    where = f"{entity}/{project}/{collection}"
    if not found:
        raise NotFoundError(_missing(held, entity, project, collection, alias))
    if len({one.source for one in found}) > 1:
        sources = ", ".join(f"`{one.source}`" for one in found)
        raise AmbiguousError(f"`{where}:{alias}` is held from {sources}: name one, Api(source=...)")
    if type is not None and found[-1].type != type:
        raise ArgumentError(f"`{where}:{alias}` is of type `{found[-1].type}`, not `{type}`")
    return Artifact(held, found[-1]._row, name.partition(":")[2] or None)


def _missing(held: Held, entity: str, project: str, collection: str, alias: str) -> str:
    there = read(held, "entity = ? and project = ? and collection = ?", [entity, project, collection])
    text = f"the mirror holds no artifact `{entity}/{project}/{collection}:{alias}`"
    if there:
        shown = ", ".join(f"`{name}`" for one in there[-3:] for name in (one.version, *one.aliases))
        return f"{text}; it has {shown}"
    names = [row["collection"] for row in _read(held, entity, project, None, None)]
    near = get_close_matches(collection, names, 1)
    if near:
        return f"{text}; did you mean `{near[0]}`?"
    return f"{text}; " + (f"{entity}/{project} has {', '.join(f'`{n}`' for n in names[:5])}" if names else "none of it")


def versions(
    held: Held, entity: str, project: str, type: str, name: str, order: str | None = None,
    tags: Sequence[str] | str | None = None, source: str | None = None,
) -> Artifacts:  # fmt: skip
    """The versions of a collection; the newest first, or by `+created_at`, `-size`, `version`. With `tags`, those
    that have all of them. Raises NotFoundError for a collection the mirror does not hold."""
    found = collection(held, entity, project, name, type, source)
    sign, key = (order[0], order[1:]) if order and order[0] in "+-" else ("+" if order else "-", order or "version")
    if key not in _ORDERS:
        raise ArgumentError(f"artifacts are not ordered by `{key}`: write one of {', '.join(_ORDERS)}")
    by = f"{_ORDERS[key]} {'desc' if sign == '-' else 'asc'}, version desc"
    wanted = [tags] if isinstance(tags, str) else list(tags or ())
    condition = "source = ? and entity = ? and project = ? and collection = ? and list_has_all(coalesce(tags, []), ?)"
    params = [found.source, entity, project, name, wanted]
    return read(held, condition, params, by, f"{entity}/{project}/{name}")


def types(held: Held, entity: str, project: str) -> Listed[ArtifactType]:
    """The types of a project's collections."""
    names = sorted({row["type"] for row in _read(held, entity, project, None, None)})
    return Listed([ArtifactType(held, entity, project, name) for name in names], f"{entity}/{project}")


def collections(held: Held, entity: str, project: str, type: str | None = None) -> ArtifactCollections:
    """The collections of a project, of one type or all."""
    rows = _read(held, entity, project, type, None)
    return ArtifactCollections([ArtifactCollection(held, row) for row in rows], f"{entity}/{project}")


def collection(
    held: Held, entity: str, project: str, name: str, type: str | None = None, source: str | None = None
) -> ArtifactCollection:
    """One collection. Raises NotFoundError, AmbiguousError if several sources have it."""
    rows = [row for row in _read(held, entity, project, type, name) if source in (None, row["source"])]
    if not rows:
        names = [row["collection"] for row in _read(held, entity, project, type, None)]
        near = get_close_matches(name, names, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(f'`{n}`' for n in names[:5]) or 'none'}"
        kind = "" if type is None else f" of type `{type}`"
        raise NotFoundError(f"the mirror holds no collection `{entity}/{project}/{name}`{kind}; {hint}")
    if len({row["source"] for row in rows}) > 1:
        sources = ", ".join(f"`{row['source']}`" for row in rows)
        raise AmbiguousError(
            f"collection `{entity}/{project}/{name}` is held from {sources}: name one, Api(source=...)"
        )
    return ArtifactCollection(held, rows[0])


def _read(held: Held, entity: str, project: str, type: str | None, name: str | None) -> list[dict[str, Any]]:
    query = """
        select source, entity, project, storage_id, type, collection, description, tags, created_at, updated_at
        from artifact_collections
        where entity = $1 and project = $2 and deleted_at is null and ($3::varchar is null or source = $3)
          and ($4::varchar is null or type = $4) and ($5::varchar is null or collection = $5)
        order by collection, source
    """
    return select(held.state(), query, [entity, project, held.source, type, name])
