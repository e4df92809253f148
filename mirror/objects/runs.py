"""`Runs`: many runs, read a page at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from mirror.objects.run import Run, read
from mirror.store import Reader

_PAGE = 200


class Runs(Sequence[Run]):
    """A sequence of runs in the order that was asked for; `len()` is the count, iterating reads page by page."""

    def __init__(self, reader: Reader, rids: Sequence[int]) -> None:
        self._reader = reader
        self._rids = rids

    def __len__(self) -> int:
        return len(self._rids)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> Run | Runs:
        if isinstance(index, slice):
            return Runs(self._reader, self._rids[index])
        return Run(self._reader, self._rids[index])

    def __iter__(self) -> Iterator[Run]:
        for start in range(0, len(self._rids), _PAGE):
            page = self._rids[start : start + _PAGE]
            found = read(self._reader, page)
            for rid in page:
                if rid in found:  # else purged since the list was made
                    yield Run(self._reader, rid, found[rid])

    def __repr__(self) -> str:
        return f"<Runs: {len(self)}>"
