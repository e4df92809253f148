"""Sweeps at a destination: it gives ids of its own, so each is made once and known again by its description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mirror.errors import SourceError
from mirror.importers.places import Namespace
from mirror.query.sql import asking
from mirror.wandb.mutations import upsert_sweep
from mirror.wandb.sweeps import list_sweeps

if TYPE_CHECKING:
    from mirror.store import Reader
    from mirror.wandb.client import Client

SweepKey = tuple[str, str, str, str]
"""Source, entity, project, sweep id."""

_ENDED = "FINISHED"
_STATES = {"FINISHED", "STOPPED", "CANCELED", "PAUSED", "PENDING"}


def copy_sweeps(
    reader: Reader, client: Client, places: Mapping[tuple[str, Namespace], Namespace]
) -> tuple[dict[SweepKey, str], list[str]]:
    """Make the sweeps that runs of some projects belong to, where they are not there yet. Returns the id of each copy,
    and what went wrong."""
    copies: dict[SweepKey, str] = {}
    errors: list[str] = []
    for (source, here), there in places.items():
        with asking(reader) as connection:
            held = connection.execute(
                "select sweep_id, name, description, state, config_raw from sweeps where source = ? and entity = ? "
                "and project = ? and deleted_at is null order by created_at, sweep_id",
                [source, here.entity, here.project],
            ).fetchall()
        if not held:
            continue
        try:
            known, _ = list_sweeps(client, there.entity, there.project)
            for sweep_id, name, description, state, config in held:
                mark = f"Copied from {source}/{here.path}/sweeps/{sweep_id}"
                copy = next((s.sweep_id for s in known if (s.description or "").endswith(mark)), None)
                copies[source, here.entity, here.project, sweep_id] = copy or upsert_sweep(
                    client,
                    there.entity,
                    there.project,
                    config or "{}",
                    name=name,
                    description=f"{description}\n\n{mark}" if description else mark,
                    # An agent would start new runs in a copy that still looks for some.
                    state=state if state in _STATES else _ENDED,
                )
        except SourceError as e:
            errors.append(f"sweeps of {here.path}: {e}")
    return copies, errors
