"""A W&B server, opened for writing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mirror import credentials
from mirror.importers.run import Destination
from mirror.paths import api_url
from mirror.wandb.budget import Budget
from mirror.wandb.client import Client
from mirror.wandb.transport import Transport


@contextmanager
def opened(
    base_url: str,
    key: str | None = None,
    *,
    workers: int = 4,
    stop: threading.Event | None = None,
    deleted_suffix: str | None = None,
) -> Iterator[Destination]:
    """The server at `base_url`, its key checked. Without `key` it is looked for as for a sync. Raises SourceError."""
    url = api_url(base_url)
    budget = Budget(stop)
    transport = Transport(url, credentials.find(url, key=key), budget=budget, connections=2 * workers, writable=True)
    try:
        client = Client(transport)
        viewer = client.viewer()
        yield Destination(client, viewer.username or viewer.entity, deleted_suffix)
    finally:
        transport.close()
