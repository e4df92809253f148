"""Console lines as W&B's SDK sends them, taken apart into time, level and text."""

from __future__ import annotations

import re
from datetime import datetime, timezone

import orjson

_PLAIN = re.compile(r"(?P<level>ERROR )?(?P<ts>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z?) (?P<text>.*)", re.DOTALL)


def parsed(line: str) -> tuple[datetime | None, str | None, str]:
    """Time, level and text of a line. A server with structured console logs gets `{"ts", "level", "content"}`, others
    `ERROR 2026-11-21T20:04:07.123456 text`; what is neither is text."""
    if line.startswith("{"):
        try:
            found = orjson.loads(line)
            return _time(found["ts"]), found.get("level"), str(found["content"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None, None, line
    match = _PLAIN.fullmatch(line)
    if match:
        try:
            return _time(match["ts"]), "error" if match["level"] else None, match["text"]
        except ValueError:
            pass
    return None, None, line


def _time(text: str) -> datetime:
    """ISO-8601, UTC if it names no zone, to the microsecond."""
    whole, dot, fraction = text.removesuffix("Z").partition(".")
    at = datetime.fromisoformat(whole + dot + (fraction + "000000")[:6] if dot else whole)
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)
