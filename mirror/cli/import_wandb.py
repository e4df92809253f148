"""`mirror import wandb`: from one W&B server to another."""

from __future__ import annotations

import os
import threading
from datetime import datetime, timezone
from pathlib import Path

import click

from mirror.cli.options import (
    again_option,
    filter_option,
    filter_text,
    rehearse_option,
    remap_option,
    root_option,
    suffix_option,
    verify_option,
    workers_option,
)
from mirror.errors import UsageError

KEY_VARIABLE = "MIRROR_SRC_API_KEY"


@click.command("wandb")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--src-base-url", metavar="URL", help="Server to import from  [default: WANDB_BASE_URL, W&B's cloud]")
@click.option("--dst-base-url", metavar="URL", help="Server to import into.")
@remap_option
@filter_option
@workers_option
@again_option
@suffix_option
@click.option("--what", "whats", multiple=True, metavar="KINDS", help="Import only these: runs,artifacts,reports.")
@verify_option
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched and sent; writes nothing.")
@rehearse_option
@click.option("--accept-deletions", is_flag=True, help="Believe it when more than 10 % of what a project had is gone.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@root_option
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    src_base_url: str | None,
    dst_base_url: str | None,
    remap: tuple[str, ...],
    filter_: str | None,
    workers: int,
    again: bool,
    deleted_suffix: str | None,
    whats: tuple[str, ...],
    verify: bool,
    dry_run: bool,
    rehearse: bool,
    accept_deletions: bool,
    quiet: bool,
    root: Path,
) -> None:
    """Import projects from one W&B server into another: into the mirror first, and from there on.

    PATH is an entity, entity/project or entity/project/run of the source. The keys are MIRROR_SRC_API_KEY and
    MIRROR_DST_API_KEY; where one is not set, it is looked for as for a sync. The source is only read. What is mirrored
    is not fetched again, what is there is not sent again, and what failed is tried again: run the same command until
    it ends with exit code 0. See `mirror push` for what is kept, and how.

    \b
    Examples:
      mirror import wandb my-team/my-project --dst-base-url https://wandb.example.org
      mirror import wandb my-team --dst-base-url https://wandb.example.org --remap my-team/a=new-team/a
      mirror import wandb my-team/my-project --rehearse
    """
    from mirror.cli.progress import watching
    from mirror.cli.selection import server_filter
    from mirror.cli.sending import Sending, check_destination, chosen_kinds
    from mirror.cli.stopping import stopping
    from mirror.cli.synced import show_errors, show_plan
    from mirror.paths import canonical_source
    from mirror.sync.project import Options
    from mirror.sync.session import Session, targets
    from mirror.sync.wanted import WantedBytes

    check_destination(dst_base_url, "--dst-base-url", dry_run=dry_run, rehearse=rehearse)
    servers = targets(paths, src_base_url, os.environ)
    stop = ctx.ensure_object(threading.Event)
    if len(servers) != 1:
        raise UsageError("the paths are on several servers: import from one after the other")
    whole = filter_ is None and not any(target.run_ids for wanted in servers.values() for target in wanted)
    kinds = chosen_kinds(whats, whole)
    filter_ = None if filter_ is None else filter_text(filter_)
    wanted = server_filter(filter_, None, (), datetime.now(timezone.utc))
    options = Options(
        workers=2 * workers, accept_deletions=accept_deletions, filters=wanted, bytes=WantedBytes(everything=True)
    )
    source = canonical_source(next(iter(servers)))
    verify = verify or rehearse
    sending = Sending(root, paths, source, filter_, remap, workers, again, deleted_suffix, kinds, verify, quiet, stop)
    sending.check(dst_base_url, dry_run=dry_run, rehearse=rehearse)
    with stopping(stop), watching(quiet=quiet, verbose=False) as progress:
        session = Session(root, options, progress=progress, stop=stop, key=os.environ.get(KEY_VARIABLE))
        if dry_run:
            planned, result = session.plan(servers)
        else:
            planned, result = [], session.sync(servers)
    show_errors(result, quiet)
    if planned:
        show_plan(planned)
    if stop.is_set():
        click.echo("Interrupted. What was fetched is kept; run the same command again to go on.", err=True)
        ctx.exit(1)
    if dry_run and not root.exists():
        click.echo("What would be sent where is told once something is mirrored.", err=True)
        ctx.exit(int(not result.ok))
    if result.errors and not result.outcomes:
        click.echo("Nothing was sent: the source could not be read.", err=True)
        ctx.exit(1)
    code = sending.send(dst_base_url, dry_run=dry_run, rehearse=rehearse)
    ctx.exit(code or int(not result.ok))
