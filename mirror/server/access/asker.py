"""Who asks, and what he may see.

The HTTP side says who asks before it calls a handler; everything that looks something up goes by it (`Look`). What one
may not see does not exist for him. Outside a request nobody asks, and looking up fails: a job of the server's own
says that it sees everything (`Home.whole_look`).
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from mirror.errors import NotFoundError


@dataclass(frozen=True)
class Asker:
    """A user. `entities` are his own and his teams; None means all: the key of the server itself."""

    name: str
    entities: frozenset[str] | None = frozenset()

    def sees(self, entity: str) -> bool:
        return self.entities is None or entity in self.entities


EVERYTHING = Asker("", None)
NOBODY = Asker("")

_ASKER: ContextVar[Asker] = ContextVar("asker")


def set_asker(asker: Asker) -> None:
    """Say who asks, for the rest of this request: each has a context of its own, which its threads share."""
    _ASKER.set(asker)


def asker() -> Asker:
    """Who asks. `LookupError` outside a request."""
    return _ASKER.get()


def check_entity(entity: str) -> None:
    """Refuse to make something in an entity that does not exist for whoever asks."""
    if not asker().sees(entity):
        raise NotFoundError(f"entity `{entity}` not found: log to one of yours, or ask who runs the server to add you")
