"""`mirror verify`: proof that the mirror is whole, and that a server holds the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.console import safe, table
from mirror.cli.options import root_option, source_option
from mirror.cli.progress import steps
from mirror.cli.stopping import stopping
from mirror.errors import MirrorError, UsageError

if TYPE_CHECKING:
    from mirror.store import Reader
    from mirror.verify.deletable import Verdict
    from mirror.verify.findings import Findings


@click.command("verify")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@root_option
@source_option
@click.option("--against", metavar="URL", help="Compare with this server, value by value.")
@click.option("--remap", multiple=True, metavar="A/B=C/D", help="Project A/B is called C/D there; may be repeated.")
@click.option("--deletable", is_flag=True, help="List runs whose originals could be deleted, and why others could not.")
@click.option(
    "--listed", default=100, show_default=True, type=click.IntRange(min=0), help="Differences to list; all are counted."
)
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests at the same time.")
@click.option(
    "--format", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True,
    help="For people, or for programs.",
)  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    root: Path,
    source: str | None,
    against: str | None,
    remap: tuple[str, ...],
    deletable: bool,
    listed: int,
    workers: int,
    format_: str,
) -> None:
    """Prove that the mirror is whole and, with --against, that a server holds the same. Changes nothing.

    Every file is read and compared with its checksum, every row is counted, every value read. --against names the
    server the runs came from, or one they were sent to; every value of histories, system metrics, config, summary,
    console, every file and artifact by digest, who logged and used artifacts, sweeps and reports are read from there
    and compared. What was sent is found under the names the push noted; --remap tells others. The key is
    MIRROR_SRC_API_KEY or MIRROR_DST_API_KEY, as for an import, else that of a sync. PATH (an entity, a project, a run)
    narrows what is compared: of single runs, the artifacts that they logged and used go with them. The exit code is 1
    if anything differs or could not be compared.

    \b
    Examples:
      mirror verify
      mirror verify my-team/my-project --against https://api.wandb.ai
      mirror verify my-team --against https://wandb.example.org --remap my-team/old=new-team/old
      mirror verify my-team/my-project --against https://api.wandb.ai --deletable
    """
    from mirror.paths import parse
    from mirror.query.runs import check_held
    from mirror.store import Reader
    from mirror.verify.findings import Findings

    if deletable and against is None:
        raise UsageError("--deletable needs a comparison with the originals: add --against URL")
    if remap and against is None:
        raise UsageError("--remap says where projects went on another server: add --against URL")
    own, other = Findings(listed), Findings(listed)
    verdicts: list[Verdict] = []
    stop = ctx.ensure_object(threading.Event)
    with stopping(stop), Reader(root) as reader:
        chosen = [parse(path) for path in paths]
        for path in chosen:
            check_held(reader, path, source)
        _store(reader, own, stop)
        if against is not None and not stop.is_set():
            verdicts = _against(reader, chosen, source, against, remap, workers, own, other, deletable, stop)
    if format_ == "json":
        click.echo(json.dumps(_document(own, other if against else None, verdicts if deletable else None), indent=2))
    else:
        show_findings("The mirror itself", own)
        if against is not None:
            show_findings(f"Compared with {against}", other)
        if deletable:
            _verdicts(verdicts)
    if stop.is_set():
        click.echo("Interrupted: what was not compared until then is not proven.", err=True)
    ctx.exit(int(stop.is_set() or not (own.ok and other.ok)))


def _store(reader: Reader, findings: Findings, stop: threading.Event) -> None:
    from mirror.verify.store import verify_store

    with ExitStack() as stack, _until(stop):
        bars: dict[str, Callable[[int], None]] = {}

        def progress(what: str, done: int, total: int) -> None:
            if stop.is_set():
                raise MirrorError("interrupted")
            if total and what not in bars:
                bars[what] = stack.enter_context(steps(f"checking {what}", total, unit=what))
            if total:
                bars[what](done)

        verify_store(reader, findings, progress)


def _against(
    reader: Reader,
    paths: list[Any],
    source: str | None,
    against: str,
    remap: tuple[str, ...],
    workers: int,
    own: Findings,
    findings: Findings,
    deletable: bool,
    stop: threading.Event,
) -> list[Verdict]:
    from mirror.importers.places import remapping
    from mirror.importers.sent import Sent
    from mirror.verify.against import chosen, compare_project, meant
    from mirror.verify.deletable import verdicts
    from mirror.verify.other import Other, connected

    moved = remapping(remap)
    with closing(connected(reader, against, workers, stop)) as server, _until(stop):
        other = Other(server, moved, Sent(reader.layout.root, server.name))
        projects = list(chosen(reader, paths, source))
        among = projects if paths else meant(projects, other)
        if left := len(projects) - len(among):
            click.echo(f"{left:,} projects that neither came from there nor went there are left out: name them to "
                       "compare them.", err=True)  # fmt: skip
        for held in among:
            if stop.is_set():
                break
            rows = sum(row["history_rows"] + row["system_rows"] for row in held.runs)
            with steps(held.here.path, rows, unit="rows") as advance:
                compare_project(
                    reader, held, other, findings, workers=workers, twice=deletable, stop=stop, progress=advance
                )
        if deletable and not stop.is_set():
            return verdicts(reader, among, other, findings, whole_store=own.ok)
    return []


@contextmanager
def _until(stop: threading.Event) -> Iterator[None]:
    """Whatever fails after the user asked to stop is how it stopped."""
    try:
        yield
    except MirrorError:
        if not stop.is_set():
            raise


# -- what is said ---------------------------------------------------------------------------------------------


def show_findings(title: str, findings: Findings) -> None:
    compared = ", ".join(f"{count:,} {name}" for name, count in sorted(findings.compared.items())) or "nothing"
    click.echo(safe(f"{title}: {compared}"))
    if findings.respelled:
        click.echo(f"  {findings.respelled:,} values are equal and spelled in another way (2 and 2.0, NaN and 'NaN')")
    if findings.differences:
        columns = ["where", "stream", "row", "step", "key", "here", "there"]
        table(columns, [[getattr(one, name) for name in columns] for one in findings.differences])
    if count := sum(findings.different.values()):
        more = f"; {len(findings.differences):,} are listed" if count > len(findings.differences) else ""
        click.echo(f"  {count:,} differences in {len(findings.different):,} places{more}")
    for where, reasons in sorted(findings.unproven.items()):
        for reason in reasons:
            click.echo(safe(f"  not compared: {where}: {reason}"))
    if findings.ok:
        click.echo("  no difference")


def _verdicts(found: list[Verdict]) -> None:
    rows = [[one.run, one.source, one.deletable, one.bytes_held, "; ".join(one.reasons)] for one in found]
    table(["run", "source", "deletable", "bytes held", "why not"], rows)
    click.echo(f"{sum(one.deletable for one in found):,} of {len(found):,} originals could be deleted.")


def _document(own: Findings, other: Findings | None, verdicts: list[Verdict] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"store": _said(own)}
    if other is not None:
        found["against"] = _said(other)
    if verdicts is not None:
        found["deletable"] = [one.__dict__ | {"deletable": one.deletable} for one in verdicts]
    return found


def _said(findings: Findings) -> dict[str, Any]:
    return {
        "ok": findings.ok,
        "compared": dict(findings.compared),
        "respelled": findings.respelled,
        "differences": sum(findings.different.values()),
        "listed": [one.__dict__ for one in findings.differences],
        "not_compared": findings.unproven,
    }
