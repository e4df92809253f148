"""Dates in filters: ISO 8601, possibly cut short (`2025`, `2023-06-20T20`), UTC where no zone is given."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_DATE = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:[T ](?P<hour>\d\d)(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"\s?(?P<zone>Z|z|[+-]\d\d(?::?\d\d)?)?)?)?)?",
    re.ASCII,
)


def period(text: str) -> tuple[datetime, datetime] | None:
    """The first moment a date names and the first one after it, both in UTC; None if it is no date.

    Digits of a second beyond microseconds are cut off: the store holds microseconds.

    >>> [str(t) for t in period("2025-02")]
    ['2025-02-01 00:00:00+00:00', '2025-03-01 00:00:00+00:00']
    """
    found = _DATE.fullmatch(text.strip())
    if found is None:
        return None
    part = {name: int(found[name] or low) for name, low in _LOWEST.items()}
    fraction = found["fraction"]
    zone = _zone(found["zone"])
    if zone is None:
        return None
    try:
        start = datetime(**part, microsecond=int((fraction or "").ljust(6, "0")[:6]), tzinfo=zone)
        start = start.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
    try:
        if found["month"] is None:
            end = start.replace(year=start.year + 1)
        elif found["day"] is None:
            end = (start + timedelta(days=32)).replace(day=1)
        else:
            finest = "fraction" if fraction else next(n for n in reversed(_LOWEST) if found[n])
            end = start + _LENGTH[finest]
    except (ValueError, OverflowError):  # the last year there is
        end = datetime.max.replace(tzinfo=timezone.utc)
    return start, end


_LOWEST = {"year": 1, "month": 1, "day": 1, "hour": 0, "minute": 0, "second": 0}
_LENGTH = {
    "day": timedelta(days=1),
    "hour": timedelta(hours=1),
    "minute": timedelta(minutes=1),
    "second": timedelta(seconds=1),
    "fraction": timedelta(microseconds=1),
}


def _zone(text: str | None) -> timezone | None:
    if text is None or text in "Zz":
        return timezone.utc
    digits = text[1:].replace(":", "")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:] or 0))
    if offset >= timedelta(hours=24):
        return None
    return timezone(-offset if text[0] == "-" else offset)
