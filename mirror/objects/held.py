"""What the objects of one `Api` share: the mirror, the state of it they look at, who is meant where nobody is named."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from mirror.query.sql import Sandbox
    from mirror.store import Reader

Record = Mapping[str, Any]


class Held:
    """A mirror that is being asked. `source` narrows it to one host; `online` lets objects fetch file bytes from
    the server that was mirrored, at `base_url` (where it is known) with `api_key` (else that of `wandb login`)."""

    def __init__(
        self,
        reader: Reader,
        *,
        source: str | None = None,
        base_url: str | None = None,
        online: bool = False,
        api_key: str | None = None,
    ) -> None:
        self.reader = reader
        self.source = source
        self.base_url = base_url
        self.online = online
        self.api_key = api_key
        self._told: set[object] = set()

    def state(self) -> Sandbox:
        """The state of the mirror the reader is pinned to."""
        from mirror.query.sql import sandbox

        return sandbox(self.reader)

    def tell_once(self, about: object, message: str, stacklevel: int = 4) -> None:
        """A warning, the first time something is asked."""
        if about not in self._told:
            self._told.add(about)
            warnings.warn(message, stacklevel=stacklevel)

    @property
    def blobs(self) -> Path:
        return self.reader.layout.blobs


def select(state: Sandbox, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """The rows of a query of our own, as dictionaries."""
    from mirror.query.sql import dicts

    with state.explained(None):
        return dicts(state.cursor().execute(sql, list(params)))


def document(text: str | None) -> dict[str, Any]:
    """A JSON object; empty for a missing one and for text that is no object."""
    from mirror.store.documents import parse

    found = parse(text)
    return found if isinstance(found, dict) else {}
