"""When a run that could not be fetched is tried again.

The first failure is often a passing one: the next sync tries again at once. From then on a run is left alone
for ten minutes, doubled with every failure up to a day, so that a poisoned run costs little and is still
picked up when its source has mended it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from mirror.records import Failure, RunKey

_FIRST = timedelta(minutes=10)
_LONGEST = timedelta(days=1)


def failure(key: RunKey, stage: str, error: str, before: Failure | None, now: datetime) -> Failure:
    """The record of a failure, `before` being that of the last one at the same stage."""
    attempts = 1 + (before.attempts if before else 0)
    return Failure(key, stage, error, attempts, now + pause_after(attempts))


def pause_after(attempts: int) -> timedelta:
    """How long a run is left alone after so many failed attempts."""
    if attempts < 2:
        return timedelta(0)
    return min(_FIRST * (1 << min(attempts - 2, 20)), _LONGEST)


class Quarantine:
    """The failures of a project's runs, by run and stage."""

    def __init__(self, failures: Iterable[Failure]) -> None:
        self._by_run: dict[str, dict[str, Failure]] = {}
        for f in failures:
            self._by_run.setdefault(f.key.storage_id, {})[f.stage] = f

    def of(self, key: RunKey) -> Mapping[str, Failure]:
        """The failures of a run by stage; none for most."""
        return self._by_run.get(key.storage_id, {})

    def waiting(self, key: RunKey, now: datetime) -> list[Failure]:
        """What keeps a run from being asked for now; empty if nothing does."""
        return [f for f in self.of(key).values() if f.next_try > now]
