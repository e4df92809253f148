"""Values as text: exact, and harmless wherever they are printed.

Text from outside (names, notes, logs, errors) goes through `safe` before it reaches a terminal or a notebook: no
control character of it ever takes effect.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import islice
from typing import Any

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINER = "\u200d"  # part of many emoji, harmless
_NUMERIC = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "BIGNUM")


def safe(text: str) -> str:
    r"""`text` on one line, with control and formatting characters written as escapes.

    >>> safe("a\x1b]0;x\nb")
    'a\\x1b]0;x\\nb'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c == _JOINER or unicodedata.category(c) not in _UNSAFE else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def plain(value: Any) -> str:
    """A value as CSV, TSV and tables spell it: shortest exact digits, NaN / Infinity / -Infinity, true / false,
    times as ISO 8601 (UTC ends in Z), bytes as hex, lists and structs as JSON. None is the caller's business."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else nonfinite(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (datetime, date, time)):
        return moment(value)
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (list, tuple, dict)):
        return json_text(value).decode()
    return str(value)


def json_text(value: Any) -> bytes:
    """JSON of any value DuckDB hands out; integers of any size and decimals keep all digits."""
    import orjson

    return orjson.dumps(jsonable(value), default=plain, option=orjson.OPT_PASSTHROUGH_DATETIME)


def jsonable(value: Any) -> Any:
    """What orjson writes exactly for a value: NaN and infinities as strings, long integers with all digits."""
    import orjson

    if isinstance(value, float):
        return value if value - value == 0 else nonfinite(value)
    if isinstance(value, dict):
        return {k if isinstance(k, str) else plain(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    kind = type(value).__name__
    if kind == "Decimal":
        return orjson.Fragment(format(value, "f"))
    return moment(value) if kind in ("datetime", "date", "time") else value


def nonfinite(value: float) -> str:
    """The spelling of W&B's JSON."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def moment(value: datetime | date | time) -> str:
    """ISO 8601; instants in UTC with a Z."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(timezone.utc).isoformat().removesuffix("+00:00") + "Z"
    return value.isoformat()


def cell(value: Any) -> str:
    """A value in a table for people: one line, harmless, empty for null."""
    return "" if value is None else safe(plain(value))


def size_of(count: float) -> str:
    """Bytes in words: `12 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def is_numeric(kind: str) -> bool:
    """Whether values of a DuckDB type are aligned to the right."""
    return kind.removeprefix("U").startswith(_NUMERIC) and not kind.endswith("]")


def width(text: str) -> int:
    """Columns a text takes on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 or c == _JOINER for c in text)


def aligned(
    names: Sequence[str], types: Sequence[str], rows: Iterable[Sequence[Any]], *, look_ahead: int = 1000
) -> Iterator[str]:
    """Lines of a plain table. Widths come from the first `look_ahead` rows, so that any number of rows streams."""
    right = [is_numeric(kind) for kind in types]
    waiting = iter(rows)
    first = [[cell(v) for v in row] for row in islice(waiting, look_ahead)]
    head = [safe(name) for name in names]
    widths = [max((width(line[i]) for line in [head, *first]), default=0) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            " " * (w - width(c)) + c if r else c + " " * (w - width(c))
            for c, w, r in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    yield line(head)
    yield line(["-" * w for w in widths])
    for cells in first:
        yield line(cells)
    for row in waiting:
        yield line([cell(v) for v in row])
