"""`mirror doctor`: whether everything a mirror needs is there and whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

import click

from mirror.cli.console import table
from mirror.cli.options import root_option

Check: TypeAlias = tuple[str, str, str, str]
"""What was looked at, `ok`, `warn` or `fail`, what was found, what to do."""
_BEFORE_A_SYNC = {"mirror.toml", "servers.json", "data", "live", "leases", "sessions"}
_OLD_DAYS = 7
_LITTLE, _TOO_LITTLE = 5 << 30, 200 << 20
"""Bytes free on the disk that call for attention, and that a sync may not survive."""


@click.command("doctor")
@root_option
@click.option("--base-url", metavar="URL", help="Server to ask  [default: WANDB_BASE_URL, then W&B's cloud]")
@click.option("--deep", is_flag=True, help="Read every file and compare its checksum, not only its size.")
@click.option("--offline", is_flag=True, help="Ask no server.")
@click.option("--probe", is_flag=True, help="Find out how much the server takes and gives at once, for later syncs.")
@click.option("--project", metavar="ENTITY/PROJECT", help="Project to probe with  [default: one that has runs]")
@click.option(
    "--pace", default=1.0, show_default=True, type=click.FloatRange(0, 60), help="Seconds between questions of a probe."
)
@click.pass_context
def command(
    ctx: click.Context,
    root: Path,
    base_url: str | None,
    deep: bool,
    offline: bool,
    probe: bool,
    project: str | None,
    pace: float,
) -> None:
    """Check credentials, versions, servers and the mirror's files, and say what to do.

    The servers are the usual one and those that `mirror.toml` names. Keys are never shown, only where they were
    found. The exit code is 1 if a check fails. Nothing is changed, but for --probe: that asks the usual server a few
    dozen questions, and keeps the answers in the mirror's servers.json; `mirror sync` goes by them.

    \b
    Examples:
      mirror doctor
      mirror doctor --deep --offline
      mirror doctor --probe --project team/project
    """
    from mirror.paths import DEFAULT_BASE_URL, api_url

    default = api_url(base_url or os.environ.get("WANDB_BASE_URL") or DEFAULT_BASE_URL)
    checks = [*_versions(), *_store(root, deep)]
    servers, regular = _regular(root, default)
    checks += regular
    if probe:
        checks += _probe(root, default, project, pace)
    for server in dict.fromkeys([default, *servers]):
        checks += _server(server, offline)
        checks += _remembered(root, server)
    table(["check", "state", "found", "what to do"], checks)
    ctx.exit(int(any(state == "fail" for _, state, _, _ in checks)))


def _versions() -> Iterator[Check]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    yield "python", "ok", platform.python_version(), ""
    for package, name in (("wandb-mirror", "mirror"), ("duckdb", "duckdb"), ("wandb", "wandb")):
        try:
            yield name, "ok", version(package), ""
        except PackageNotFoundError:
            yield name, "ok", "not installed", "only for local run folders: pip install 'wandb-mirror[wandb]'"


def _store(root: Path, deep: bool) -> Iterator[Check]:
    from mirror.errors import StoreError
    from mirror.query.text import size_of
    from mirror.store.health import health

    if not root.exists() or {path.name for path in root.iterdir()} <= _BEFORE_A_SYNC:
        yield "mirror", "warn", f"{root}: nothing is mirrored yet", "mirror sync ENTITY/PROJECT"
        return
    try:
        found = health(root, deep=deep)
    except StoreError as e:
        yield "mirror", "fail", str(e), f"mirror repair --mirror {root}"
        return
    yield "mirror", "ok", f"{root}: {found.files:,} files, {size_of(found.bytes)}", ""
    how = "checksums" if deep else "sizes"
    if found.damaged:
        some = f"{len(found.damaged):,} missing or damaged, first {found.damaged[0]}"
        yield how, "fail", some, f"mirror repair --mirror {root}, then sync again"
    else:
        yield how, "ok", "as they were written", "" if deep else "--deep compares checksums, too"
    if found.orphans and not found.leases:
        yield "orphans", "warn", f"{len(found.orphans):,} files of no snapshot", "the next sync removes them"
    age = datetime.now(timezone.utc) - found.published_at
    old = age.days >= _OLD_DAYS
    text = f"of {found.published_at:%Y-%m-%d %H:%M} UTC"
    yield "snapshot", "warn" if old else "ok", text, f"{age.days} days old: mirror sync" if old else ""
    for lease in found.leases:
        who = f"{lease['project']} by process {lease['pid']} on {lease['host']} since {lease['since']}"
        yield "being written", "ok", who, ""
    state = "fail" if found.free < _TOO_LITTLE else "warn" if found.free < _LITTLE else "ok"
    yield "disk", state, f"{size_of(found.free)} free", "" if state == "ok" else "make room, or move the mirror"


def _regular(root: Path, default: str) -> tuple[list[str], list[Check]]:
    """The servers that `mirror.toml` names, and whether it can be read."""
    from mirror.cli.regular import NAME, read
    from mirror.errors import UsageError
    from mirror.paths import api_url

    if not (root / NAME).exists():
        return [], []
    try:
        entries = read(root)
        servers = [api_url(entry.get("base_url") or default) for entry in entries]
    except UsageError as e:
        return [], [(NAME, "fail", str(e), "mend it")]
    return servers, [(NAME, "ok", f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}", "")]


def _server(server: str, offline: bool) -> Iterator[Check]:
    from mirror.credentials import find
    from mirror.errors import SourceError
    from mirror.sync.greeting import who_am_i

    try:
        credential = find(server)
    except SourceError as e:
        yield f"key for {server}", "warn", str(e), f"wandb login --host {server}"
        return
    yield f"key for {server}", "ok", f"from {credential.origin}", ""
    if offline:
        return
    try:
        yield server, "ok", f"answers; logged in as {who_am_i(server, credential)}", ""
    except SourceError as e:
        yield server, "fail", str(e), "check address, network and key"


def _probe(root: Path, server: str, project: str | None, pace: float) -> Iterator[Check]:
    from mirror.credentials import find
    from mirror.errors import MirrorError, UsageError
    from mirror.paths import parse
    from mirror.sync.probing import probe

    try:
        path = parse(project, base_url=server) if project else None
        if path and (path.entity is None or path.project is None or path.run_id is not None):
            raise UsageError(f"`{project}` is no project: write ENTITY/PROJECT")
        where = (path.entity or "", path.project or "") if path else None
        probe(root, server, find(server), where, seconds=pace, say=lambda text: click.echo(text, err=True))
    except UsageError:
        raise
    except MirrorError as e:
        yield f"probe of {server}", "fail", str(e), "check address, network, key and project"


def _remembered(root: Path, server: str) -> Iterator[Check]:
    from mirror.paths import canonical_source
    from mirror.sync.probing import remembered

    found = remembered(root, canonical_source(server))
    if found is None:
        yield f"limits of {server}", "ok", "not known: found by trying", "mirror doctor --probe asks for them"
    else:
        limits, day = found
        yield f"limits of {server}", "ok", f"{'; '.join(limits.said())} (of {day})", ""
