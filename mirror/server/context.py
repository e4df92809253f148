"""What a resolver can reach: the served mirror, the state this request sees, and where the client reached us."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from graphql import FieldNode, FragmentSpreadNode, GraphQLResolveInfo, SelectionSetNode, ValueNode, VariableNode

from mirror.server.access.asker import asker
from mirror.server.home import Home
from mirror.server.look import Found, Look

if TYPE_CHECKING:
    from mirror.server.access.auth import Signer
    from mirror.server.artifacts.artifacts import Artifacts
    from mirror.server.history.exports import Exports
    from mirror.server.listings import Listings
    from mirror.server.sweeps.sweeps import Sweeps


@dataclass
class Context:
    """One request. `base_url` is how the client reached the server, so links lead back the same way."""

    home: Home
    artifacts: Artifacts
    exports: Exports
    listings: Listings
    signer: Signer
    sweeps: Sweeps
    base_url: str
    authorized: bool
    username: str
    user_email: str = ""
    user_agent: str = ""
    _look: list[Look] = field(default_factory=list)

    def link(self, path: str, *, sign: str | None = None) -> str:
        """The URL of a path; with a signature that lets it be used without a key for the method `sign`."""
        url = self.base_url + quote(path)
        return f"{url}?{self.signer.sign(sign, path)}" if sign else url

    @property
    def entity(self) -> str:
        """The entity that is meant when none is named."""
        return asker().name or self.home.entity

    @property
    def look(self) -> Look:
        if not self._look:
            self._look.append(self.home.look())
        return self._look[0]

    def look_again(self) -> Look:
        """See what a mutation has changed."""
        self._look.clear()
        return self.look


@dataclass(frozen=True)
class ProjectNode:
    entity: str
    name: str


@dataclass
class RunNode:
    """A run as the source of the fields of type `Run`."""

    found: Found
    look: Look

    @cached_property
    def whole(self) -> Found:
        return self.look.whole(self.found)

    @property
    def key(self) -> Any:
        return self.found.run.key


def context(info: GraphQLResolveInfo) -> Context:
    found = info.context
    assert isinstance(found, Context)
    return found


def selected(info: GraphQLResolveInfo) -> list[FieldNode]:
    """Every field below the one that is being resolved, at any depth, fragments included."""
    found: list[FieldNode] = []
    seen: set[str] = set()

    def walk(selections: SelectionSetNode | None) -> None:
        for node in selections.selections if selections else ():
            if isinstance(node, FragmentSpreadNode):
                if node.name.value not in seen:
                    seen.add(node.name.value)
                    walk(info.fragments[node.name.value].selection_set)
                continue
            if isinstance(node, FieldNode):
                found.append(node)
            walk(node.selection_set)

    for node in info.field_nodes:
        walk(node.selection_set)
    return found


def argument(info: GraphQLResolveInfo, node: FieldNode, name: str) -> str | None:
    """A string argument of a field below, where it is given."""
    for given in node.arguments or ():
        if given.name.value == name:
            return _text(info, given.value)
    return None


def _text(info: GraphQLResolveInfo, value: ValueNode) -> str | None:
    if isinstance(value, VariableNode):
        # graphql-core 3.3 wraps the variables in an object, 3.2 hands out a dict.
        variables = getattr(info.variable_values, "coerced", info.variable_values)
        found = variables.get(value.name.value)
    else:
        found = getattr(value, "value", None)
    return found if isinstance(found, str) else None
