"""Reports, which W&B calls views: kept as rows of the table `reports`."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

from mirror.errors import UsageError
from mirror.records import ItemKey, Report
from mirror.server import ids
from mirror.server.held import Held
from mirror.server.home import Home
from mirror.server.live import now

_MOST_SPEC = 12 << 20


def checked_spec(text: str) -> str:
    """The spec as it came. `UsageError` if it is no JSON object."""
    try:
        found = json.loads(text) if len(text) <= _MOST_SPEC else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"the spec of the report is no JSON object of at most {_MOST_SPEC} characters: `{text[:80]}`")
    return text


def make(home: Home, entity: str, project: str, username: str, fields: dict[str, Any]) -> Held[Report]:
    """A new report; `fields` are those of the record, its name is random unless it is given."""
    at = now()
    # Links to reports carry their id, so it holds nothing that a link would encode.
    key = ItemKey(home.source, ids.new_item_id("View"), entity, project)
    name = fields.pop("name", None) or secrets.token_hex(6)
    return _put(home, Report(key, name, username=username, created_at=at, updated_at=at, **fields))


def change(home: Home, held: Held[Report], fields: dict[str, Any]) -> Held[Report]:
    """Change a report of this server."""
    own(home, held.item)
    changes = {name: value for name, value in fields.items() if getattr(held.item, name) != value}
    return _put(home, replace(held.item, updated_at=now(), **changes)) if changes else held


def delete(home: Home, held: Held[Report]) -> None:
    own(home, held.item)
    pen, _ = home.writable()
    pen.do(lambda writer: writer.drop_item("reports", held.item.key))


def own(home: Home, report: Report) -> None:
    key = report.key
    if key.source != home.source:
        raise UsageError(
            f"report `{report.title or report.name}` of `{key.entity}/{key.project}` is mirrored from `{key.source}` "
            "and cannot be changed here: change it there and sync again"
        )


def _put(home: Home, report: Report) -> Held[Report]:
    pen, _ = home.writable()
    return Held(pen.do(lambda writer: writer.put_item(report)), report)
