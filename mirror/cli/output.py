"""Rows to stdout or to a file, in the format that was asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.console import safe, show_table
from mirror.errors import UsageError

if TYPE_CHECKING:
    from mirror.query.export import Rows


def emit(rows: Rows, format: str | None, output: Path | None, *, root: Path | None = None) -> None:
    """Write rows. Without a file and a format they are a table; binary formats do not go to a terminal."""
    from mirror.query.export import BINARY, format_of, replacing, write

    if output is not None:
        format = format or format_of(output)
        _check_target(output, root)
        if format == "table":
            from mirror.query.text import aligned

            with replacing(output) as out:
                out.writelines(f"{line}\n".encode() for line in aligned(rows.columns, rows.types, rows))
            return
        with replacing(output) as out:
            count = write(rows, format, out, seekable=out.seekable())
        click.echo(f"{count:,} rows written to {safe(str(output))}", err=True)
        return
    if format in (None, "table"):
        show_table(rows.columns, rows.types, rows)
        return
    terminal = sys.stdout.isatty()
    if format in BINARY and terminal:
        raise UsageError(f"{format} is binary and would only confuse a terminal: add -o FILE, or pipe it on")
    sys.stdout.flush()
    write(rows, format, sys.stdout.buffer, terminal=terminal)
    sys.stdout.buffer.flush()


def _check_target(output: Path, root: Path | None) -> None:
    """A mirror's own files are not for writing over."""
    if root is not None and output.absolute().parent.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"`{output}` lies inside the mirror: choose a place outside `{root}` for -o")
