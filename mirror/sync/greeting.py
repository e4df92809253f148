"""One question to a server: whether it answers, and who it takes us for."""

from __future__ import annotations

from contextlib import closing

from mirror.credentials import Credential
from mirror.wandb.client import Client
from mirror.wandb.transport import Patience, Transport


def who_am_i(server: str, credential: Credential) -> str:
    """The name behind a key. Asks once; raises a SourceError if the server does not answer or refuses the key."""
    with closing(Transport(server, credential, timeout=20)) as transport:
        viewer = Client(transport).viewer(patience=Patience(tries=1))
    return viewer.username or viewer.entity or "unknown"
