"""`mirror sync`: pull runs from W&B into the mirror."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.console import safe
from mirror.cli.options import Option, root_option
from mirror.cli.stopping import stopping
from mirror.cli.synced import show_errors, show_plan, show_summary

if TYPE_CHECKING:
    from mirror.sources.places import Places
    from mirror.sync.progress import Progress
    from mirror.sync.project import Options
    from mirror.sync.session import Planned, Result, Target


@click.command("sync")
@click.argument("paths", nargs=-1, metavar="[PATH...]")
@click.option("--base-url", metavar="URL", help="Server to pull from  [default: WANDB_BASE_URL, then W&B's cloud]")
@root_option
@click.option("--workers", default=8, show_default=True, type=click.IntRange(1, 64), help="Requests at the same time.")
@click.option(
    "--page-size",
    default=10_000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Rows of history to ask for at once; pages that fail or are too long are made smaller by themselves.",
)
@click.option(
    "--filter",
    "filter_",
    metavar="JSON|@FILE|-",
    help='Only runs that meet these conditions, as in wandb.Api().runs, e.g. {"config.lr": {"$gt": 0.01}}.',
)
@click.option("--since", metavar="TIME", help="Only runs heard of since: a date, or how long ago, such as 36h or 7d.")
@click.option("--state", "states", multiple=True, metavar="STATE", help="Only runs in this state; may be repeated.")
@click.option("--files", multiple=True, metavar="GLOB", help="Fetch the bytes of run files with such names, too.")
@click.option(
    "--artifacts",
    multiple=True,
    metavar="TYPE/NAME[:ALIAS]",
    help="Fetch the bytes of these artifacts, too; globs, without an alias all versions; may be repeated.",
)
@click.option("--media", is_flag=True, help="Fetch the bytes of images, tables and other media that runs logged, too.")
@click.option("--all-bytes", is_flag=True, help="Fetch the bytes of all run files, media and artifacts, too.")
@click.option(
    "--what",
    multiple=True,
    metavar="PARTS",
    help="Fetch only these: runs,history,system,files,logs,sweeps,artifacts,reports  [default: all of them]",
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Projects (entity/project) or run paths to leave alone.")
@click.option(
    "--watch",
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    is_flag=False,
    flag_value=30.0,
    help="Sync again and again, with such a pause (30 without a number), until Ctrl-C.",
)
@click.option("--full", is_flag=True, help="Look at every run again, also at those whose listing did not change.")
@click.option("--entity", metavar="NAME", help="For local run folders: the entity of their runs, whatever they say.")
@click.option("--project", metavar="NAME", help="For local run folders: the project of their runs.")
@click.option("--include-online", is_flag=True, help="For local folders: read the logs of online runs, too.")
@click.option(
    "--experiment", "experiments", multiple=True, metavar="NAME", help="For MLflow: only this; may be repeated."
)
@click.option(
    "--deleted", "include_deleted", is_flag=True, cls=Option, formerly=["--include-deleted"],
    help="For MLflow: what it holds as deleted, too.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched; writes nothing.")
@click.option(
    "--accept-deletions",
    is_flag=True,
    help="Believe it when more than 10 % of what a project had is gone.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Say which key is used and what became of every project.")
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    base_url: str | None,
    root: Path,
    workers: int,
    page_size: int,
    filter_: str | None,
    since: str | None,
    states: tuple[str, ...],
    files: tuple[str, ...],
    artifacts: tuple[str, ...],
    media: bool,
    all_bytes: bool,
    what: tuple[str, ...],
    exclude: tuple[str, ...],
    watch: float | None,
    full: bool,
    entity: str | None,
    project: str | None,
    include_online: bool,
    experiments: tuple[str, ...],
    include_deleted: bool,
    dry_run: bool,
    accept_deletions: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Pull runs from W&B into the mirror: only what is new or has changed.

    PATH is an entity, entity/project, entity/project/run or a URL; several may be given. The API key is
    taken from WANDB_API_KEY or from netrc, where `wandb login` puts it. Nothing is ever written to W&B.

    PATH may also be what the SDK left on this machine: a folder of run folders, a run folder or a `.wandb` log,
    written with a leading `./`, `/`, `~` or `file:`. Logs that are still written or were torn by a crash are
    read as far as they are whole; the next sync goes on from there.

    PATH may also be an MLflow server or the SQLite file of one, after `mlflow:`. Its experiments become projects of
    the entity `mlflow`; there --filter is written in MLflow's own language.

    Without a PATH, what `mirror.toml` in the mirror's folder lists is synced, entry by entry.

    Interrupted or failed syncs go on where they stopped when the command is run again. The exit code is 1 if
    anything is missing from the mirror that should be there, and what it is is listed; 2 for a wrong call.

    \b
    Examples:
      mirror sync my-team                              every project of an entity
      mirror sync my-team/my-project --dry-run         what would be fetched
      mirror sync my-team/my-project my-team/other     two projects
      mirror sync my-team/my-project/1a2b3c4d          one run
      mirror sync https://wandb.ai/my-team/my-project/runs/1a2b3c4d
      mirror sync my-team/my-project --watch           keep following what runs
      mirror sync my-team/my-project --files '*.ckpt' --media
      mirror sync my-team/my-project --artifacts 'model/*:latest' --artifacts 'dataset/mnist'
      mirror sync my-team --since 7d --state finished --exclude 'my-team/scratch*'
      mirror sync my-team --what runs,sweeps           no histories for now; a later sync fetches them
      mirror sync ./wandb                              offline runs of this machine
      mirror sync mlflow:http://127.0.0.1:5000         an MLflow server
      mirror sync mlflow:sqlite:///mlflow.db           its file, which is faster
      mirror sync mlflow:databricks                    MLflow at Databricks (needs 'wandb-mirror[mlflow]')
      mirror sync my-team --base-url https://wandb.example.org --mirror /data/mirror
    """
    if not paths:
        from mirror.cli.regular import sync_regularly

        sync_regularly(ctx, root)
    from mirror.cli.progress import watching
    from mirror.cli.selection import server_filter
    from mirror.memory import give_back
    from mirror.paths import local_path
    from mirror.sources.parts import chosen
    from mirror.sync.project import Options
    from mirror.sync.session import targets
    from mirror.sync.wanted import WantedBytes

    give_back()
    stores = [path for path in paths if path.startswith("mlflow:")]
    paths = tuple(path for path in paths if path not in stores)
    folders = [folder for path in paths if (folder := local_path(path)) is not None]
    for path in paths:
        is_folder = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for names that are too long
        if is_folder and local_path(path) is None and any(Path(path).glob("*run-*")):
            click.echo(safe(f"Note: `{path}` names an entity; the folder of that name here is `./{path}`."), err=True)
    if not folders and (entity or project or include_online):
        raise click.UsageError("--entity, --project and --include-online are for local run folders")
    if (folders or stores) and what:
        raise click.UsageError("--what is for W&B's servers: run folders and MLflow stores are read whole")
    if dry_run and watch:
        raise click.UsageError("--watch syncs again and again, --dry-run not at all: leave out one of them")
    if not stores and (experiments or include_deleted):
        raise click.UsageError("--experiment and --deleted are for MLflow: name a store, mlflow:URI")
    wanted = WantedBytes(files, artifacts, media, all_bytes)
    if stores and ((filter_ and paths) or since or states or exclude or artifacts or media):
        raise click.UsageError(
            "--filter means something else to MLflow; --since, --state, --exclude, --artifacts and --media nothing: "
            "sync mlflow: paths without them, or on their own with a --filter in MLflow's language"
        )
    filters = None if stores else server_filter(filter_, since, states, datetime.now(timezone.utc))
    if folders and filters:
        raise click.UsageError("--filter, --since and --state are for servers, which judge them: sync folders whole")
    servers = targets([path for path in paths if local_path(path) is None], base_url, os.environ)
    options = Options(workers, page_size, full, accept_deletions, filters, wanted, exclude, chosen(what))
    local = _Local(folders, entity, project, include_online, base_url)
    mlflow = _Mlflow(stores, experiments, include_deleted, filter_)
    stop = ctx.ensure_object(threading.Event)
    with stopping(stop):
        while True:
            began = time.monotonic()
            with watching(quiet=quiet, verbose=verbose) as progress:
                done = _once(root, servers, local, mlflow, options, progress, stop, dry_run)
            if dry_run:
                show_plan(done.planned)
            show_errors(done.result, quiet)
            notes = [note for outcome in done.result.outcomes for note in outcome.notes]
            for notice in () if quiet else [*notes, *done.notices]:
                click.echo(safe(f"Note: {notice}"), err=True)
            if not stop.is_set() and done.result.outcomes and not quiet:
                show_summary(done.result, root, verbose, time.monotonic() - began)
            if watch is None or stop.wait(watch):
                break
    if watch is not None:
        click.echo("Stopped. Everything fetched so far is in the mirror.", err=True)
        ctx.exit(0)
    if stop.is_set():
        click.echo("Interrupted. What was fetched is kept; run the same command again to go on.", err=True)
    ctx.exit(0 if done.result.ok and not stop.is_set() else 1)


