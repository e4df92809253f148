"""What a place in MLflow is asked where mirrored runs go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

from mirror.errors import SourceError
from mirror.records import FileEntry
from mirror.sources.mlflow.points import Point, Points
from mirror.sources.mlflow.road import Json

IDENTITY, VERSION = "mirror.id", "mirror.version"
"""Tags of a copy: which run of which source it is, by which it is found again; and its version."""
ENTITIES, PAIRS = 1000, 100
"""Points, params and tags together, and params or tags alone, that MLflow takes at once."""

Pairs: TypeAlias = Mapping[str, str]


class Destination(Protocol):
    """Experiments, runs and files are as in MLflow's REST API. Raises SourceError. Used by several threads at once."""

    notices: list[str]
    """What a user should know about how it is written."""

    side_by_side: bool
    """Whether parts of a run are sent faster at the same time."""

    @property
    def name(self) -> str:
        """The canonical name, as that of the same store as a source."""
        ...

    def open(self) -> None:
        """Get ready for writing."""
        ...

    def experiment(self, name: str) -> Json | None:
        """Also a deleted one, whose name stays taken."""
        ...

    def make_experiment(self, name: str) -> str:
        """Its id."""
        ...

    def copies(self, experiment: str, identities: Sequence[str]) -> dict[str, str]:
        """Ids of the runs that are there, not deleted, with one of these identities, or at least of those, by
        identity; the oldest of each."""
        ...

    def active(self, experiment: str, run_ids: Sequence[str]) -> dict[str, Json]:
        """Runs that are there and not deleted, by id."""
        ...

    def make_run(self, experiment: str, name: str, began: int, tags: Pairs) -> str:
        """Its id; that of the run with the same identity if it was made without an answer."""
        ...

    def log(self, run_id: str, points: Iterator[Point], params: Pairs, tags: Pairs) -> Iterator[int]:
        """Write them as it is gone through, which tells how many points have been written each time. Points come by
        name, no two of them are the same, and none is there yet."""
        ...

    def update(self, run_id: str, changes: Json) -> None:
        """`run_name`, `status`, perhaps `end_time`."""
        ...

    def points(self, runs: Sequence[Json]) -> AbstractContextManager[Mapping[str, Points | SourceError]]:
        """All points that are there of some runs, by run id."""
        ...

    def files(self, run: Json) -> list[FileEntry] | None: ...

    def put_file(self, experiment: str, run_id: str, name: str, content: bytes | Path) -> None: ...


def pairs(listed: Iterable[Json] | None) -> dict[str, str]:
    """Params or tags as MLflow lists them."""
    return {one["key"]: one.get("value", "") for one in listed or ()}
