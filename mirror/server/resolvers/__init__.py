"""Resolvers by type and field. What is not here is read from the source by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mirror.server.resolvers import artifact_edits, artifacts, data, edits, people, projects, reports, runs, sweeps

RESOLVERS: dict[str, dict[str, Callable[..., Any]]] = {}
for _module in (people, projects, runs, data, edits, artifacts, artifact_edits, sweeps, reports):
    for _type, _fields in _module.RESOLVERS.items():
        RESOLVERS.setdefault(_type, {}).update(_fields)
