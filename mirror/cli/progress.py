"""Progress on stderr: bars on a terminal, nothing or a few lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

from mirror.cli.console import safe
from mirror.query.text import size_of

if TYPE_CHECKING:
    from mirror.sync.progress import Progress


def watching(*, quiet: bool, verbose: bool) -> AbstractContextManager[Progress]:
    """What a sync reports to: bars if stderr is a terminal; nothing at all if `quiet`."""
    from mirror.sync.progress import Progress

    if quiet:
        return nullcontext(Progress())
    if sys.stderr.isatty():
        return _bars(verbose)

    class Lines(Progress):
        def notice(self, message: str) -> None:
            if verbose:
                click.echo(safe(message), err=True)

    return nullcontext(Lines())


@contextmanager
def steps(what: str, total: int, *, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar with rate and remaining time for a known amount of work; hands out the function that advances it.
    Nothing is drawn off a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich import progress as bars
    from rich.console import Console

    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}", markup=False), bars.BarColumn()]
    columns += [bars.DownloadColumn(), bars.TransferSpeedColumn()] if unit == "B" else [bars.MofNCompleteColumn()]
    with bars.Progress(*columns, bars.TimeRemainingColumn(), console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(safe(what), total=total)
        yield lambda done: drawn.advance(task, done)


@contextmanager
def _bars(verbose: bool) -> Iterator[Progress]:
    """Bars on stderr: runs listed, runs and rows fetched, bytes downloaded, with rates and the time that is left."""
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    from mirror.sync.progress import Progress

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            speed = task.finished_speed or task.speed
            shown = size_of(int(speed or 0)) if task.fields.get("in_bytes") else f"{speed or 0:,.0f}"
            return Text(f"{shown}/s" if speed else "", style="progress.data.speed")

    class Done(bars.MofNCompleteColumn):
        def render(self, task: bars.Task) -> Text:
            if not task.fields.get("in_bytes"):
                return super().render(task)
            return Text(f"{size_of(int(task.completed))}/{size_of(int(task.total or 0))}", style="progress.download")

    class Limit(bars.ProgressColumn):
        max_refresh = 0.5

        def render(self, task: bars.Task) -> Text:
            seconds = shown.pause()
            return Text(f"rate limit: waiting {seconds:.0f} s" if seconds > 1 else "", style="yellow")

    class Bars(Progress):
        pause: Callable[[], float] = staticmethod(lambda: 0.0)
        project = ""

        def asking(self, pause: Callable[[], float]) -> None:
            self.pause = pause

        def listing(self, project: str, listed: int, total: int | None) -> None:
            self._start(project)
            drawn.update(self.listed, completed=listed, total=total)

        def fetching(self, project: str, runs: int, rows: int) -> None:
            self._start(project)
            self.runs = drawn.add_task("  runs", total=runs)
            self.rows = drawn.add_task("  rows", total=rows)

        def _start(self, project: str) -> None:
            if project != self.project:
                for task in list(drawn.task_ids):
                    drawn.remove_task(task)
                self.project = project
                self.listed = drawn.add_task(safe(project), total=None)

        def fetched(self, *, runs: int = 0, rows: int = 0) -> None:
            drawn.advance(self.runs, runs)
            drawn.advance(self.rows, rows)

        def downloading(self, project: str, files: int, nbytes: int) -> None:
            self._start(project)
            self.files = drawn.add_task("  files", total=files)
            self.bytes = drawn.add_task("  bytes", total=nbytes, in_bytes=True)

        def downloaded(self, *, files: int = 0, nbytes: int = 0) -> None:
            drawn.advance(self.files, files)
            drawn.advance(self.bytes, nbytes)

        def notice(self, message: str) -> None:
            if verbose:
                drawn.console.print(safe(message), markup=False, highlight=False)

    shown = Bars()
    drawn = bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        Done(),
        Rate(),
        bars.TimeRemainingColumn(),
        Limit(),
        console=Console(stderr=True),
        transient=True,
    )
    with drawn:
        yield shown
