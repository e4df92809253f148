"""One rate budget for all workers, fed by what the server says about its limits.

W&B answers 429 with `RateLimit-Reset` (seconds) or `Retry-After` (seconds or a date), and every answer
carries `RateLimit-Remaining` on a scale of 0 to 1000 in fixed windows. In a fixed window it
costs nothing to go on until nothing remains, so the budget only ever stops everybody, for as long as told.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from mirror.errors import MirrorError, Transient


class Stopped(MirrorError, Transient):
    """The user asked to stop while a request was waiting."""


class Budget:
    """Shared by the threads that ask one server. `stop` ends every wait."""

    FIRST_PAUSE = 1.0
    LONGEST_PAUSE = 60.0
    """Bounds of the waits we choose ourselves, in seconds; a server may ask for longer ones."""
    LONGEST_ASKED = 3600.0
    """A server that asks for more than this is obeyed for this long and then asked again."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()
        self._lock = threading.Lock()
        self._until = 0.0
        self._refusals = 0

    @property
    def pause(self) -> float:
        """Seconds everybody still has to wait; 0 if nobody has to."""
        return max(0.0, self._until - time.monotonic())

    def wait(self) -> float:
        """Block while the budget is spent. Returns the time at which the caller may send its request."""
        while (left := self.pause) > 0:
            # A little apart, so that a dozen workers do not come back in the same millisecond.
            self.sleep(left + random.uniform(0, 0.05))
        if self.stop.is_set():
            raise Stopped("stopped")
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for one's own reasons, e.g. before a retry. Raises Stopped as soon as `stop` is set."""
        if self.stop.wait(seconds):
            raise Stopped("stopped")

    def heard(self, status: int, headers: Mapping[str, str], sent_at: float) -> None:
        """Learn from an answer to a request that was sent at `sent_at` (as `wait` returned it)."""
        if status == 429:
            self._refused(headers, sent_at)
            return
        remaining = _number(headers.get("RateLimit-Remaining"))
        reset = _number(headers.get("RateLimit-Reset"))
        with self._lock:
            self._refusals = 0
            if remaining is not None and remaining <= 0 and reset is not None:
                self._pause_for(reset)

    def _refused(self, headers: Mapping[str, str], sent_at: float) -> None:
        told = told_to_wait(headers)
        with self._lock:
            if told is not None:
                self._pause_for(told)
            elif sent_at >= self._until:
                # Nobody said how long: double it each time, once for all requests that were under way.
                own = min(self.FIRST_PAUSE * 2**self._refusals, self.LONGEST_PAUSE)
                self._refusals += 1
                self._pause_for(own * random.uniform(1, 1.25))

    def _pause_for(self, seconds: float) -> None:
        until = time.monotonic() + min(max(seconds, 0.0), self.LONGEST_ASKED)
        self._until = max(self._until, until)


def told_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds a refusal asks to wait: `Retry-After` as seconds or as a date, else `RateLimit-Reset`."""
    after = headers.get("Retry-After")
    if after is not None:
        if (seconds := _number(after)) is not None:
            return seconds
        try:
            date = parsedate_to_datetime(after)
        except ValueError:
            pass
        else:
            if date.tzinfo is None:
                date = date.replace(tzinfo=timezone.utc)
            return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
    return _number(headers.get("RateLimit-Reset"))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is None or 0 <= value < 1e9 else None
