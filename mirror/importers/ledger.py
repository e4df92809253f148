"""What was sent, written down as it is done: `<kind>_successes.jsonl` and `<kind>_failures.jsonl` in the mirror's root.

One line an outcome, durable before the next thing is begun. What succeeded and has not changed since is not sent
again; whatever was under way when a push was killed has no line, and goes on from what the destination holds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from mirror.importers.account import Account
from mirror.store.disk import explained

Identity = tuple[str, str, str]
"""Source and storage id of what is sent, and the server and namespace it is sent to, as one text."""


@dataclass(frozen=True)
class Success:
    fingerprint: str
    name: str
    """What it is called at the destination."""
    counts: Mapping[str, int]
    """How much of what arrived."""


class Ledger:
    """Outcomes of one kind of thing (`project`, `run`, `artifact`, `report`). Written by one thread."""

    def __init__(self, root: Path, kind: str) -> None:
        self.successes = root / f"{kind}_successes.jsonl"
        self.failures = root / f"{kind}_failures.jsonl"
        self._held: dict[Identity, Success] = {}
        for line in lines_of(self.successes):
            try:
                identity = (line["source"], line["storage_id"], _place(line["destination"], line["dst_path"]))
                self._held[identity] = Success(line["fingerprint"], line["dst_name"], Counter(line["counts"]))
            except (KeyError, TypeError):
                continue

    def success(self, source: str, storage_id: str, destination: str, namespace: str) -> Success | None:
        """The last success of sending a thing to a namespace of a server."""
        return self._held.get((source, storage_id, _place(destination, namespace)))

    def write(self, account: Account, *, source: str, storage_id: str, destination: str, namespace: str) -> None:
        """Note an outcome; durable when this returns."""
        name = account.destination.removeprefix(f"{namespace}/")
        line = {
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "source": source,
            "src_path": account.path,
            "storage_id": storage_id,
            "destination": destination,
            "dst_path": namespace,
            "dst_name": name,
            "fingerprint": account.fingerprint,
            "counts": dict(account.counts),
            "problems": [account.error] if account.error else [str(note) for note in account.notes],
        }
        _append(self.failures if account.error else self.successes, line)
        if account.error is None:
            self._held[source, storage_id, _place(destination, namespace)] = Success(
                account.fingerprint, name, account.counts
            )


def _place(destination: str, namespace: str) -> str:
    return f"{destination} {namespace}"


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger; one that a crash tore is none."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    found = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(found, dict):
                    yield found
    except FileNotFoundError:
        return


def _append(path: Path, line: dict[str, Any]) -> None:
    text = orjson.dumps(line) + b"\n"
    with explained("writing the ledger"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            torn = size and os.pread(fd, 1, size - 1) != b"\n"
            os.write(fd, b"\n" * bool(torn) + text)
            os.fsync(fd)
        finally:
            os.close(fd)
