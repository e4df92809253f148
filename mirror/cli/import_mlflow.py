"""`mirror import mlflow`: from MLflow to a W&B server."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.options import (
    again_option,
    rehearse_option,
    root_option,
    suffix_option,
    workers_option,
)
from mirror.errors import UsageError

if TYPE_CHECKING:
    from mirror.importers.places import Namespace


@click.command("mlflow")
@click.argument("uri", metavar="URI")
@click.option("--dst-base-url", metavar="URL", help="W&B server to import into; its key is MIRROR_DST_API_KEY.")
@click.option("--into", metavar="ENTITY/PROJECT", help="Import everything into this project.")
@click.option("--remap", multiple=True, metavar="NAME=C/D", help="Experiment NAME becomes C/D; may be repeated.")
@click.option("--experiment", "experiments", multiple=True, metavar="NAME", help="Only this; may be repeated.")
@click.option("--filter", "filter_", metavar="TEXT", help="Only runs that meet this, in MLflow's own language.")
@click.option("--include-deleted", is_flag=True, help="What MLflow holds as deleted, too.")
@click.option("--no-artifacts", is_flag=True, help="Leave out the bytes of artifacts.")
@workers_option
@again_option
@suffix_option
@rehearse_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@root_option
@click.pass_context
def command(
    ctx: click.Context,
    uri: str,
    dst_base_url: str | None,
    into: str | None,
    remap: tuple[str, ...],
    experiments: tuple[str, ...],
    filter_: str | None,
    include_deleted: bool,
    no_artifacts: bool,
    workers: int,
    again: bool,
    deleted_suffix: str | None,
    rehearse: bool,
    quiet: bool,
    root: Path,
) -> None:
    """Import runs from MLflow into a W&B server: into the mirror first, and from there on.

    URI is the address of a tracking server, or sqlite:///PATH of the file behind it. Each experiment becomes a project
    of the key's own entity, unless --into or --remap say otherwise. Every point of every metric is sent with its time;
    params become numbers and truth values where they are some, and keep their texts in the config under `_mlflow`, as
    do tags, datasets and whatever else W&B has no place for. MLflow is only read. What is there is not sent again,
    and what failed is tried again: run the same command until it ends with exit code 0.

    \b
    Examples:
      mirror import mlflow http://127.0.0.1:5000 --dst-base-url https://api.wandb.ai
      mirror import mlflow sqlite:///mlflow.db --dst-base-url https://wandb.example.org --into my-team/from-mlflow
      mirror import mlflow http://127.0.0.1:5000 --experiment "My experiment" --rehearse
    """
    from mirror.cli.progress import watching
    from mirror.cli.sending import KEY_VARIABLE, bars, rehearsal, show
    from mirror.cli.stopping import stopping
    from mirror.importers.everything import Everything
    from mirror.importers.mlflow import MlflowImporter
    from mirror.importers.places import Namespace

    if rehearse == (dst_base_url is not None):
        raise UsageError("name the server to import into, --dst-base-url URL, or --rehearse without one")
    if into and remap:
        raise UsageError("--into takes everything, --remap says where one experiment goes: leave out one of them")
    stop = ctx.ensure_object(threading.Event)
    with ExitStack() as stack:
        url, key, ledger = (
            stack.enter_context(rehearsal()) if rehearse else (str(dst_base_url), os.environ.get(KEY_VARIABLE), None)
        )
        stack.enter_context(stopping(stop))
        with watching(quiet=quiet, verbose=False) as sync_progress, bars(quiet) as progress:
            importer = MlflowImporter(
                uri,
                url,
                key,
                root=root,
                experiments=experiments,
                filters=filter_,
                deleted=include_deleted,
                workers=workers,
                deleted_suffix=deleted_suffix,
                progress=progress,
                sync_progress=sync_progress,
                stop=stop,
                ledger=ledger,
            )
            totals = importer.import_runs(
                artifacts=not no_artifacts,
                namespace=Namespace.from_path(into) if into else None,
                incremental=not again,
                remapping=dict(_remapped(text) for text in remap),
            )
        show(Everything({"runs": totals}), url, quiet=quiet)
    ctx.exit(int(not totals.ok))


def _remapped(text: str) -> tuple[str, Namespace]:
    from mirror.importers.places import Namespace

    name, equals, place = text.rpartition("=")
    if not equals or not name:
        raise UsageError(f"`{text}` maps nothing: write --remap 'EXPERIMENT=entity/project'")
    return name, Namespace.from_path(place)
