"""The command line. One module a command, imported when it is called, so that `mirror --help` is quick."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from mirror.errors import MirrorError, UsageError

_COMMANDS = {
    "sync": ("sync", "Pull runs from W&B into the mirror: only what is new or has changed."),
    "sql": ("sql", "Ask the mirror in SQL."),
    "runs": ("runs", "List runs, filtered and ordered as in wandb.Api()."),
    "show": ("show", "Show a run on a page: what made it, config, summary, curves, files."),
    "diff": ("diff", "Show what differs between runs: attributes, config, summary."),
    "best": ("best", "Show the best runs of a sweep or a project, with their parameters."),
    "export": ("export", "Write histories, configs, summaries, ... to files: CSV, Parquet, JSON lines."),
    "translate": ("translate", "Print a filter of wandb.Api().runs as SQL."),
    "plot": ("plot", "Plot a metric over runs, on the terminal or as a picture."),
    "tables": ("tables", "List the W&B tables there are, and the names that SQL reads them by."),
    "query": ("query", "Run a saved query: leaderboard, learning curves, ..."),
    "changes": ("changes", "List what syncs saw change at the source."),
    "status": ("status", "Say what is mirrored, how fresh and how complete."),
    "push": ("push", "Send mirrored runs to another W&B server, and see that they arrived."),
    "import": ("import_", "Import experiments into a W&B server, from another one or from MLflow."),
    "files": ("files", "List files of a run; delete some of them at its server."),
    "serve": ("serve", "Serve the mirror to W&B's SDK: unchanged scripts read from it and log into it."),
    "demo": ("demo", "Show everything in a minute, on this machine alone."),
    "compact": ("compact", "Merge many small files into few large ones."),
    "purge": ("purge", "Remove runs or projects from the mirror for good."),
    "repair": ("repair", "Make a damaged mirror whole again."),
    "doctor": ("doctor", "Check credentials, versions, servers and the mirror's files."),
    "verify": ("verify", "Prove that the mirror is whole, and that a server holds the same."),
    "completion": ("completion", "Print what makes a shell complete commands and paths."),
}
_ALIASES = {"pull": "sync"}


class Commands(click.Group):
    """Commands by name; their help lines are kept here so that listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = _ALIASES.get(cmd_name, cmd_name)
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"mirror.cli.{_COMMANDS[name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as e:
            from difflib import get_close_matches

            near = get_close_matches(args[0], [*_COMMANDS, *_ALIASES], 1)
            hint = f"did you mean `{near[0]}`?" if near else "`mirror --help` lists the commands."
            raise click.UsageError(f"there is no command `{args[0]}`; {hint}", ctx) from e


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="wandb-mirror", prog_name="mirror")
def cli() -> None:
    """Keep a local, exact, always-queryable copy of machine-learning experiments.

    \b
    Examples:
      mirror demo                                          see it work, no account needed
      mirror sync my-team/my-project                       pull a project (uses your `wandb login`)
      mirror sql "select name, state from runs limit 5"    ask anything, offline
      mirror runs --filter '{"config.lr": {"$gt": 0.1}}'   filter as in wandb.Api()
    """


def main() -> NoReturn:
    """The console script: errors of this package are one line on stderr, with exit code 2 for a wrong call."""
    from mirror.cli.console import safe

    try:
        for argument in sys.argv[1:]:
            if any("\ud800" <= c <= "\udfff" for c in argument):
                raise UsageError(f"`{argument}` holds bytes that are no text in UTF-8: write it anew")
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except BrokenPipeError:
        # The reader of our output (`| head`) has what it wanted; nothing may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MirrorError as e:
        if os.environ.get("MIRROR_DEBUG"):
            raise
        click.echo(f"Error: {safe(str(e))}", err=True)
        sys.exit(2 if isinstance(e, UsageError) else 1)
    except Exception as e:
        if os.environ.get("MIRROR_DEBUG"):
            raise
        click.echo(
            f"Error: unexpected {type(e).__name__}: {safe(str(e))[:300]} (a bug: please report it with the output of "
            "the same command under MIRROR_DEBUG=1)",
            err=True,
        )
        sys.exit(1)
