"""Sweeps at a destination: it gives ids of its own, so each is made once and known again by its description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.errors import SourceError, TransientSourceError
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

COPIED = ("name", "description", "state", "config")
"""What a copy says as the sweep does."""

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

    def unlike(self, copy: Sweep | None) -> dict[str, str]:
        """What a copy is to be given to be like it; everything, if there is none."""
        wanted = {name: getattr(self, name) or "" for name in COPIED}
        if copy is None:
            return {name: value for name, value in wanted.items() if value}
        return {name: value for name, value in wanted.items() if value != (getattr(copy, name) or "")}


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
    """Make the sweeps of some projects where they are not there yet, and change copies whose originals changed since.
    Returns the id of each copy, and what went wrong."""
    copies: dict[SweepKey, str] = {}
    errors: list[str] = []
    for (source, here), there in places.items():
        wanted = copied_sweeps(reader, source, here)
        if not wanted:
            continue
        try:
            known, listing = list_sweeps(client, there.entity, there.project)
        except SourceError as e:
            errors.append(f"sweeps of {here.path}: {e}")
            continue
        for sweep in wanted:
            copy = sweep.among(known)
            try:
                if copy is None and not listing.complete:
                    raise TransientSourceError("not all sweeps that are there were listed: run it again")
                changed = sweep.unlike(copy)
                sweep_id = copy.sweep_id if copy is not None else None
                if sweep_id is None or changed:
                    storage_id = copy.key.storage_id if copy is not None else None
                    made = upsert_sweep(client, there.entity, there.project, storage_id=storage_id, **changed)
                    sweep_id = sweep_id or made
                copies[source, here.entity, here.project, sweep.sweep_id] = sweep_id
            except SourceError as e:
                errors.append(f"{here.path}/sweeps/{sweep.sweep_id}: {e}")
                if copy is not None:
                    copies[source, here.entity, here.project, sweep.sweep_id] = copy.sweep_id
    return copies, errors
