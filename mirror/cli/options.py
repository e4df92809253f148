"""Options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from mirror.errors import UsageError


class Option(click.Option):
    """An option that had other names in earlier releases: `formerly` lists spellings that work, but are not shown."""

    def __init__(self, *args: Any, formerly: Sequence[str] = (), **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.formerly = formerly

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        shown = self.opts
        self.opts = [*shown, *self.formerly]
        super().add_to_parser(parser, ctx)
        self.opts = shown


root_option = click.option(
    "--mirror",
    "root",
    envvar="MIRROR_ROOT",
    default="./wandb-mirror",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the mirror  [env: MIRROR_ROOT]",
)
"""`--mirror ROOT`, for commands that read an existing mirror or make one."""


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--format` and `-o`, the same on every command that gives rows; see mirror/cli/output.py."""
    command = click.option(
        "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
        help="Write to a file, whole or not at all; its suffix says the format if --format does not.",
    )(command)  # fmt: skip
    return click.option(
        "--format", "format_", type=click.Choice(["table", "csv", "tsv", "json", "jsonl", "parquet", "arrow"]),
        help="How to write rows  [default: table]",
    )(command)  # fmt: skip


source_option = click.option(
    "--source",
    metavar="HOST",
    help="Only runs mirrored from this host, e.g. api.wandb.ai, for paths that two sources share.",
)


filter_option = click.option(
    "--filter", "filter_", metavar="JSON|@FILE|-", help="Only runs that meet conditions; see `mirror runs`."
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def limit_option(help: str, **attrs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`-n` and `--limit`; `attrs` are further ones of `click.option`."""
    return click.option("-n", "--limit", **{"type": click.IntRange(min=0)} | attrs, help=help)


def columns_options(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--columns` and `--column`, parameters `columns` and `more`; see `names_in` of mirror/cli/runs.py."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "-c", "--column", "more", multiple=True, metavar="NAME", help="One more column, its name exactly as it is."
        )(command)
        return click.option(
            "--columns",
            metavar="NAMES",
            help="Columns to show, separated by commas: those of the view `runs`, path, duration (seconds), "
            f"config.KEY, summary_metrics.KEY; a name with a comma in double quotes, as in CSV  [default: {default}]",
        )(command)

    return decorate


# What commands that send runs share.
remap_option = click.option(
    "--remap", multiple=True, metavar="A/B=C/D", help="Project A/B becomes C/D; may be repeated."
)
workers_option = click.option(
    "--workers", default=4, show_default=True, type=click.IntRange(1, 64), help="Runs at the same time."
)
again_option = click.option("--again", is_flag=True, help="Send also what the ledger says is there and unchanged.")
verify_option = click.option(
    "--verify", is_flag=True, help="Read everything back afterwards and compare it, as `mirror verify` does."
)
suffix_option = click.option(
    "--deleted-suffix",
    metavar="TEXT",
    help="Put TEXT behind ids of runs that were deleted there, which a server never takes again.",
)
rehearse_option = click.option(
    "--rehearse", is_flag=True, help="Send to a server started for it, and say what would not be kept."
)


def filter_text(given: str) -> str:
    """A filter as it is given on a command line: JSON, @FILE or - for stdin."""
    if given == "-":
        return sys.stdin.read()
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read the filter `{given}`: {e}") from e
