"""The server that is compared with, and what runs and projects of the mirror are called there."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirror.credentials import find
from mirror.errors import UsageError
from mirror.importers.places import Namespace, Remapping, RunName
from mirror.importers.sent import Sent
from mirror.paths import api_url, canonical_source
from mirror.query.sql import asking
from mirror.sources.wandb import WandbSource
from mirror.wandb.budget import Budget
from mirror.wandb.client import Client
from mirror.wandb.transport import Transport

if TYPE_CHECKING:
    from mirror.store import Reader


@dataclass(frozen=True)
class HeldProject:
    """A project of the mirror, the runs of it that are to be compared (rows of `runs_raw`), and whether that is all
    of them."""

    source: str
    here: Namespace
    runs: Sequence[Mapping[str, Any]]
    whole: bool


@dataclass(frozen=True)
class Other:
    """`remapping` says where projects went; of those it does not name, and of the ids of runs, `sent` tells."""

    source: WandbSource
    remapping: Remapping = field(default_factory=dict)
    sent: Sent | None = None

    def is_origin(self, held: HeldProject) -> bool:
        """Whether a project is to be compared with what it was mirrored from."""
        return held.source == self.source.name and held.here not in self.remapping

    def knows(self, held: HeldProject) -> bool:
        """Whether the project came from there, or went there."""
        went = self.sent is not None and self.sent.project(held.source, held.here) is not None
        return held.source == self.source.name or held.here in self.remapping or went

    def place(self, held: HeldProject) -> Namespace:
        """What a project is called there."""
        return held.here if self.is_origin(held) else self.places(held.source).get(held.here, held.here)

    def places(self, source: str) -> dict[Namespace, Namespace]:
        """Where projects of a source went."""
        return {**(self.sent.projects(source) if self.sent else {}), **self.remapping}

    def copy(self, held: HeldProject, row: Mapping[str, Any]) -> tuple[Namespace, str, bool]:
        """The namespace and the id of a run there, and whether it is known to have been sent."""
        if self.is_origin(held):
            return held.here, row["run_id"], False
        forced = self.remapping.get(held.here)
        found = self.sent.run(row["source"], row["storage_id"], forced) if self.sent else None
        return (*found, True) if found is not None else (forced or self.place(held), row["run_id"], False)

    def run_name(self, source: str, run: RunName) -> RunName:
        """The same of a run of another project, by its name."""
        here = Namespace(run[0], run[1])
        place = self.places(source).get(here, here)
        return self.copied(source, run) or (place.entity, place.project, run[2])

    def copied(self, source: str, run: RunName) -> RunName | None:
        """The same; None if it is not known to have been sent."""
        forced = self.remapping.get(Namespace(run[0], run[1]))
        found = self.sent.run_name(source, run, forced) if self.sent else None
        return (found[0].entity, found[0].project, found[1]) if found is not None else None


def connected(reader: Reader, url: str, workers: int, stop: threading.Event | None = None) -> WandbSource:
    """The server at a URL, with the key an import would use for it: MIRROR_SRC_API_KEY for a server that runs came
    from, MIRROR_DST_API_KEY for another; without them as for a sync. `stop` ends waits. Raises SourceError if it
    does not answer or refuses the key, and UsageError if it serves this very mirror, which would prove nothing."""
    base_url = api_url(url)
    with asking(reader) as connection:
        came_from = {host for (host,) in connection.execute("select distinct source from projects").fetchall()}
    variable = "MIRROR_SRC_API_KEY" if canonical_source(base_url) in came_from else "MIRROR_DST_API_KEY"
    credential = find(base_url, key=os.environ.get(variable))
    transport = Transport(base_url, credential, budget=Budget(stop), connections=3 * workers + 4)
    source = WandbSource(Client(transport), downloads=2 * workers)
    try:
        source.viewer()
        if source.store_id is not None and source.store_id == reader.snapshot.content["store_id"]:
            raise UsageError(f"`{url}` serves this very mirror: name the server the runs came from, or went to")
    except BaseException:
        source.close()
        raise
    return source
