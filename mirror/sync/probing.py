"""`mirror doctor --probe`: which project is asked about, at what pace, and keeping what was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mirror.credentials import Credential
from mirror.errors import TerminalSourceError
from mirror.store.catalog import peek
from mirror.store.layout import Layout
from mirror.store.servers import known_servers, remember_server
from mirror.wandb.client import Client
from mirror.wandb.limits import Limits
from mirror.wandb.probe import MOST_QUESTIONS, Probe
from mirror.wandb.transport import Patience, Transport

_PROJECTS_LOOKED_AT = 5


def remembered(root: Path, source: str) -> tuple[Limits, str] | None:
    """What a probe found out about a source, and when; None if there was none."""
    found = known_servers(Layout(root)).get(source)
    return None if found is None else (Limits.of_json(found), str(found.get("probed_at") or "")[:10])


def probe(
    root: Path,
    server: str,
    credential: Credential,
    project: tuple[str, str] | None,
    *,
    seconds: float,
    say: Callable[[str], None],
) -> Limits:
    """Ask a server about a project (entity and name; else one that is held, or the first with runs), with `seconds`
    between two questions, and remember the answers in the mirror at `root`. `say` hears beforehand what will be asked.
    Raises a SourceError if the server cannot be asked."""
    with closing(Transport(server, credential)) as transport:
        client = Client(transport)
        project = project or _largest_held(root, client.source) or _first(client)
        entity, name = project
        say(
            f"{server}: up to {MOST_QUESTIONS} questions about `{entity}/{name}`, {seconds:g} s apart; "
            "nothing is changed there"
        )
        found = Probe(client, entity, name, lambda: time.sleep(seconds)).run()
        if found == Limits():
            raise TerminalSourceError(
                f"`{entity}/{name}` has no runs that `{server}` shows to this key: name another project with --project"
            )
        remember_server(Layout(root), client.source, found.to_json())
        return found


def _largest_held(root: Path, source: str) -> tuple[str, str] | None:
    catalog = peek(root)
    if catalog is None:
        return None
    with closing(catalog):
        query = (
            "select entity, project from runs where source = ? and deleted_at is null "
            "group by entity, project order by count(*) desc limit 1"
        )
        row = catalog.db.execute(query, [source]).fetchone()
    return (row[0], row[1]) if row else None


def _first(client: Client) -> tuple[str, str]:
    """The first project of the key's own entities that has a run."""
    viewer = client.viewer(patience=Patience(tries=2))
    looked = 0
    for entity in viewer.entities:
        for project in client.projects(entity, page_size=_PROJECTS_LOOKED_AT):
            if project.run_count or project.run_count is None:
                return project.entity, project.name
            looked += 1
            if looked == _PROJECTS_LOOKED_AT:
                break
    raise TerminalSourceError(
        f"`{client.transport.base_url}` shows no project of the key's own that has runs: name one with --project"
    )
