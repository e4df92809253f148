"""Queries to one W&B server: who we are, what the server knows, which projects there are.

Servers differ in age. A query is built from the fields wanted; those a server says it does not know are left
out from then on (`Cannot query field "X" on type "Y"`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from mirror.errors import TerminalSourceError, TransientSourceError
from mirror.paths import app_url, canonical_source
from mirror.records import Project
from mirror.wandb.batch import Batch
from mirror.wandb.limits import Limits
from mirror.wandb.transport import LONG, NORMAL, Patience, Transport, UnknownFields

PAGE_SIZE = 1000
"""The largest page of runs that W&B serves (its knowledge base: "how do I paginate")."""
SMALLEST_PAGE = 20

Build = Callable[["Fields"], str]
"""Makes the text of a query out of the fields the server knows."""


class Fields:
    """Which fields a server does not know."""

    def __init__(self) -> None:
        self._unknown: frozenset[tuple[str, str]] = frozenset()

    def of(self, type_name: str, fields: Iterable[str]) -> str:
        """The fields of a type that may be asked for. A field may carry arguments and a selection."""
        return " ".join(f for f in fields if self.knows(type_name, _name(f)))

    def knows(self, type_name: str, field: str) -> bool:
        return (type_name, field) not in self._unknown

    def forget(self, fields: Iterable[tuple[str, str]]) -> None:
        self._unknown |= frozenset(fields)


def _name(field: str) -> str:
    for i, c in enumerate(field):
        if not (c.isalnum() or c == "_"):
            return field[:i]
    return field


@dataclass(frozen=True)
class Viewer:
    """Whose key it is: default entity, user name and the names of teams."""

    entity: str | None
    username: str | None
    teams: tuple[str, ...]

    @property
    def entities(self) -> tuple[str, ...]:
        """The entities that are the viewer's own, the default one first."""
        return tuple(dict.fromkeys(e for e in (self.entity, self.username, *self.teams) if e))


class Client:
    """What every kind of question needs: the transport, the server's dialect and limits, names for messages."""

    def __init__(self, transport: Transport, limits: Limits | None = None) -> None:
        self.transport = transport
        self.limits = limits or Limits()
        most = self.limits.page or PAGE_SIZE
        self.page_size = Batch(most, most, least=min(most, SMALLEST_PAGE))
        """How many runs to list at once."""
        self.fields = Fields()
        self.source = canonical_source(transport.base_url)
        self.pages = app_url(transport.base_url)

    def ask(
        self, build: Build, variables: dict[str, Any], *, patience: Patience = NORMAL, limit: int | None = None
    ) -> tuple[dict[str, Any], int]:
        """The answer's data and size in bytes; asked again without fields that the server does not know, and if it
        is about another project or run than the one asked for."""
        query = build(self.fields)

        def check(data: dict[str, Any]) -> None:
            _check_subject(self.transport.base_url, data, variables)

        while True:
            try:
                return self.transport.graphql(query, variables, patience=patience, limit=limit, check=check)
            except UnknownFields as e:
                self.fields.forget(e.fields)
                shorter = build(self.fields)
                if shorter == query:
                    names = ", ".join(sorted(f"{t}.{f}" for t, f in e.fields))
                    raise TerminalSourceError(
                        f"`{self.transport.base_url}` does not know `{names}`, which a mirror needs: "
                        "is it a W&B server of a supported version?"
                    ) from e
                query = shorter

    def viewer(self, *, patience: Patience = NORMAL) -> Viewer:
        """Check the key. Raises TerminalSourceError if it is not one of the server's.

        A bad key gets HTTP 200 with `viewer: null`, not always 401.
        """

        def build(f: Fields) -> str:
            teams = "teams { edges { node { name } } }"
            return f"query Viewer {{ viewer {{ {f.of('User', ('id', 'entity', 'username', teams))} }} }}"

        data, _ = self.ask(build, {}, patience=patience)
        viewer = data.get("viewer")
        if not isinstance(viewer, dict):
            raise self.transport.wrong_key()
        teams = tuple(n["name"] for n in nodes(viewer.get("teams")) if n.get("name"))
        return Viewer(viewer.get("entity"), viewer.get("username"), teams)

    def probe(self) -> None:
        """Return when the server answers; wait for it longer than for any run. Raises a SourceError."""
        self.viewer(patience=LONG)

    def projects(self, entity: str, *, page_size: int = 200) -> Iterator[Project]:
        """The projects of an entity; none if the entity does not exist or is closed to the key."""

        def build(f: Fields) -> str:
            project = f.of("Project", ("id", "name", "entityName", "description", "createdAt"))
            return (
                "query Projects($entity: String!, $first: Int!, $after: String) {"
                " models(entityName: $entity, first: $first, after: $after) {"
                f" edges {{ cursor node {{ {project} }} }} pageInfo {{ endCursor hasNextPage }} }} }}"
            )

        after: str | None = None
        cursors: set[str | None] = {None}
        while True:
            data, _ = self.ask(build, {"entity": entity, "first": page_size, "after": after})
            page = data.get("models")
            for node in nodes(page):
                yield self.project_of(node, entity)
            after = next_cursor(page)
            if after in cursors:
                return
            cursors.add(after)

    def has_project(self, entity: str, project: str) -> bool:
        """Whether there is a project of that name that the key may see."""
        return self.project(entity, project) is not None

    def project(self, entity: str, project: str) -> Project | None:
        """The project of that name, if the key may see one. One that has another name now is answered under that one,
        where a server remembers the old one; so the variables have names that nobody checks."""

        def build(f: Fields) -> str:
            return (
                "query Project($in: String!, $called: String!) {"
                f" project(name: $called, entityName: $in) {{ {f.of('Project', ('id', 'name', 'createdAt'))} }} }}"
            )

        data, _ = self.ask(build, {"in": entity, "called": project})
        found = data.get("project")
        if not isinstance(found, dict) or found.get("name") != project:
            return None
        return self.project_of(found, entity)

    def project_of(self, node: dict[str, Any], entity: str) -> Project:
        return Project(
            source=self.source,
            entity=node.get("entityName") or entity,
            name=node["name"],
            storage_id=node.get("id"),
            description=node.get("description"),
            created_at=when(node.get("createdAt")),
            run_count=node.get("runCount"),
            read_only=node.get("readOnly"),
        )