@dataclass(frozen=True)
class _Local:
    """Run folders of this machine, and what their runs are to belong to."""

    folders: Sequence[Path]
    entity: str | None
    project: str | None
    online: bool
    base_url: str | None
    """Where their runs were sent to, if somebody said."""

    @property
    def server(self) -> str | None:
        from mirror.paths import api_url, canonical_source

        return canonical_source(api_url(self.base_url)) if self.base_url else None

    def open(self) -> Iterator[Places]:
        from mirror.sources.offline.source import OfflineSource

        if self.folders:
            default = os.environ.get("WANDB_ENTITY")
            yield OfflineSource(
                self.folders, entity=self.entity, project=self.project, default_entity=default, online=self.online
            )


@dataclass(frozen=True)
class _Mlflow:
    """MLflow stores, and what of them is wanted."""

    stores: Sequence[str]
    experiments: Sequence[str]
    deleted: bool
    filter: str | None

    def open(self) -> Iterator[Places]:
        from mirror.sources.mlflow.road import open_road
        from mirror.sources.mlflow.source import MlflowSource

        for store in self.stores:
            road = open_road(store, os.environ)
            yield MlflowSource(road, experiments=self.experiments, deleted=self.deleted, filter_=self.filter)


@dataclass
class _Done:
    planned: list[Planned]
    result: Result
    notices: list[str]


def _once(
    root: Path,
    servers: Mapping[str, Sequence[Target]],
    local: _Local,
    mlflow: _Mlflow,
    options: Options,
    progress: Progress,
    stop: threading.Event,
    dry_run: bool,
) -> _Done:
    """One sync, or its plan."""
    from mirror.sync.session import Result, Session

    done = _Done([], Result(), [])
    if servers:
        session = Session(root, options, progress=progress, stop=stop)
        if dry_run:
            done.planned, done.result = session.plan(servers)
        else:
            done.result = session.sync(servers)
    if local.folders or mlflow.stores:
        from mirror.errors import SourceError
        from mirror.sync.folders import plan_folders, sync_folders

        for opened in (local.open, mlflow.open):
            try:
                for source in opened():
                    if stop.is_set():
                        break
                    if dry_run:
                        more, found = plan_folders(root, source, options)
                        done.planned += more
                    else:
                        found = sync_folders(root, source, options, progress=progress, stop=stop, server=local.server)
                    done.result.outcomes += found.outcomes
                    done.result.errors += found.errors
                    done.notices += source.notices
            except SourceError as e:
                done.result.errors.append(str(e))
    return done
