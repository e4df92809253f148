"""Sweeps at a destination: it gives ids of its own, so each is made once and known again by its description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.errors import SourceError
from mirror.importers.places import Namespace
from mirror.query.sql import asking
from mirror.records import Sweep
from mirror.wandb.mutations import upsert_sweep
from mirror.wandb.sweeps import list_sweeps

if TYPE_CHECKING:
    from mirror.store import Reader
    from mirror.wandb.client import Client

SweepKey = tuple[str, str, str, str]
"""Source, entity, project, sweep id."""

_ENDED = "FINISHED"
_STATES = {"FINISHED", "STOPPED", "CANCELED", "PAUSED", "PENDING"}


@dataclass(frozen=True)
class Copied:
    """A sweep of the mirror, and what a copy of it is like; `mark` ends the description of the copy."""

    sweep_id: str
    name: str | None
    description: str
    state: str
    config: str
    mark: str

    def among(self, known: Iterable[Sweep]) -> Sweep | None:
        """The copy of it, if it is one of these."""
        return next((sweep for sweep in known if (sweep.description or "").endswith(self.mark)), None)


def copied_sweeps(reader: Reader, source: str, here: Namespace) -> list[Copied]:
    """The sweeps of a mirrored project."""
    with asking(reader) as connection:
        held = connection.execute(
            "select sweep_id, name, description, state, config_raw from sweeps where source = ? and entity = ? "
            "and project = ? and deleted_at is null order by created_at, sweep_id",
            [source, here.entity, here.project],
        ).fetchall()
    found = []
    for sweep_id, name, description, state, config in held:
        mark = f"Copied from {source}/{here.path}/sweeps/{sweep_id}"
        said = f"{description}\n\n{mark}" if description else mark
        # An agent would start new runs in a copy that still looks for some.
        found.append(Copied(sweep_id, name, said, state if state in _STATES else _ENDED, config or "{}", mark))
    return found


def copy_sweeps(
    reader: Reader, client: Client, places: Mapping[tuple[str, Namespace], Namespace]
) -> tuple[dict[SweepKey, str], list[str]]:
    """Make the sweeps of some projects where they are not there yet. Returns the id of each copy, and what went
    wrong."""
    copies: dict[SweepKey, str] = {}
    errors: list[str] = []
    for (source, here), there in places.items():
        wanted = copied_sweeps(reader, source, here)
        if not wanted:
            continue
        try:
            known, _ = list_sweeps(client, there.entity, there.project)
            for sweep in wanted:
                copy = sweep.among(known)
                copies[source, here.entity, here.project, sweep.sweep_id] = (
                    copy.sweep_id
                    if copy is not None
                    else upsert_sweep(
                        client,
                        there.entity,
                        there.project,
                        sweep.config,
                        name=sweep.name,
                        description=sweep.description,
                        state=sweep.state,
                    )
                )
        except SourceError as e:
            errors.append(f"sweeps of {here.path}: {e}")
    return copies, errors
