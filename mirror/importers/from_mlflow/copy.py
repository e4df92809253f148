"""A copy of an MLflow run that is gone on with after points were logged: it is read back, and what it lacks is sent.

Points may come late, at times and steps that were sent before, and what a row is made of is not final until a run has
ended. So rows that are there stay as they are, whatever they hold is taken for what it says, and the points that are in
no row of them go into rows of their own behind them. That holds after any number of times, and wherever one broke off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.errors import TransientSourceError
from mirror.importers.from_mlflow.lines import After, Points
from mirror.importers.origin import CONFIG_KEY
from mirror.query.rows import stretches
from mirror.records import RunKey
from mirror.sources.mlflow.told import PointsTold
from mirror.sources.protocol import Finished, HistoryRead, Restart, Rows, SystemMetrics, Trouble, Wanted
from mirror.sources.wandb import WandbSource

if TYPE_CHECKING:
    from mirror.store import Reader
    from mirror.wandb.client import Client
    from mirror.wandb.held import HeldRun


@dataclass(frozen=True)
class Copy:
    """What follows what a copy holds: `points` are those it lacks, `foreign` counts those it should not have."""

    points: Points
    history: After
    system: int
    foreign: int


def read_copy(reader: Reader, rid: int, client: Client, key: RunKey, held: HeldRun) -> Copy:
    """Look through a copy. Raises TransientSourceError if not all of it can be read."""
    told = PointsTold(CONFIG_KEY)
    for cells in stretches(reader, rid, "history"):
        told.here(cells)
    after = _read(told, client, key)
    rows = {"history": after.rows, "system": after.system}
    for stream, count in (("history", held.history), ("system", held.system or 0)):
        if rows[stream] != count:
            raise TransientSourceError(
                f"of {count} rows of {stream}, `{client.source}` gives out {rows[stream]} of `{key.path}`, so that "
                "what it lacks cannot be told: run it again"
            )
    _, foreign = told.compare()
    return Copy(
        Points(told.ask, PointsTold.MISSING, 0), After(after.rows, after.last, after.step), after.system, foreign
    )


@dataclass
class _Seen:
    rows: int = 0
    system: int = 0
    last: str | None = None
    step: int = -1


def _read(told: PointsTold, client: Client, key: RunKey) -> _Seen:
    source = WandbSource(client, downloads=1)
    try:
        return _read_from(source, told, key)
    finally:
        source.downloads.close()


def _read_from(source: WandbSource, told: PointsTold, key: RunKey) -> _Seen:
    from mirror.store.cells import decode

    seen = _Seen()
    listed = source.listing(key.entity, key.project, [key.run_id]).runs
    for step in source.fetch([Wanted(one, what=frozenset({"history", "system"})) for one in listed]):
        match step:
            case Rows(rows=rows) if rows:
                batch = decode(rows, step.string_is_nonfinite)
                told.there(batch.table, "history")
                seen.rows += batch.rows
                seen.last, seen.step = rows[-1], max(seen.step, batch.last_step or 0)
            case Restart():
                told.forget("history")
                seen.rows, seen.last, seen.step = 0, None, -1
            case SystemMetrics(rows=rows) if rows:
                told.there(decode(rows).table, "system")
                seen.system += len(rows)
            case HistoryRead(fetched=fetched) if not (fetched.complete and fetched.lossless):
                raise TransientSourceError(f"`{key.path}` cannot be read back exactly: {fetched.note or fetched.road}")
            case Trouble():
                raise TransientSourceError(f"`{key.path}` cannot be read back ({step.stage}): {step.error}")
            case Finished(gone=True):
                raise TransientSourceError(f"`{source.name}` does not show run `{key.path}`: run it again")
            case _:
                pass
    return seen
