"""How many things to ask for in one request: as many as a server takes, found by trying."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_GOOD_REQUESTS = 16


@dataclass
class _State:
    size: int
    limit: int
    """Sizes beyond failed lately."""
    trust: int = _GOOD_REQUESTS
    """So many requests have to go well before a size that failed is tried again."""
    good: int = 0


class Batch:
    """A size that doubles while all goes well, up to `most`, and is halved when a request fails. What failed is tried
    again after 16 good requests, and after twice as many each further time: a server that has recovered gets large
    requests again, and one that will never take them is rarely asked.

    Shared by threads. With `most_bytes`, answers should not grow beyond so many bytes either.
    """

    def __init__(self, start: int, most: int, *, least: int = 1, most_bytes: int = 0) -> None:
        self._least = least
        self._most = max(most, least)
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._state = _State(min(start, self._most), self._most)

    @property
    def size(self) -> int:
        return self._state.size

    @property
    def smallest(self) -> bool:
        return self._state.size <= self._least

    def went_well(self, asked: int, nbytes: int = 0) -> None:
        """A request for so many things was answered, in so many bytes."""
        with self._lock:
            now = self._state
            now.good += asked >= now.size  # a smaller one proves nothing
            if now.good >= now.trust and now.size >= now.limit and now.limit < self._most:
                now.limit, now.good = min(2 * now.limit, self._most), 0
            grown = max(now.size, min(2 * asked, now.limit))
            if nbytes and self._most_bytes:
                grown = min(grown, self._most_bytes * asked // nbytes)
            now.size = max(self._least, grown)

    def failed(self, asked: int) -> None:
        """A request for so many things failed, as far as one can tell for being too large."""
        with self._lock:
            now = self._state
            limit = max(self._least, min(now.limit, asked // 2))
            self._state = _State(min(now.size, limit), limit, min(2 * now.trust, 1024))

    def too_long(self, asked: int) -> None:
        """The answer was too long for the things that were in it; others may be shorter."""
        with self._lock:
            self._state.size = max(self._least, min(self._state.size, asked // 2))

    # -- when it was not the size -------------------------------------------------------------------------

    def remember(self) -> _State:
        with self._lock:
            now = self._state
            return _State(now.size, now.limit, now.trust, now.good)

    def restore(self, before: _State) -> None:
        """The failures since `before` was remembered had another reason than the size of requests."""
        with self._lock:
            self._state = before
