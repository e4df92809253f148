"""`mirror compact`: few large files instead of many small ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.options import root_option
from mirror.cli.progress import steps

if TYPE_CHECKING:
    from mirror.store.catalog import FileRow


@click.command("compact")
@root_option
def command(root: Path) -> None:
    """Merge the files of the mirror into few large ones, and drop versions that nothing shows any more.

    `mirror sync` does this by itself when it is due; do it by hand before a mirror is copied or asked a lot. Readers
    and writers may go on meanwhile. It can be interrupted at any time; files that were replaced are deleted ten
    minutes later, by the next writer.

    \b
    Examples:
      mirror compact
      mirror compact --mirror /backup/mirror
    """
    from mirror.store import Writer

    def shown(groups: list[list[FileRow]]) -> Iterator[list[FileRow]]:
        total = sum(file.bytes for group in groups for file in group)
        with steps("compacting", total, unit="B") as advance:
            for group in groups:
                yield group
                advance(sum(file.bytes for file in group))

    with Writer(root, create=False) as writer:
        done = writer.compact(everything=True, progress=shown)
    if not done.merged:
        click.echo("There was nothing to merge.")
        return
    click.echo(
        f"Merged {done.merged:,} files into {done.made:,}: {_megabytes(done.bytes_before)} became "
        f"{_megabytes(done.bytes_after)}."
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
