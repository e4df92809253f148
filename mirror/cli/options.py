"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

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
