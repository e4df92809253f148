"""A source that needs no list of what to sync: it knows all its projects (run folders, an MLflow store)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mirror.records import Project
from mirror.sources.protocol import Source


class Places(Source, Protocol):
    """`errors` are what of it could not be read, `notices` what else is to be said of it; both grow while it is
    read. `whole` is an entity of which `places` names every project, so that what is held and not named is gone."""

    errors: list[str]
    notices: list[str]
    whole: str | None

    def places(self) -> Sequence[Project]:
        """The projects there are. Raises SourceError."""
        ...
