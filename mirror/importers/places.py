"""Where runs go: namespaces, and which becomes which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mirror.errors import UsageError
from mirror.paths import parse


@dataclass(frozen=True)
class Namespace:
    """An entity and a project, as W&B's old importers name them."""

    entity: str
    project: str

    @classmethod
    def from_path(cls, path: str) -> Namespace:
        """`entity/project` or the URL of a project. Raises UsageError."""
        found = parse(path, want="project")
        if found.entity is None or found.project is None or found.run_id is not None:
            raise UsageError(f"`{path}` is no namespace: write entity/project")
        return cls(found.entity, found.project)

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}"

    @property
    def send_path(self) -> str:
        """The name of `path` in W&B's old importers."""
        return self.path


Remapping = Mapping[Namespace, Namespace]

RunName = tuple[str, str, str]
"""Entity, project, run id."""


def remapping(texts: Iterable[str]) -> dict[Namespace, Namespace]:
    """What `--remap a/b=c/d` says. Raises UsageError."""
    found: dict[Namespace, Namespace] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        if not equals:
            raise UsageError(f"`{text}` maps nothing: write --remap entity/project=entity/project")
        here = Namespace.from_path(left)
        if here in found:
            raise UsageError(f"`{here.path}` is mapped twice: it can become one project")
        found[here] = Namespace.from_path(right)
    return found
