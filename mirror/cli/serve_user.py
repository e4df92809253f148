"""`mirror serve user`: who may use a server, and what he sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.options import Option, root_option

if TYPE_CHECKING:
    from mirror.server.access.users import Users

_key_option = click.option(
    "--api-key-file",
    "key_file",
    cls=Option,
    formerly=["--key-file"],
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the key he shall have (else one is made and shown once).",
)


@click.group("user")
def user() -> None:
    """Users of a server, each with a key of his own; what one may not see does not exist for him.

    A user sees what is in the entity of his own name and in his teams' entities. The key of the server itself sees
    everything. Changes hold at once, also while the server runs.
    """


def _users(root: Path) -> Users:
    from mirror.server.access.users import Users

    return Users(root)


def _given(key_file: Path | None) -> str | None:
    from mirror.server.access.auth import read_key

    return read_key(key_file) if key_file else None


def _show(name: str, key: str, made: bool) -> None:
    if made:
        click.echo(f"The key of {name}, shown this once:", err=True)
        click.echo(key)


def _command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    def decorate(function: Callable[..., Any]) -> click.Command:
        return user.command(name)(root_option(function))

    return decorate


@_command("add")
@click.argument("name")
@click.option("--team", "teams", multiple=True, metavar="ENTITY", help="A team he is in; may be repeated.")
@_key_option
def add(root: Path, name: str, teams: tuple[str, ...], key_file: Path | None) -> None:
    """Add a user, and show his key this once.

    \b
    Example:
      mirror serve user add ada --team vision --team nlp
    """
    _show(name, _users(root).add(name, teams, _given(key_file)), made=key_file is None)


@_command("list")
def list_(root: Path) -> None:
    """Show the users and their teams."""
    for found in sorted(_users(root).all().values(), key=lambda u: u.name):
        click.echo(f"{found.name}\t{','.join(found.teams) or '-'}\tsince {found.created_at}")


@_command("remove")
@click.argument("name")
def remove(root: Path, name: str) -> None:
    """Refuse a user's key from now on; what he logged stays."""
    _users(root).remove(name)


@_command("teams")
@click.argument("name")
@click.argument("teams", nargs=-1)
def teams(root: Path, name: str, teams: tuple[str, ...]) -> None:
    """Replace the teams of a user; without TEAMS he is in none."""
    _users(root).set_teams(name, teams)


@_command("key")
@click.argument("name")
@_key_option
def key(root: Path, name: str, key_file: Path | None) -> None:
    """Give a user another key; the old one is refused from now on."""
    _show(name, _users(root).set_key(name, _given(key_file)), made=key_file is None)
