"""What `mirror push` and `mirror import` share: which runs go where, a bar, and the account at the end."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.console import safe, table
from mirror.cli.progress import steps
from mirror.cli.stopping import stopping
from mirror.errors import UsageError
from mirror.query.text import size_of

if TYPE_CHECKING:
    from mirror.importers.account import Account
    from mirror.importers.everything import Everything
    from mirror.importers.push import PushOptions, PushProgress
    from mirror.importers.run import MirroredRun
    from mirror.store import Reader

_COUNTED = {"history": "rows of history", "system": "rows of system metrics", "console": "console lines"}

KEY_VARIABLE = "MIRROR_DST_API_KEY"


@dataclass(frozen=True)
class Sending:
    """A push as its options describe it."""

    root: Path
    paths: Sequence[str]
    source: str | None
    filter: str | None
    remap: Sequence[str]
    workers: int
    again: bool
    deleted_suffix: str | None
    kinds: Sequence[str]
    verify: bool
    quiet: bool
    stop: threading.Event

    def check(self, to: str | None, *, dry_run: bool = False, rehearse: bool = False) -> None:
        """See that the options make sense and the server lets us in, before hours are spent on a source. Raises
        UsageError, SourceError."""
        from mirror.importers.server import opened

        self._check_options(to, dry_run, rehearse)
        if to is not None:
            with opened(to, os.environ.get(KEY_VARIABLE)):
                pass

    def _check_options(self, to: str | None, dry_run: bool, rehearse: bool) -> None:
        from mirror.importers.places import remapping

        check_destination(to, "--to", dry_run=dry_run, rehearse=rehearse)
        remapping(self.remap)

    def send(self, to: str | None, *, dry_run: bool = False, rehearse: bool = False) -> int:
        """Send, and say what became of it; returns the exit code. Raises UsageError."""
        from mirror.store import Reader

        self._check_options(to, dry_run, rehearse)
        with Reader(self.root) as reader:
            rids = self._chosen(reader)
            if not rehearse:
                key = os.environ.get(KEY_VARIABLE)
                return self._send(reader, rids, str(to), key, self.root, dry_run=dry_run)
            with rehearsal() as (url, key, ledger):
                self._say(f"Rehearsing: sending to a server of its own at {url}.")
                return self._send(reader, rids, url, key, ledger, dry_run=False)

    def send_to_mlflow(self, uri: str, *, dry_run: bool) -> int:
        """Send runs to MLflow, likewise."""
        from mirror.importers.everything import Everything
        from mirror.importers.ledger import Ledger
        from mirror.importers.to_mlflow.push import (
            MlflowOptions,
            experiments,
            open_destination,
            plan_mlflow,
            push_to_mlflow,
        )
        from mirror.store import Reader

        options = MlflowOptions(self.workers, not self.again, experiments(self.remap))
        there = open_destination(uri)
        with Reader(self.root) as reader:
            rids = self._chosen(reader)
            if dry_run:
                planned = plan_mlflow(reader, rids, there, options, Ledger(self.root, "run"))
                return _show_plan((p.run, p.experiment, p.done) for p in planned)
            with stopping(self.stop), bars(self.quiet) as progress:
                totals = push_to_mlflow(reader, rids, there, options, progress=progress, stop=self.stop)
        for notice in there.notices:
            self._say(f"Note: {notice}")
        show(Everything({"runs": totals}), uri, quiet=self.quiet)
        if totals.done:
            self._say(f"Read back and compared: {totals.counts['points']:,} points of {totals.done:,} runs, all equal.")
        return int(not totals.ok)

    def _chosen(self, reader: Reader) -> list[int]:
        from mirror.cli.runs import selected
        from mirror.query.runs import rids

        return rids(reader, selected(self.paths, self.filter, source=self.source, reader=reader))

    def _send(
        self, reader: Reader, rids: Sequence[int], to: str, key: str | None, ledger: Path, *, dry_run: bool
    ) -> int:
        from mirror.cli.proof import read_back
        from mirror.importers.everything import KINDS, push_everything
        from mirror.importers.places import remapping
        from mirror.importers.push import PushOptions, plan
        from mirror.importers.server import opened
        from mirror.paths import parse

        options = PushOptions(self.workers, not self.again, remapping(self.remap), ledger=ledger)
        _check_known(reader, options, dry_run)
        with opened(to, key, workers=self.workers, stop=self.stop, deleted_suffix=self.deleted_suffix) as there:
            if dry_run:
                planned = plan(reader, rids, there, options)
                return _show_plan((p.run, p.place.path, p.done) for p in planned)
            with stopping(self.stop), bars(self.quiet) as progress:
                done = push_everything(
                    reader,
                    rids,
                    there,
                    options,
                    kinds=self.kinds or KINDS,
                    whole=None if self.filter else [parse(path) for path in self.paths],
                    source=self.source,
                    progress=progress,
                    stop=self.stop,
                )
            show(done, to, quiet=self.quiet)
            proven = not self.verify or self.stop.is_set() or read_back(
                reader, rids, there, options, paths=self.paths, source=self.source, bare=self.filter is None,
                kinds=self.kinds or KINDS, quiet=self.quiet, stop=self.stop,
            )  # fmt: skip
        return int(not (done.ok and proven))

    def _say(self, text: str) -> None:
        if not self.quiet:
            click.echo(safe(text), err=True)


def check_destination(url: str | None, option: str, *, dry_run: bool, rehearse: bool) -> None:
    """See that there is one server to send to; `option` names it. Raises UsageError."""
    if rehearse == (url is not None):
        raise UsageError(f"name the server, {option} URL, or --rehearse without one")
    if dry_run and rehearse:
        raise UsageError("--dry-run sends nothing, --rehearse sends to a server of its own: leave out one of them")


@contextmanager
def rehearsal() -> Iterator[tuple[str, str, Path]]:
    """A server that nobody else uses: its URL, its key, and a folder for a ledger of what is sent there."""
    from mirror.demo.server import embedded_server

    with (
        tempfile.TemporaryDirectory(prefix="mirror-rehearsal-") as place,
        embedded_server(Path(place, "server")) as env,
    ):
        yield env["WANDB_BASE_URL"], env["WANDB_API_KEY"], Path(place)


@contextmanager
def bars(quiet: bool) -> Iterator[PushProgress]:
    """Bars on a terminal, one after the other, drawn when it is known how much there is: rows of runs, then bytes of
    artifacts, then reports."""
    from contextlib import ExitStack

    from mirror.importers.push import PushProgress

    if quiet:
        yield PushProgress()
        return
    with ExitStack() as stack:

        class Bar(PushProgress):
            def _draw(self, what: str, number: int, unit: str) -> None:
                stack.close()  # what was drawn before is over
                self.unit = unit
                self.advance = stack.enter_context(steps(what, number, unit=unit))

            def planned(self, runs: int, rows: int) -> None:
                self._draw(f"sending {runs} runs", rows, "rows")

            def rows(self, rows: int) -> None:
                self.advance(rows)

            def things(self, what: str, number: int, nbytes: int) -> None:
                self._draw(f"sending {number} {what}", nbytes or number, "B" if nbytes else "")

            def bytes(self, nbytes: int) -> None:
                if self.unit == "B":
                    self.advance(nbytes)

            def thing(self, account: Account) -> None:
                if self.unit != "B":
                    self.advance(1)

        yield Bar()


def _check_known(reader: Reader, options: PushOptions, dry_run: bool) -> None:
    """Refuse to send a project under its old name since a --remap misspells it; what a dry run names may come yet."""
    from mirror.query.sql import asking

    with asking(reader) as connection:
        known = set(connection.execute("select entity, project from projects").fetchall())
    for here in options.remapping:
        if (here.entity, here.project) not in known:
            message = f"--remap names `{here.path}`, a project the mirror does not hold: `mirror status` lists them"
            if not dry_run:
                raise UsageError(message)
            click.echo(safe(f"Note: {message}"), err=True)


def _show_plan(planned: Iterable[tuple[MirroredRun, str, bool]]) -> int:
    """`planned`: runs, where they go, and whether they are there already."""
    rows: dict[tuple[str, str], list[int]] = {}
    for run, place, done in planned:
        counts = rows.setdefault((run.namespace.path, place), [0, 0, 0, 0])
        counts[done] += 1
        if not done:
            counts[2] += run.row["history_rows"]
            counts[3] += run.row["system_rows"]
    names = ["project", "becomes", "runs to send", "there already", "rows", "system metrics"]
    table(names, [[here, place, *counts] for (here, place), counts in sorted(rows.items())])
    return 0


def show(done: Everything, to: str, *, quiet: bool) -> None:
    """What became of everything: errors on stderr, what is not the same there as tables on stdout."""
    for account in done.failures:
        _error(f"{account.path}: {account.error}")
    for message in done.errors:
        _error(message)
    for kind, totals in done.kinds.items() if not quiet else ():
        there = f", {totals.skipped:,} there already" if totals.skipped else ""
        failed = f", {len(totals.failures):,} failed" if totals.failures else ""
        counted = [
            size_of(n) if what == "bytes" else f"{n:,} {_COUNTED.get(what, what)}"
            for what, n in totals.counts.items()
            if n and what != kind
        ]
        counts = f": {', '.join(counted)}" if counted else ""
        click.echo(safe(f"{totals.done:,} {kind} sent to {to}{there}{failed}{counts}"))
        if totals.notes:
            rows = [[change, what, *numbers] for (change, what), numbers in sorted(totals.notes.items())]
            table(["not the same", "what", kind, "number", "for example"], rows)


def chosen_kinds(whats: Sequence[str], whole: bool) -> tuple[str, ...]:
    """What `--what` says; without it everything of whole projects, and of single runs the runs alone."""
    from mirror.importers.everything import KINDS

    named = [what.strip() for text in whats for what in text.split(",") if what.strip()]
    for what in named:
        if what not in KINDS:
            raise UsageError(f"`{what}` is nothing that can be sent: use {', '.join(KINDS)}")
    return tuple(named) or (KINDS if whole else ("runs",))


def _error(message: str) -> None:
    click.echo(safe(f"Error: {message}"), err=True)
