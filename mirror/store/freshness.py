"""When each project was last compared with its source: the one thing a status needs that is in no snapshot.

A sync that finds nothing to do writes no segment; it only notes the time in the catalog. Readers that may not
read the catalog, or come while it is being recovered, do without.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from mirror.store.layout import Layout


@dataclass(frozen=True)
class Checked:
    source: str
    entity: str
    project: str
    at: datetime
    outcome: str | None
    message: str | None


def checked_projects(layout: Layout) -> list[Checked]:
    """The last sync of every project, also one that changed nothing; empty if the catalog cannot be read."""
    query = "select source, entity, project, checked_at, outcome, message from projects where checked_at is not null"
    try:
        with closing(sqlite3.connect(f"{layout.catalog.as_uri()}?mode=ro", uri=True, timeout=1)) as db:
            rows = db.execute(query).fetchall()
    except sqlite3.Error:
        return []
    return [Checked(s, e, p, datetime.fromisoformat(at), outcome, message) for s, e, p, at, outcome, message in rows]
