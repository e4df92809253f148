"""`mirror repair`: make a damaged mirror whole again."""

from __future__ import annotations

from pathlib import Path

import click

from mirror.cli.console import safe
from mirror.cli.options import root_option


@click.command("repair")
@root_option
def command(root: Path) -> None:
    """Check every file of the mirror, rebuild a lost or damaged catalog, and publish it anew.

    Files that are missing or damaged are taken out; the runs that lost rows with them are listed, and the next
    sync fetches them again. Nothing that is still there is thrown away. The exit code is 1 if anything was lost.

    \b
    Examples:
      mirror repair
      mirror repair --mirror /backup/mirror
    """
    from mirror.store.repair import repair

    report = repair(root)
    if report.rebuilt_catalog:
        click.echo("The catalog was lost or damaged; it was rebuilt from the files.")
    click.echo(f"Checked {report.files:,} files: {len(report.lost):,} are missing or damaged.")
    for name in report.lost:
        click.echo(safe(f"  lost: {name}"))
    for path in report.runs:
        click.echo(safe(f"  incomplete: {path}"))
    if report.lost:
        click.echo("The mirror works without them. `mirror sync` fetches again what their runs lost.", err=True)
        raise SystemExit(1)
