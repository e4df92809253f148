"""`mirror files`: list the files of a run, and delete some of them at its server."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.complete import complete_path
from mirror.cli.console import safe
from mirror.cli.options import output_options, root_option, source_option, yes_option
from mirror.errors import NotFoundError

if TYPE_CHECKING:
    from mirror.objects.files import File

_SHOWN = 10


@click.group("files")
def command() -> None:
    """List files of a run; delete some of them at its server.

    \b
    Examples:
      mirror files ls my-team/my-project/1a2b3c4d '*.png'
      mirror files rm my-team/my-project/1a2b3c4d '*.png'
    """


@command.command("ls")
@click.argument("run", shell_complete=complete_path)
@click.argument("globs", nargs=-1, metavar="[GLOB]...")
@root_option
@source_option
@output_options
def ls(
    run: str, globs: tuple[str, ...], root: Path, source: str | None, format_: str | None, output: Path | None
) -> None:
    """List the files of a run, all or those whose names match a GLOB; `held` says if the mirror has the bytes."""
    from mirror.cli.output import emit
    from mirror.query.runs import locate
    from mirror.query.sql import execute
    from mirror.store import Reader

    with Reader(root) as reader:
        rid = locate(reader, run, source)
        names = [name for (name,) in execute(reader, "select name from files where rid = ?", [rid])]
        query = (
            "select name, size, md5, mimetype, updated_at, sha256 is not null as held from files "
            "where rid = ? and name in (select unnest(?::varchar[])) order by name"
        )
        emit(execute(reader, query, [rid, _matching(names, globs)]), format_, output, root=root)


@command.command("rm")
@click.argument("run", shell_complete=complete_path)
@click.argument("globs", nargs=-1, required=True, metavar="GLOB...")
@yes_option
@root_option
@source_option
def rm(run: str, globs: tuple[str, ...], yes: bool, root: Path, source: str | None) -> None:
    """Delete the files of a run whose names match a GLOB: at the run's server, and from the mirror's list of them.

    Bytes that the mirror holds stay in its folder until `mirror purge`.
    """
    from mirror.objects import Api
    from mirror.objects.editing import remove_files

    found = Api(root, online=True, source=source).run(run)
    chosen: list[File] = list(found.files(names=_matching([file.name for file in found.files()], globs) or [""]))
    if not chosen:
        raise NotFoundError(f"no file of `{found._where}` matches {' '.join(f'`{glob}`' for glob in globs)}")
    for file in chosen[:_SHOWN]:
        click.echo(safe(f"  {file.name}  {file.size:,} bytes"), err=True)
    if len(chosen) > _SHOWN:
        click.echo(f"  ... and {len(chosen) - _SHOWN:,} more", err=True)
    what = f"{len(chosen):,} file{'s' * (len(chosen) != 1)} of {safe(found._where)}"
    if not yes and not click.confirm(f"Delete {what} at {safe(found.source)} for good?", err=True):
        click.echo("Nothing was removed.", err=True)
        raise click.exceptions.Exit(1)
    remove_files(found, chosen)
    click.echo(f"Deleted {what} at {safe(found.source)}.")


def _matching(names: list[str], globs: tuple[str, ...]) -> list[str]:
    return [name for name in names if not globs or any(fnmatchcase(name, glob) for glob in globs)]
