"""What reaches a terminal. Text from outside (names, notes, logs, errors) goes through `safe` first: no control
character and no markup of it ever takes effect."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINER = "\u200d"  # part of many emoji, harmless


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


def cell(value: Any) -> str:
    """A value as a table shows it: empty for null, floats with up to six significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return safe(str(value))


def table(names: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print rows: ruled on a terminal, plain columns elsewhere. Nothing is cut off where it is not a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1_000_000)
    rows = [list(row) for row in rows]
    drawn = Table(box=SIMPLE_HEAD, title=Text(safe(title)) if title else None, pad_edge=False, title_justify="left")
    for i, name in enumerate(names):
        numeric = all(
            isinstance(row[i], (int, float)) and not isinstance(row[i], bool) for row in rows if row[i] is not None
        )
        drawn.add_column(Text(safe(name)), justify="right" if numeric and rows else "left", overflow="ellipsis")
    for row in rows:
        drawn.add_row(*[Text(cell(value)) for value in row])
    with console.capture() as captured:
        console.print(drawn)
    for line in captured.get().splitlines():
        if line.strip():
            print(line.rstrip())
