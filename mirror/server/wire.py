"""Shapes that recur on the wire: connections, times."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from mirror.errors import UsageError
from mirror.server import ids


def connection(nodes: Sequence[Any], cursors: Sequence[str] | None = None, *, more: bool = False) -> dict[str, Any]:
    """A GraphQL connection with these nodes as its only page, or as the page `cursors` say."""
    marks = list(cursors) if cursors is not None else [ids.encode("At", n) for n in range(len(nodes))]
    return {
        "edges": [{"node": node, "cursor": mark} for node, mark in zip(nodes, marks, strict=True)],
        "pageInfo": {
            "startCursor": marks[0] if marks else None,
            "endCursor": marks[-1] if marks else None,
            "hasNextPage": more,
            "hasPreviousPage": False,
        },
        "totalCount": len(nodes),
    }


def paged(items: Sequence[Any], first: int | None, after: str | None, *, default: int = 50) -> dict[str, Any]:
    """A page of a sequence that does not change while it is paged through."""
    start = 0
    if after:
        parts = ids.decode(after, "At", 1)
        if parts is None or not parts[0].isdigit():
            raise UsageError(f"`{after[:100]}` is no cursor of this server: start again without `after`")
        start = int(parts[0]) + 1
    first = default if first is None else max(0, first)
    page = items[start : start + first]
    marks = [ids.encode("At", start + n) for n in range(len(page))]
    return connection(page, marks, more=start + len(page) < len(items)) | {"totalCount": len(items)}


def wire_time(at: datetime | None) -> str | None:
    """ISO-8601 in UTC with `Z`, with microseconds where there are any."""
    return at.astimezone(timezone.utc).isoformat().replace("+00:00", "Z") if at else None
