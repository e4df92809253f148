"""Many things in portions that are handled at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def portions(
    things: Iterable[_T], weigh: Callable[[_T], int], most: int, count: int | None = None
) -> Iterator[list[_T]]:
    """Neighbours that weigh at most `most` together, and are at most `count`; one that weighs more goes alone."""
    portion: list[_T] = []
    total = 0
    for thing in things:
        weight = weigh(thing)
        if portion and (len(portion) == count or total + weight > most):
            yield portion
            portion, total = [], 0
        portion.append(thing)
        total += weight
    if portion:
        yield portion
