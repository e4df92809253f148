"""`mirror import`: experiments from one server to another, by way of the mirror."""

from __future__ import annotations

from importlib import import_module

import click

_SOURCES = {
    "wandb": ("import_wandb", "From one W&B server to another."),
    "mlflow": ("import_mlflow", "From an MLflow server, or the SQLite file of one, to a W&B server."),
}


class Sources(click.Group):
    """Subcommands by the kind of source, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_SOURCES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _SOURCES:
            return None
        command: click.Command = import_module(f"mirror.cli.{_SOURCES[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Sources"):
            formatter.write_dl([(name, text) for name, (_, text) in _SOURCES.items()])


@click.group("import", cls=Sources)
def command() -> None:
    """Import experiments into a W&B server: mirror them first, then send what the mirror holds.

    \b
    Examples:
      mirror import wandb my-team/my-project --dst-base-url https://wandb.example.org
      mirror import mlflow http://127.0.0.1:5000 --dst-base-url https://wandb.example.org
    """
