"""What a sync will cost: about how many requests and bytes, from its plan and from what earlier syncs needed.

A simple model counts what has to be asked for; what earlier syncs of the same source really took, held against what
the model says of them, corrects it. New artifacts and bytes of files are in no listing, so they are in no estimate
either, unless earlier syncs had their like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mirror.store import Reader
from mirror.sync.plan import RUNS_TOGETHER, Plan

_FOR_A_PROJECT = 4
"""Requests that a project takes in any case: its listing, what kinds of items it has."""
_LISTED, _PROJECT_BYTES = 1000, 1500
"""Runs to a page of the listing; what an answer has besides what was asked for."""
_LISTED_BYTES, _RUN_BYTES, _ROW_BYTES, _EVENT_BYTES = 600, 5000, 150, 600
"""Bytes of a run in the listing, of its documents and list of files, of a row of history, of system metrics."""
_PAGE = 10_000
"""Rows that earlier syncs asked for at once."""
_MOST = 20.0
"""By how much experience corrects the model at most."""

_PAST = """
select count(*), sum(runs_listed), sum(runs_new), sum(runs_changed), sum("rows"), sum(requests), sum(bytes)
from sync_log where source = ? and outcome <> 'unreachable'
"""
_EVENTS = "select sum(system_rows) from runs where source = ?"


@dataclass(frozen=True)
class Estimate:
    """About how many requests and bytes."""

    requests: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Experience:
    """By what earlier syncs of a source took more (or less) than the model says of them; `syncs` is how many."""

    requests: float = 1.0
    bytes: float = 1.0
    syncs: int = 0


def experience(root: Path, source: str) -> Experience:
    """What the mirror at `root` knows of its earlier syncs from this source."""
    with Reader(root) as reader:
        db = reader.connect()
        count, listed, new, changed, rows, requests, nbytes = db.execute(_PAST, [source]).fetchone() or (0,) * 7
        (events,) = db.execute(_EVENTS, [source]).fetchone() or (0,)
    if not count or not requests or not nbytes:
        return Experience()
    model = _model(count, int(listed), int(new), int(changed), int(rows), int(events or 0), _PAGE)
    pairs = zip((requests, nbytes), model, strict=True)
    asked, read = (min(max(took / said, 1 / _MOST), _MOST) for took, said in pairs)
    return Experience(asked, read, count)


def estimate(plan: Plan, listed: int, page_rows: int, known: Experience) -> Estimate:
    """What fetching a plan will cost, its listing of so many runs included."""
    events = sum(max(0, (w.listed.events_lines or 0) - w.system.rows) for w in (*plan.new, *plan.changed))
    again = len(plan.changed) + len(plan.rechecked)
    requests, nbytes = _model(1, listed, len(plan.new), again, plan.new_rows, events, page_rows)
    return Estimate(math.ceil(requests * known.requests), math.ceil(nbytes * known.bytes))


def _model(
    projects: int, listed: int, new: int, changed: int, rows: int, events: int, page_rows: int
) -> tuple[float, float]:
    """Requests and bytes. A run's metadata is a file of its own; documents and short histories come many at once."""
    together = math.ceil((new + changed) / RUNS_TOGETHER)
    requests = _FOR_A_PROJECT * projects + listed // _LISTED + 3 * together + new + rows / max(page_rows, 1)
    nbytes = (
        _PROJECT_BYTES * requests
        + _LISTED_BYTES * listed
        + _RUN_BYTES * (new + changed)
        + _ROW_BYTES * rows
        + _EVENT_BYTES * events
    )
    return requests, nbytes
