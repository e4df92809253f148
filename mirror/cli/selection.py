"""Which runs a sync is about: options that become one filter, which the server judges."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from mirror.cli.options import filter_text
from mirror.errors import UsageError

_AGO = re.compile(r"(\d+)\s*(m|h|d|w)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def server_filter(given: str | None, since: str | None, states: Sequence[str], now: datetime) -> str | None:
    """The filter of `--filter`, `--since` and `--state` together, as JSON; None without any of them.

    Raises UsageError or QueryError for what W&B's server would refuse, before it is asked.
    """
    parts: list[object] = []
    if given is not None:
        from mirror.query.filters import to_sql

        text = filter_text(given)
        to_sql(text, server_compat=True)  # only for its errors, which name path and cure
        parts.append(json.loads(text))
    if since is not None:
        # W&B compares times as text: one without a Z matches nothing there.
        parts.append({"heartbeatAt": {"$gte": moment(since, now).strftime("%Y-%m-%dT%H:%M:%SZ")}})
    if states:
        parts.append({"state": {"$in": list(states)}})
    if not parts:
        return None
    return json.dumps(parts[0] if len(parts) == 1 else {"$and": parts})


def moment(text: str, now: datetime) -> datetime:
    """A time in UTC: `2026-01-31`, `2026-01-31T12:00:00+01:00`, or how long ago, such as `36h`, `7d`, `2w`."""
    if ago := _AGO.fullmatch(text.strip()):
        try:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        except OverflowError as e:
            raise UsageError(f"`{text}` is longer ago than there are dates: write a date such as 2026-01-31") from e
    try:
        at = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as e:
        raise UsageError(f"`{text}` is no time: write a date such as 2026-01-31, or how long ago, such as 7d") from e
    return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)
