"""Pages of runs. A listing is made once, as a list of rids, and its pages are cut from that list: runs that change
or appear while somebody pages through it neither move nor repeat others (a known trouble of long listings).

A cursor names the listing, the position and the run it stands on. When the listing is not held any more (it was
one of many, or the server restarted) it is made again, and the page starts after that run.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mirror.errors import UsageError
from mirror.server import ids

_HELD = 32
MAX_PAGE = 5000
"""W&B's real limit is not documented; its guides say 1,000."""


@dataclass(frozen=True)
class Page:
    """`items` with the cursor of each; `total` is the length of the listing."""

    items: list[tuple[str, int]]
    more: bool
    total: int


class Listings:
    def __init__(self) -> None:
        self._held: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def listed(self, state: tuple[Any, ...], make: Callable[[], list[int]]) -> tuple[str, array[int]]:
        """The listing for a state of the mirror and a question, and its name."""
        name = hashlib.blake2b(repr(state).encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()
        held = self._get(name)
        if held is None:
            held = array("q", make())
            with self._lock:
                self._held[name] = held
                if len(self._held) > _HELD:
                    self._held.popitem(last=False)
        return name, held

    def _get(self, name: str) -> array[int] | None:
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
            return self._held.get(name)

    def page(self, state: tuple[Any, ...], make: Callable[[], list[int]], first: int | None, after: str | None) -> Page:
        """`first` runs (50 if not given) after the cursor `after`."""
        first = 50 if first is None else first
        if first < 0:
            raise UsageError(f"`first: {first}` asks for fewer than no runs")
        first = min(first, MAX_PAGE)
        if after:
            name, start, listing = self._continued(after, state, make)
        else:
            name, listing = self.listed(state, make)
            start = 0
        rids = listing[start : start + first]
        items = [(ids.encode("Cursor", name, start + n, rid), rid) for n, rid in enumerate(rids)]
        return Page(items, start + len(rids) < len(listing), len(listing))

    def _continued(
        self, after: str, state: tuple[Any, ...], make: Callable[[], list[int]]
    ) -> tuple[str, int, array[int]]:
        parts = ids.decode(after, "Cursor", 3)
        if parts is None or not (parts[1].isdigit() and parts[2].isdigit()):
            raise UsageError(f"`{after[:100]}` is no cursor of this server: start again without `after`")
        name, position, rid = parts[0], int(parts[1]), int(parts[2])
        listing = self._get(name)
        if listing is None:
            name, listing = self.listed(state, make)
            try:
                position = listing.index(rid)
            except ValueError:
                position = min(position, len(listing)) - 1
        return name, position + 1, listing
