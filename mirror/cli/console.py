"""What reaches a terminal: rows as tables, and text from outside only through `safe`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import click

from mirror.query.text import aligned, cell, is_numeric, safe, width

__all__ = ["colored", "safe", "show_table", "table"]

_MOST_ROWS = 1000
_LEAST_WIDTH = 8


def colored() -> bool:
    """Whether stdout may have colours: a terminal, whose user did not set NO_COLOR (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def table(names: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a small table: drawn on a terminal, plain columns elsewhere. Numbers are aligned to the right."""
    listed = [list(row) for row in rows]
    types = ["DOUBLE" if _all_numbers(row[i] for row in listed) else "VARCHAR" for i in range(len(names))]
    if title:
        click.echo(safe(title))
    show_table(names, types, listed)


def show_table(names: Sequence[str], types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows on stdout: on a terminal the first thousand, drawn to fit it; elsewhere all, in plain columns."""
    if not sys.stdout.isatty():
        for line in aligned(names, types, rows):
            click.echo(line)
        return
    waiting = iter(rows)
    first = [[cell(v) for v in row] for row in islice(waiting, _MOST_ROWS)]
    _draw(names, types, first)
    more = sum(1 for _ in waiting)
    if more:
        click.echo(f"... and {more:,} more rows; --format csv or -o FILE gives all of them", err=True)


def _draw(names: Sequence[str], types: Sequence[str], cells: list[list[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    needed = sum(
        min(_LEAST_WIDTH, max(map(width, chain([safe(n)], (row[i] for row in cells))))) + 2 for i, n in enumerate(names)
    )
    if needed > console.width:
        for line in _records(names, cells):
            click.echo(line)
        return
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, kind in zip(names, types, strict=True):
        right = is_numeric(kind)
        # Numbers are never cut: a number without its last digits is another number.
        drawn.add_column(Text(safe(name)), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def _records(names: Sequence[str], cells: list[list[str]]) -> Iterator[str]:
    """A row a paragraph, for tables that are too wide."""
    longest = max((width(safe(name)) for name in names), default=0)
    for i, row in enumerate(cells, 1):
        yield f"- row {i} {'-' * longest}"
        for name, value in zip(names, row, strict=True):
            yield f"{safe(name)}{' ' * (longest - width(safe(name)))}  {value}"


def _all_numbers(values: Iterable[Any]) -> bool:
    found = [v for v in values if v is not None]
    return bool(found) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found)
