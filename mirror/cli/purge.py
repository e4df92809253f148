"""`mirror purge`: remove something from the mirror for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.console import safe
from mirror.cli.options import root_option, source_option, yes_option
from mirror.cli.progress import steps

if TYPE_CHECKING:
    from mirror.store.catalog import FileRow

_SHOWN = 10


@click.command("purge")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@root_option
@source_option
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@yes_option
def command(paths: tuple[str, ...], root: Path, source: str | None, dry_run: bool, yes: bool) -> None:
    """Remove runs, projects or entities from the mirror for good: rows, files, names, older versions.

    PATH is an entity, entity/project or entity/project/run. Nothing is changed at the source, and nothing keeps the
    next sync from fetching it again. A project goes with its sweeps, artifacts and reports; a run's artifacts stay
    until their project goes. What remains is a line in ROOT/purge.log that says when something was removed, and how
    much, but not what. Copies and backups of the mirror are not touched.

    \b
    Examples:
      mirror purge my-team/my-project/1a2b3c4d --dry-run
      mirror purge my-team/old-project
      mirror purge my-team --yes
    """
    from mirror.paths import parse
    from mirror.store import Layout
    from mirror.store.catalog import Catalog
    from mirror.store.purge import choose, purge

    chosen_paths = [parse(path) for path in paths]
    layout = Layout(root)
    layout.read_snapshot()
    with closing(Catalog(layout, read_only=True)) as catalog:
        chosen = choose(catalog, chosen_paths, source)
    what = f"{len(chosen.runs):,} runs" + (f" and {len(chosen.projects):,} whole projects" if chosen.projects else "")
    for path in sorted(chosen.runs.values())[:_SHOWN]:
        click.echo(safe(f"  {path}"), err=True)
    if len(chosen.runs) > _SHOWN:
        click.echo(f"  ... and {len(chosen.runs) - _SHOWN:,} more", err=True)
    if dry_run:
        click.echo(f"Would remove {what}.")
        return
    if not yes and not click.confirm(f"Remove {what} from {safe(str(root))} for good?", err=True):
        click.echo("Nothing was removed.", err=True)
        raise click.exceptions.Exit(1)

    def shown(files: list[FileRow]) -> Iterator[FileRow]:
        with steps("purging", sum(file.bytes for file in files), unit="B") as advance:
            for file in files:
                yield file
                advance(file.bytes)

    done = purge(root, chosen_paths, source=source, progress=shown)
    click.echo(
        f"Removed {what}: {done.files:,} files written anew or deleted, {done.blobs:,} blobs deleted, "
        f"{done.bytes / 1e6:,.1f} MB freed."
    )
