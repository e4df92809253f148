"""`mirror demo`: the main job, start to end, on this machine alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import click

from mirror.errors import MirrorError, UsageError

_BEST = """
select name, state, config->>'lr' as lr, config->>'width' as width, round((summary->>'val/acc')::double, 3) as accuracy
from runs where state = 'finished' order by (summary->>'val/acc')::double desc nulls last limit 5
"""
_DIVERGED = """
select name, state, min(step) filter (kind = 'nonfinite') as first_nan_step,
       count(*) filter (kind = 'nonfinite') as nan_rows
from history join runs using (rid) where key = 'loss' group by all having nan_rows > 0
"""


@click.command("demo")
@click.option(
    "--dir",
    "folder",
    default="mirror-demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to make; the mirror stays there for you to play with.",
)
def command(folder: Path) -> None:
    """Show everything in a minute: log, sync, ask. No account and no network needed.

    Starts a server on a free port of this machine, trains a small model a few dozen times and logs it there
    through W&B's wire (with the real SDK if `wandb` is installed), pulls all of it into a fresh mirror, and
    asks the mirror some questions.

    \b
    Example:
      mirror demo
      mirror sql "select name, summary from runs" --mirror mirror-demo/mirror
    """
    from mirror.demo.server import embedded_server, environment
    from mirror.demo.training import ENTITY, PROJECT

    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"`{folder}` is not empty: remove it, or choose another folder with --dir")
    root = folder / "mirror"
    path = f"{ENTITY}/{PROJECT}"
    with tempfile.TemporaryDirectory() as scratch, embedded_server(folder / "server") as server:
        env = environment(server, Path(scratch))
        _step(f"A server that speaks W&B's API runs at {server['WANDB_BASE_URL']}.")
        _log(env)
        _step(f"Pull the project into a mirror: mirror sync {path}")
        _mirror(["sync", path], root, env)
        _step("Sync again: nothing changed, so nothing is fetched.")
        _mirror(["sync", path], root, env)
    _step("The server is gone; from here on everything is answered by the mirror. A leaderboard, in SQL:")
    _mirror(["sql", _BEST], root)
    _step("A MongoDB-style filter, as in wandb.Api():")
    where = '{"config.width": 32, "summary_metrics.val/acc": {"$gt": 0.9}}'
    click.secho(f"  mirror runs {path} --filter '{where}'", dim=True)
    _mirror(["runs", path, "--filter", where, "--columns", "name,state,config.lr,summary.val/acc"], root)
    _step("Which runs diverged, and when? NaN is kept as NaN:")
    _mirror(["sql", _DIVERGED], root)
    _step("Learning curves, the mean of each learning rate:")
    curves = ["plot", path, "--metric", "loss", "--by", "config.lr", "--filter", '{"config.lr": {"$lt": 1}}']
    click.secho(f"  mirror plot {path} --metric loss --by config.lr --filter '{curves[-1]}'", dim=True)
    _mirror(curves, root)
    at = f"--mirror {root}"
    _step("It is all yours to play with:")
    for line in (
        f"mirror status {at}",
        f"mirror sql \"select * from history where key = 'loss' limit 5\" {at}",
        f"mirror query --list {at}",
        f"mirror best {path} --metric val/acc --goal maximize {at}",
        f"mirror export {path} --what history --format parquet -o exported {at}",
        f"mirror serve {at}        # unchanged wandb.Api() scripts read from it",
        "mirror sync YOUR-TEAM/YOUR-PROJECT      # your own, from wandb.ai (uses your `wandb login`)",
    ):
        click.echo(f"  {line}")


def _step(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def _log(env: dict[str, str]) -> None:
    """Train and log; by plain requests if the SDK is not there or does not work here."""
    from mirror.demo.logging import road
    from mirror.demo.training import trials

    _step(f"Train {len(trials())} small networks and log them through W&B's wire.")
    how = road()
    failed = _train(how, env)
    if failed and how == "sdk":
        click.echo(f"  The installed wandb SDK failed ({failed}); sending the same requests without it.", err=True)
        how, failed = "wire", _train("wire", env)
    if failed:
        raise MirrorError(f"logging the demo's runs failed: {failed}")
    click.echo(
        "  Logged by the real wandb SDK."
        if how == "sdk"
        else "  Logged without the SDK: `pip install wandb` to use it."
    )


def _train(how: str, env: dict[str, str]) -> str | None:
    """Two processes side by side; the last line of what one of them complained of, if it failed."""
    from mirror.cli.console import safe
    from mirror.cli.progress import steps
    from mirror.demo.training import trials

    with (
        steps("  training", len(trials()), unit="runs") as advance,
        tempfile.TemporaryFile("w+") as complaints,
    ):
        command = [sys.executable, "-m", "mirror.demo.logging", how]
        processes = [
            subprocess.Popen([*command, str(first), "2"], env=env, stdout=subprocess.PIPE, stderr=complaints, text=True)
            for first in (0, 1)
        ]
        readers = [threading.Thread(target=_count, args=(p, advance)) for p in processes]
        for reader in readers:
            reader.start()
        for reader, process in zip(readers, processes, strict=True):
            reader.join()
            process.wait()
        if not any(process.returncode for process in processes):
            return None
        complaints.seek(0)
        return safe((complaints.read().strip().splitlines() or ["no message"])[-1])


def _count(process: subprocess.Popen[str], advance: Callable[[int], None]) -> None:
    assert process.stdout is not None
    for _ in process.stdout:
        advance(1)


def _mirror(args: list[str], root: Path, env: dict[str, str] | None = None) -> None:
    """Run a command of this program as a user would."""
    done = subprocess.run([sys.executable, "-m", "mirror", *args, "--mirror", str(root)], env=env, check=False)
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)
