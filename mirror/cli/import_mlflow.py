"""`mirror import mlflow`: from MLflow to a W&B server."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from mirror.cli.console import safe, table
from mirror.cli.options import (
    Option,
    again_option,
    rehearse_option,
    root_option,
    suffix_option,
    verify_option,
    workers_option,
)
from mirror.cli.synced import show_plan
from mirror.errors import UsageError

if TYPE_CHECKING:
    from mirror.importers.mlflow import MlflowPlan
    from mirror.importers.places import Namespace


@click.command("mlflow")
@click.argument("uri", metavar="URI")
@click.option("--dst-base-url", metavar="URL", help="W&B server to import into; its key is MIRROR_DST_API_KEY.")
@click.option("--into", metavar="ENTITY/PROJECT", help="Import everything into this project.")
@click.option("--remap", multiple=True, metavar="NAME=C/D", help="Experiment NAME becomes C/D; may be repeated.")
@click.option("--experiment", "experiments", multiple=True, metavar="NAME", help="Only this; may be repeated.")
@click.option("--filter", "filter_", metavar="TEXT", help="Only runs that meet this, in MLflow's own language.")
@click.option(
    "--deleted", "include_deleted", is_flag=True, cls=Option, formerly=["--include-deleted"],
    help="What MLflow holds as deleted, too.",
)  # fmt: skip
@click.option("--no-artifacts", is_flag=True, help="Leave out the bytes of artifacts, and registered models.")
@workers_option
@again_option
@suffix_option
@verify_option
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched and sent; writes nothing.")
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
    verify: bool,
    dry_run: bool,
    rehearse: bool,
    quiet: bool,
    root: Path,
) -> None:
    """Import runs from MLflow into a W&B server: into the mirror first, and from there on.

    URI is the address of a tracking server, databricks, or sqlite:///PATH of the file behind a server. Each experiment
    becomes a project of the key's own entity, unless --into or --remap say otherwise. Every point of every metric is
    sent with its time; params become numbers and truth values where they are some, and keep their texts in the config
    under `_mlflow`, as do tags, datasets and whatever else W&B has no place for. Metrics that MLflow logged of the
    system become W&B's system metrics, versions of registered models that runs made become artifacts. MLflow is only
    read. What is there is not sent again, a run that went on is gone on with, and what failed is tried again: run the
    same command until it ends with exit code 0.

    \b
    Examples:
      mirror import mlflow http://127.0.0.1:5000 --dst-base-url https://api.wandb.ai
      mirror import mlflow sqlite:///mlflow.db --dst-base-url https://wandb.example.org --into my-team/from-mlflow
      mirror import mlflow http://127.0.0.1:5000 --dst-base-url https://api.wandb.ai --dry-run
      mirror import mlflow http://127.0.0.1:5000 --experiment "My experiment" --rehearse
    """
    from mirror.cli.progress import watching
    from mirror.cli.proof import read_back
    from mirror.cli.sending import KEY_VARIABLE, bars, check_destination, rehearsal, show
    from mirror.cli.stopping import stopping
    from mirror.importers.mlflow import MlflowImporter
    from mirror.importers.places import Namespace
    from mirror.store import Reader

    check_destination(dst_base_url, "--dst-base-url", dry_run=dry_run, rehearse=rehearse)
    if into and remap:
        raise UsageError("--into takes everything, --remap says where one experiment goes: leave out one of them")
    where: _Where = {
        "namespace": Namespace.from_path(into) if into else None,
        "incremental": not again,
        "remapping": dict(_remapped(text) for text in remap),
    }
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
            plan = importer.plan(**where) if dry_run else None
            done = importer.import_everything(artifacts=not no_artifacts, **where) if plan is None else None
        for notice in importer.notices if not quiet else ():
            click.echo(safe(f"Note: {notice}"), err=True)
        if done is not None:
            show(done, url, quiet=quiet)
            proven = True
            if (verify or rehearse) and not stop.is_set():
                with Reader(root) as reader, importer.opened() as there:
                    rids, options = importer.sent(reader, there, **where)
                    proven = read_back(
                        reader, rids, there, options, paths=(), source=importer.source, bare=False,
                        kinds=("runs",) if no_artifacts else ("runs", "artifacts"), quiet=quiet, stop=stop,
                    )  # fmt: skip
            ctx.exit(int(not (done.ok and proven)))
    assert plan is not None
    ctx.exit(_show(plan))


class _Where(TypedDict):
    namespace: Namespace | None
    incremental: bool
    remapping: dict[str, Namespace]


def _show(plan: MlflowPlan) -> int:
    """What would be fetched, and what would be sent where."""
    for message in plan.errors:
        click.echo(safe(f"Error: {message}"), err=True)
    show_plan(plan.fetch)
    names = ["experiment", "becomes", "runs to send", "there already"]
    table(names, [[name, place.path, *counts] for name, place, *counts in plan.send])
    return int(bool(plan.errors))


def _remapped(text: str) -> tuple[str, Namespace]:
    from mirror.importers.places import Namespace

    name, equals, place = text.rpartition("=")
    if not equals or not name:
        raise UsageError(f"`{text}` maps nothing: write --remap 'EXPERIMENT=entity/project'")
    return name, Namespace.from_path(place)
