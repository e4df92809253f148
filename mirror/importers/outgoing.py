"""What of a mirrored run goes out, where that depends on the kind of its source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mirror.errors import MirrorError
from mirror.importers.from_mlflow.config import typed_config
from mirror.importers.from_mlflow.copy import read_copy
from mirror.importers.from_mlflow.lines import MlflowLines, mirrored_points
from mirror.importers.from_mlflow.system import MlflowSystemLines
from mirror.importers.lines import RunLines
from mirror.importers.origin import origin_of
from mirror.importers.together import Ready

if TYPE_CHECKING:
    from mirror.records import RunKey
    from mirror.store import Reader
    from mirror.wandb.client import Client
    from mirror.wandb.held import HeldRun


class Diverged(MirrorError):
    """The destination holds something else under the run's id."""


class Lines(Protocol):
    """The lines of one stream of one run; see `mirror.importers.lines`."""

    @property
    def shortened(self) -> int: ...

    def shifted(self, rows: int) -> int: ...

    def parts(self, first_row: int) -> Iterator[list[str]]: ...


class Streams(NamedTuple):
    """The lines of history and of system metrics, and how many there are of each."""

    history: Lines
    rows: int
    system: Lines
    samples: int


def gathered(row: Mapping[str, Any]) -> bool:
    """Whether a run's rows are points, which become rows when they are sent."""
    return str(row["source"]).startswith("mlflow:")


def streams_of(
    reader: Reader, row: Mapping[str, Any], client: Client, key: RunKey, held: HeldRun | None, ready: Ready
) -> Streams:
    """What is to be sent of a run, of which the destination may hold a beginning; `row` is its row of `runs_raw`.
    Raises Diverged if the destination holds what can be no beginning."""
    if not gathered(row):
        logged = RunLines(reader, row["rid"], "history", ready.history)
        samples_logged = RunLines(reader, row["rid"], "system", ready.system)
        return Streams(logged, row["history_rows"], samples_logged, row["system_rows"])
    began = row.get("created_at")
    seconds = None if began is None else began.timestamp()
    points, after, samples = mirrored_points(reader, row["rid"]), None, 0
    if held is not None and version_of(row, held) != _version(row):
        copy = read_copy(reader, row["rid"], client, key, held)
        if copy.foreign:
            raise Diverged(
                f"`{key.path}` holds {copy.foreign} points that the run has not in the mirror: sync the mirror first; "
                "if it is another run, delete it there or send the project somewhere else (--remap)"
            )
        points, after, samples = copy.points, copy.history, copy.system
    history, system = MlflowLines(points, seconds, after), MlflowSystemLines(points, seconds, samples)
    return Streams(history, history.rows, system, system.rows)


def version_of(row: Mapping[str, Any], held: HeldRun | None) -> str | None:
    """Which points the first rows at the destination were gathered of, for runs whose points are: it stands in the
    origin there as long as there are rows."""
    if not gathered(row):
        return None
    if held is None or not (held.history or held.system):
        return _version(row)
    return str(origin_of(held.config).get("version"))


def _version(row: Mapping[str, Any]) -> str:
    text = "|".join(str(row[name]) for name in ("source", "storage_id", "history_gen", "history_rows"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def config_of(row: Mapping[str, Any]) -> str | None:
    """A run's config as it is sent, but for its origin."""
    return typed_config(row["config_raw"]) if gathered(row) else row["config_raw"]
