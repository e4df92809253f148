"""ROOT/servers.json: what was found out about the servers that runs come from. No keys, and nothing about projects."""

from __future__ import annotations

import json
from typing import Any

from mirror.store.catalog import iso, now
from mirror.store.disk import explained, write_durably
from mirror.store.layout import Layout


def known_servers(layout: Layout) -> dict[str, dict[str, Any]]:
    """Findings by source, with the time they are of (`probed_at`). A file that cannot be read says nothing."""
    try:
        found = json.loads(layout.servers.read_bytes())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def remember_server(layout: Layout, source: str, findings: dict[str, Any]) -> None:
    """Put these findings in the place of earlier ones. Makes the folder of the mirror if there is none."""
    layout.make()
    every = known_servers(layout) | {source: findings | {"probed_at": iso(now())}}
    text = json.dumps(every, indent=2).encode()
    with explained("writing servers.json"):
        write_durably(layout.servers, lambda f: f.write(text))
