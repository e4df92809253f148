"""A list of things that is read once and then behaves like wandb's paginated ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

from mirror.query.text import safe

T = TypeVar("T")


class Listed(Sequence[T]):
    """A sequence; `next()` works on it too."""

    def __init__(self, items: Sequence[T], name: str = "") -> None:
        self._items = items
        self._name = name
        self._next = 0

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]

    def __next__(self) -> T:
        if self._next >= len(self):
            raise StopIteration
        self._next += 1
        return self._items[self._next - 1]

    next = __next__

    def __repr__(self) -> str:
        return safe(f"<{type(self).__name__} {self._name}: {len(self)}>")
