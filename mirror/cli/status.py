"""`mirror status`: what is mirrored, how fresh, how complete."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.console import safe, table
from mirror.cli.options import root_option
from mirror.query.text import size_of

if TYPE_CHECKING:
    from mirror.query.status import Status

_LISTED = 20


@click.command("status")
@click.argument("path", required=False)
@root_option
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@click.option("--all", "all_", is_flag=True, help=f"List every incomplete run, not the first {_LISTED} only.")
def command(path: str | None, root: Path, format_: str, all_: bool) -> None:
    """Say what is mirrored, how fresh and how complete: all of it, or what PATH names.

    A run is incomplete if the mirror holds fewer rows of its history than its source said it has. Runs that keep
    failing are in quarantine and are tried again by later syncs; a project is unreachable if its source refused
    it, and deleted runs are those that were found gone at their source: the mirror keeps both.

    \b
    Examples:
      mirror status
      mirror status my-team/my-project --all
      mirror status --format json
    """
    from mirror.paths import parse
    from mirror.query.status import status
    from mirror.store import Reader

    with Reader(root) as reader:
        found = status(reader, parse(path) if path is not None else None)
    if format_ == "json":
        from mirror.query.text import json_text

        click.echo(json_text(found.as_dict()))
        return
    _show(found, all_)


def _show(found: Status, all_: bool) -> None:
    projects = found.projects
    runs, rows = (sum(p[name] for p in projects) for name in ("runs", "history_rows"))
    published = "no snapshot yet"
    if found.published_at:
        published = f"snapshot {found.snapshot} of {_time(datetime.fromisoformat(found.published_at))}"
    click.echo(
        f"{safe(found.root)}: {_n(len(projects), 'project')}, {_n(runs, 'run')}, {_n(rows, 'row')} of history; "
        f"{published}"
    )
    if not projects:
        click.echo("Nothing is mirrored yet: `mirror sync ENTITY/PROJECT` pulls a project.")
        return
    names = ["source", "project", "runs", "running", "incomplete", "deleted", "rows", "last sync", "outcome"]
    table(names, [_project(p) for p in projects])
    for p in projects:
        if p["outcome"] not in (None, "ok") and p["message"]:
            click.echo(safe(f"{p['entity']}/{p['project']}: {p['outcome']}: {p['message']}"))
    _list("Incomplete", found.incomplete, ["path", "state", "held", "of", "note"], _incomplete, all_)
    _list("In quarantine", found.quarantined, ["path", "stage", "attempts", "next try", "error"], _quarantined, True)
    for name, what in _REMARKS.items():
        if count := sum(p[name] for p in projects):
            click.echo(f"{_n(count, 'run')} {what}")
    if files := sum(p["bytes"] for p in projects):
        held = sum(p["bytes_held"] for p in projects)
        hint = "" if held == files else "; `mirror sync` fetches more by --files, --media, --artifacts, --all-bytes"
        click.echo(f"Files and artifacts: {size_of(held)} of {size_of(files)} are held{hint}")
    sizes = ", ".join(f"{name} {size_of(size)}" for name, size in found.on_disk.items() if name != "total")
    click.echo(f"On disk: {size_of(found.on_disk['total'])} ({sizes})")


_REMARKS = {
    "lossy": "came by exports, which cannot tell null from absent or nested from dotted keys",
    "system_sampled": "have system metrics that their source thinned out",
    "short_logs": "held with fewer console lines than the source counts",
}


def _project(p: dict[str, Any]) -> list[Any]:
    last = _time(p["last_sync"]) if p["last_sync"] else "never"
    outcome = "deleted at the source" if p["deleted_at"] else p["outcome"] or ""
    name = f"{p['entity']}/{p['project']}"
    return [p["source"], name, p["runs"], p["running"], p["incomplete"], p["deleted"], p["history_rows"], last, outcome]


def _incomplete(r: dict[str, Any]) -> list[Any]:
    return [r["path"], r["state"], r["history_rows"], r["history_total"], r["history_note"]]


def _quarantined(r: dict[str, Any]) -> list[Any]:
    return [r["path"], r["stage"], r["attempts"], _time(r["next_try"]) if r["next_try"] else None, r["error"]]


def _list(title: str, rows: Any, names: list[str], line: Any, all_: bool) -> None:
    if not rows:
        return
    shown = rows if all_ else rows[:_LISTED]
    click.echo(f"{title}: {_n(len(rows), 'run')}")
    table(names, [line(row) for row in shown])
    if len(shown) < len(rows):
        click.echo(f"... and {len(rows) - len(shown):,} more; --all lists them")


def _time(at: datetime) -> str:
    from mirror.query.status import since

    now = datetime.now(timezone.utc)
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC ({since(at, now)})"


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
