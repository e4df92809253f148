"""`mirror push`: mirrored runs to another W&B server, straight from the mirror."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from mirror.cli.complete import complete_path
from mirror.cli.options import (
    again_option,
    filter_option,
    rehearse_option,
    remap_option,
    root_option,
    source_option,
    suffix_option,
    verify_option,
    workers_option,
)


@click.command("push")
@click.argument("paths", nargs=-1, metavar="[PATH]...", shell_complete=complete_path)
@click.option("--to", metavar="URL", help="Server to send to; its key is MIRROR_DST_API_KEY, else as for a sync.")
@remap_option
@filter_option
@workers_option
@again_option
@suffix_option
@click.option("--what", "whats", multiple=True, metavar="KINDS", help="Send only these: runs,artifacts,reports.")
@verify_option
@click.option("--dry-run", is_flag=True, help="Only say what would be sent where; writes nothing.")
@rehearse_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@root_option
@source_option
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    to: str | None,
    remap: tuple[str, ...],
    filter_: str | None,
    workers: int,
    again: bool,
    deleted_suffix: str | None,
    whats: tuple[str, ...],
    verify: bool,
    dry_run: bool,
    rehearse: bool,
    quiet: bool,
    root: Path,
    source: str | None,
) -> None:
    """Send runs of the mirror to another W&B server, and see that they arrived.

    PATH is an entity, entity/project or entity/project/run; all runs are sent without one. Rows, system metrics,
    console, config, summary and the files whose bytes the mirror holds go out as they came in; what W&B's API cannot
    take (when a run was made, and by whom) is kept in the config under `mirror_origin`, and whatever is not the same
    there is listed. Projects that are missing there are made.

    Of whole projects the artifacts are sent, too, in the order of their versions.

    To MLflow go the runs, each project into the experiment `entity/project` or the one that --remap
    entity/project=EXPERIMENT names: numbers as metrics with their steps and times, system metrics as `system/...`,
    config as params, tags, files. All points are read back and compared. A server (mlflow:http://HOST:PORT) takes
    some hundred rows a second; its SQLite file (mlflow:sqlite:///PATH), written beside it, many times that.

    Each run that is there is noted in `run_successes.jsonl` in the mirror's folder and left out next time, until it
    changes; what fails is noted in `run_failures.jsonl`, and the exit code is 1. A push that was interrupted goes on
    where it stopped when the same command is run again.

    \b
    Examples:
      mirror push my-team/my-project --to https://wandb.example.org
      mirror push my-team --to https://wandb.example.org --remap my-team/old=new-team/new
      mirror push my-team/my-project --rehearse           what would be kept, changed or lost
      mirror push my-team/my-project --to https://wandb.example.org --dry-run
      mirror push my-team/my-project --to mlflow:http://127.0.0.1:5000   into MLflow
      mirror push my-team/my-project --to mlflow:sqlite:///mlflow.db     into its database, faster
    """
    from mirror.cli.sending import Sending, chosen_kinds
    from mirror.paths import parse

    whole = filter_ is None and all(parse(path).run_id is None for path in paths)
    kinds, stop = chosen_kinds(whats, whole), ctx.ensure_object(threading.Event)
    verify = verify or rehearse
    sending = Sending(root, paths, source, filter_, remap, workers, again, deleted_suffix, kinds, verify, quiet, stop)
    if to is not None and to.startswith("mlflow:"):
        if deleted_suffix or rehearse or (whats and kinds != ("runs",)):
            raise click.UsageError("MLflow takes runs alone: leave out --what, --deleted-suffix and --rehearse")
        ctx.exit(sending.send_to_mlflow(to, dry_run=dry_run))
    ctx.exit(sending.send(to, dry_run=dry_run, rehearse=rehearse))