def _check_subject(base_url: str, data: dict[str, Any], variables: dict[str, Any]) -> None:
    """Refuse an answer that names another project or run than `variables` do: runs of two projects may well have the
    same ids, and their rows must never be mixed. W&B finds projects whatever the case of their names."""
    project = data.get("project")
    if not isinstance(project, dict):
        return
    said = {"project": project.get("name"), "entity": project.get("entityName")}
    for alias, node in project.items():
        if isinstance(node, dict) and (alias == "run" or re.fullmatch(r"r\d+", alias)):
            said["name" if alias == "run" else f"n{alias[1:]}"] = node.get("name")
    for variable, name in said.items():
        asked = variables.get(variable)
        if isinstance(name, str) and isinstance(asked, str) and name.casefold() != asked.casefold():
            raise TransientSourceError(
                f"`{base_url}` answers about `{name}` when it is asked for `{asked}`: if that was renamed, "
                "use the new name; else try again later"
            )


def nodes(connection: Any) -> Iterator[dict[str, Any]]:
    """The nodes of a connection; nulls (things one may not see) are left out."""
    for edge in (connection or {}).get("edges") or ():
        node = (edge or {}).get("node")
        if isinstance(node, dict):
            yield node


def next_cursor(connection: Any) -> str | None:
    """Where the next page starts, None after the last. An empty page is not the last one."""
    info = (connection or {}).get("pageInfo") or {}
    if not info.get("hasNextPage"):
        return None
    edges = (connection or {}).get("edges") or ()
    cursor = info.get("endCursor") or (edges[-1].get("cursor") if edges and edges[-1] else None)
    return str(cursor) if cursor else None


def when(text: Any) -> datetime | None:
    """A wire time; UTC where it names no zone. None if it is none."""
    if not isinstance(text, str):
        return None
    head, dot, tail = text.strip().replace("Z", "+00:00").partition(".")
    if dot:  # Python 3.10 reads fractions of three or six digits only
        digits = len(tail) - len(tail.lstrip("0123456789"))
        head = f"{head}.{tail[:digits][:6]:0<6}{tail[digits:]}"
    try:
        at = datetime.fromisoformat(head)
    except ValueError:
        return None
    return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)
