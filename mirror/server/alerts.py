"""Alerts of runs (`run.alert`): nobody is notified by a mirror, but what was said is kept in ROOT/live/alerts.jsonl,
one alert a line, and shows on the server's stderr."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from mirror.errors import UsageError
from mirror.server.home import Home
from mirror.server.live import now
from mirror.server.look import Found
from mirror.server.rows import dumps
from mirror.store.disk import explained

_MOST_TEXT = 10_000
_LOCK = threading.Lock()


def keep(home: Home, found: Found, title: str, text: str, severity: str, username: str) -> None:
    """Write an alert down; it is on the disk when this returns."""
    home.writable()
    home.own(found)
    if len(title) + len(text) > _MOST_TEXT:
        raise UsageError(f"an alert of {len(title) + len(text)} characters is too long: {_MOST_TEXT} are taken")
    key = found.run.key
    line: dict[str, Any] = {
        "at": now().isoformat(), "entity": key.entity, "project": key.project, "run_id": key.run_id,
        "severity": severity, "title": title, "text": text, "username": username,
    }  # fmt: skip
    with _LOCK, explained("writing down an alert"):
        path = home.layout.live / "alerts.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, dumps(line) + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
    print(f"alert ({severity}) of {key.path!r}: {title[:200]!r}", file=sys.stderr)
