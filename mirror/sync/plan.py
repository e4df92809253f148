"""What a sync will fetch: the listing compared with what is held.

A run is fetched when it is new or when anything its listing shows has changed. What a listing does not show
(an edit of the config after the run ended) is found by looking again at a twentieth of the unchanged runs in
each sync, those first that were not looked at for longest; all of them with `full`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from mirror.errors import SourceError
from mirror.portions import portions
from mirror.records import Failure, ListedRun, Listing
from mirror.sources.parts import ALL, RUN_PARTS
from mirror.sources.protocol import Held, Wanted
from mirror.store.catalog import Known, StreamState
from mirror.store.cells import fingerprint
from mirror.sync.quarantine import Quarantine

RECHECKED = 0.05
"""The part of the unchanged runs that is looked at again in each sync."""
RUNS_TOGETHER = 50

_LONG_AGO = datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Plan:
    """`waiting` are in quarantine and not due; `gone` are held and not listed; `back` were missing from the
    last listing and are there again, unchanged."""

    new: Sequence[Wanted] = ()
    changed: Sequence[Wanted] = ()
    rechecked: Sequence[Wanted] = ()
    unchanged: int = 0
    waiting: Sequence[Failure] = ()
    gone: Sequence[Known] = ()
    back: Sequence[Known] = ()
    held: int = 0

    @property
    def wanted(self) -> list[Wanted]:
        return [*self.new, *self.changed, *self.rechecked]

    @property
    def new_rows(self) -> int:
        """About how many rows the new and changed runs have that are not held."""
        return sum(w.new_rows for w in (*self.new, *self.changed))

    def portions(self, rows: int) -> Iterator[list[Wanted]]:
        """The wanted runs in portions for a worker each: 50 runs, or about so many rows. Long ones first, so
        that no worker is left with one when the others are done."""
        long_first = sorted(self.wanted, key=lambda w: w.new_rows if w.new_rows > rows else 0, reverse=True)
        return portions(long_first, lambda wanted: wanted.new_rows, rows, RUNS_TOGETHER)


@dataclass
class _Sorting:
    new: list[Wanted] = field(default_factory=list)
    changed: list[Wanted] = field(default_factory=list)
    unchanged: list[Wanted] = field(default_factory=list)


def make_plan(
    listing: Listing,
    known: Mapping[str, Known],
    quarantine: Quarantine,
    *,
    now: datetime,
    full: bool = False,
    named: bool = False,
    what: frozenset[str] = ALL,
) -> Plan:
    """`named` if the listing holds runs a user named one by one: others are not gone, and all are tried. Of
    each run the parts in `what` are fetched, also those that were left out before."""
    sorting, waiting = _Sorting(), list[Failure]()
    for listed in listing.runs:
        if not (full or named) and (reasons := quarantine.waiting(listed.key, now)):
            waiting += reasons
            continue
        held = known.get(listed.key.storage_id)
        wanted = _wanted(listed, held, what)
        if held is None:
            sorting.new.append(wanted)
        elif wanted.missing & what or held.deleted or held.key != listed.key:
            sorting.changed.append(wanted)
        else:
            sorting.unchanged.append(wanted)
    unchanged = sorting.unchanged
    unchanged.sort(key=lambda w: known[w.key.storage_id].checked_at or _LONG_AGO)
    again = len(unchanged) if full or named else math.ceil(RECHECKED * len(unchanged))
    listed_ids = {listed.key.storage_id for listed in listing.runs}
    live = [k for k in known.values() if not k.deleted]
    return Plan(
        new=sorting.new,
        changed=sorting.changed,
        rechecked=[replace(w, glance=not (full or named)) for w in unchanged[:again]],
        unchanged=len(unchanged) - again,
        waiting=waiting,
        gone=[] if named or not listing.everything else [k for k in live if k.key.storage_id not in listed_ids],
        back=[k for w in unchanged[again:] if (k := known[w.key.storage_id]).missing],
        held=len(live),
    )


def remember(listed_fingerprint: str, memo: str, missing: frozenset[str] = frozenset()) -> str:
    """What is kept with a run for the next plan: what its listing showed, the parts that were left out, and its
    source's memo."""
    left_out = "".join(f"~{part}" for part in sorted(missing))
    return f"{listed_fingerprint}{left_out}/{memo}"


def _missing(listed: ListedRun, held: Known) -> frozenset[str]:
    """The parts of a run that may not be held as its listing shows it: all if that has changed."""
    seen, *left_out = (held.fingerprint or "").partition("/")[0].split("~")
    return frozenset(left_out) if seen == listed.fingerprint else RUN_PARTS | {"runs"}


def _kept(listed: ListedRun, held: Known, missing: frozenset[str]) -> frozenset[str]:
    """Streams that another source gave, and of which this one does not have more now (or less than it had, as after a
    rewind)."""
    counts = {"history": (listed.history_lines, held.history), "system": (listed.events_lines, held.system)}
    kept = set()
    for stream in held.elsewhere:
        if stream in counts:
            said, state = counts[stream]
            own = state.fetched.total if state.fetched else None
            if own is not None and said is not None and own <= said <= state.rows:
                kept.add(stream)
        elif stream not in missing:
            kept.add(stream)
    return frozenset(kept)


def _wanted(listed: ListedRun, held: Known | None, what: frozenset[str]) -> Wanted:
    what |= {"runs"}  # which come with any other part
    if held is None:
        return Wanted(listed, what=what, missing=RUN_PARTS)
    memo = held.fingerprint.partition("/")[2] if held.fingerprint else None
    missing = _missing(listed, held)
    kept = _kept(listed, held, missing)
    return Wanted(
        listed,
        Held() if "history" in kept else _held(held.history),
        Held() if "system" in kept else _held(held.system),
        Held() if "logs" in held.elsewhere else Held(held.logs.rows),
        memo,
        what=what - kept,
        missing=missing - kept,
    )


def _held(state: StreamState) -> Held:
    proven = state.fetched is not None and state.fetched.complete
    return Held(state.rows, state.last_step, state.pending, proven, _is_last(state.last_fingerprint))


def _is_last(last: str | None) -> Callable[[str], bool]:
    def is_last(row: str) -> bool:
        try:
            return fingerprint(row) == last
        except SourceError:
            return False

    return is_last
