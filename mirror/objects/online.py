"""How objects reach a server, for `Api(online=True)` alone: for bytes that a mirror does not hold, and for edits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mirror import credentials
from mirror.errors import NotFoundError, UsageError
from mirror.objects import bytes as disk
from mirror.objects.users import User
from mirror.paths import DEFAULT_BASE_URL, api_url, canonical_source
from mirror.wandb.artifacts import find_entries
from mirror.wandb.client import Client
from mirror.wandb.documents import find_manifest
from mirror.wandb.transport import Transport

if TYPE_CHECKING:
    from pathlib import Path

    from mirror.objects.entries import Entry
    from mirror.objects.files import File
    from mirror.objects.held import Held


def fetch_file(held: Held, file: File, path: Path) -> None:
    """Write a run's file to `path`, from the server the run was mirrored from."""
    run = file.run
    client = client_of(held, run.source)
    try:
        found = find_manifest(client, run.entity, run.project, run.id, [file.name])
        entry = next((one for one in found.files if one.name == file.name), None)
        if entry is None:
            raise NotFoundError(f"`{client.source}` has no file `{file.name}` of {run._where} any more")
        with disk.written(path) as out:
            client.transport.save(found.download_urls[file.name], out)
            disk.verify(out, entry.md5, file.name)
    finally:
        client.transport.close()


def fetch_entry(entry: Entry, path: Path) -> None:
    """Write the bytes of an artifact's entry to `path`, likewise."""
    artifact = entry.artifact
    client = client_of(artifact._held, artifact.source)
    try:
        url = find_entries(client, [(artifact.id, [entry.path])])[0].get(entry.path)
        if url is None:
            raise NotFoundError(f"`{client.source}` has no `{entry.path}` of {artifact.source_qualified_name} any more")
        with disk.written(path) as out:
            client.transport.save(url, out)
            disk.verify(out, entry.digest, entry.path)
    finally:
        client.transport.close()


def viewer(held: Held, source: str | None) -> User:
    """Whose key it is."""
    client = client_of(held, source or canonical_source(held.base_url or _environment()))
    try:
        found = client.viewer()
    finally:
        client.transport.close()
    return User(found.username or found.entity or "")


def client_of(held: Held, source: str, *, writable: bool = False) -> Client:
    """A client of the server that is called `source`: the one that was named, or that the environment names, or the
    host itself."""
    known = [url for url in (held.base_url, _environment(), DEFAULT_BASE_URL) if url]
    base_url = next((api_url(url) for url in known if canonical_source(url) == source), None)
    if base_url is None:
        if "." not in source and ":" not in source:
            raise UsageError(f"no server is known for `{source}`: name one, Api(overrides={{'base_url': ...}})")
        # A mirror keeps no scheme: only a server of this machine is asked without TLS, unless somebody says so.
        is_local = urlsplit(f"//{source}").hostname in ("127.0.0.1", "localhost", "::1")
        base_url = api_url(f"{'http' if is_local else 'https'}://{source}")
    return Client(Transport(base_url, credentials.find(base_url, key=held.api_key), writable=writable))


def _environment() -> str:
    return os.environ.get("WANDB_BASE_URL") or DEFAULT_BASE_URL
