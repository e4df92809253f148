"""Connections read page by page, in smaller pages when a server has trouble with large ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mirror.errors import TransientSourceError
from mirror.wandb.client import Build, Client, next_cursor, nodes
from mirror.wandb.transport import BRIEF, NORMAL, RefusedQuery

SMALLEST_PAGE = 5


@dataclass
class Paged:
    """All nodes of a connection. `complete` is False if the server broke the listing off, or counts differently."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = True


def read_all(
    client: Client, build: Build, variables: dict[str, Any], path: tuple[str, ...], *, first: int, total: str = ""
) -> Paged:
    """The nodes of the connection at `path` of the answer; `build` makes a query with `$first` and `$after`.

    `total` names a sibling of the connection with the server's own count. A path that leads nowhere (no such thing,
    no access, a server without the feature) is an empty connection that is not complete.
    """
    found = Paged()
    count: int | None = None
    for holder in _pages(client, build, variables, path, first):
        if holder is None:
            found.complete = False
            break
        found.nodes += nodes(holder.get(path[-1]))
        if isinstance(holder.get(total), int):
            count = holder[total]
    if count is not None and count != len(found.nodes):
        found.complete = False
    return found


def _pages(
    client: Client, build: Build, variables: dict[str, Any], path: tuple[str, ...], first: int
) -> Iterator[dict[str, Any] | None]:
    after: str | None = None
    cursors: set[str] = set()
    while True:
        patience = BRIEF if first > SMALLEST_PAGE else NORMAL
        try:
            data, _ = client.ask(build, {**variables, "first": first, "after": after}, patience=patience)
        except (TransientSourceError, RefusedQuery):
            if first <= SMALLEST_PAGE:
                raise
            client.probe()
            first = max(first // 2, SMALLEST_PAGE)
            continue
        holder: Any = data
        for name in path[:-1]:
            holder = (holder or {}).get(name)
        if not isinstance(holder, dict) or not isinstance(holder.get(path[-1]), dict):
            yield None
            return
        yield holder
        after = next_cursor(holder[path[-1]])
        if after is None:
            if (holder[path[-1]].get("pageInfo") or {}).get("hasNextPage"):
                yield None  # more is said to come, but not from where
            return
        if after in cursors:
            yield None
            return
        cursors.add(after)
