"""Where things lie in a mirror's root folder, and how one is recognised."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mirror.errors import StoreError
from mirror.records import RunKey
from mirror.store.schema import SCHEMA_VERSION

LOCAL_SOURCE = "local"
"""The source of runs that were not mirrored but logged here, by `mirror serve` or from Python."""


def default_root() -> str:
    """Where the mirror is when nobody says: `MIRROR_ROOT`, then `./wandb-mirror`."""
    return os.environ.get("MIRROR_ROOT") or "wandb-mirror"


class Layout:
    """Paths below one root. Nothing else builds them."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.catalog = self.root / "catalog.sqlite"
        self.snapshot = self.root / "snapshot.json"
        self.servers = self.root / "servers.json"
        self.data = self.root / "data"
        self.live = self.root / "live"
        self.serve_lock = self.live / "serve.lock"
        self.sweeps = self.live / "sweeps"
        self.blobs = self.root / "blobs" / "sha256"
        self.tables = self.root / "tables"
        self.exports = self.root / "exports"
        self.database = self.root / "mirror.duckdb"
        self.commit_lock = self.root / "commit.lock"
        self.leases = self.root / "leases"
        self.sessions = self.root / "sessions"

    @property
    def ledgers(self) -> list[Path]:
        """What importers note of what they sent: a line of JSON an outcome, with `source` and `storage_id`."""
        return sorted([*self.root.glob("*_successes.jsonl"), *self.root.glob("*_failures.jsonl")])

    def make(self) -> None:
        """Create the folders of a new mirror; refuse a folder that holds something else."""
        if self.root.is_dir() and any(self.root.iterdir()) and not self._is_mirror():
            raise StoreError(
                f"`{self.root}` is a folder with other files in it, not a mirror: "
                "name an empty or a new folder with --mirror (or MIRROR_ROOT)"
            )
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"`{self.root}` is a file, not a mirror: name a folder with --mirror (or MIRROR_ROOT)")
        self.make_folders()

    def make_folders(self) -> None:
        self.root.mkdir(parents=True, mode=0o700, exist_ok=True)
        for folder in (self.data, self.live, self.leases, self.sessions):
            folder.mkdir(exist_ok=True)

    def _is_mirror(self) -> bool:
        # A first writer that was killed may have left only its folders and locks;
        # what is to be synced may be written down before the first sync.
        names = {p.name for p in self.root.iterdir()}
        return bool(names & {"snapshot.json", "catalog.sqlite"}) or names <= {
            "data", "live", "leases", "sessions", "commit.lock", "blobs", "mirror.toml", "servers.json",
        }  # fmt: skip

    def read_snapshot(self) -> dict[str, Any]:
        """The published snapshot. `StoreError` if this is no mirror, or one of a newer release."""
        try:
            text = self.snapshot.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(self._missing()) from None
        except PermissionError as e:
            raise StoreError(
                f"no permission to read `{self.snapshot}`: ask the owner of the mirror for read access to its folder"
            ) from e
        try:
            found: dict[str, Any] = json.loads(text)
            version = found["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"`{self.snapshot}` is damaged: run `mirror repair --mirror {self.root}` to rebuild it"
            ) from None
        check_version(version, self.root)
        return found

    def _missing(self) -> str:
        if not self.root.exists():
            what = "does not exist"
        elif self.catalog.exists():
            return f"`{self.root}` lacks its snapshot.json: run `mirror repair --mirror {self.root}` to rebuild it"
        else:
            what = "is not a mirror"
        return (
            f"`{self.root}` {what}: make one with `mirror sync ENTITY/PROJECT --mirror {self.root}`, "
            "or name another with --mirror (or MIRROR_ROOT)"
        )


def shard_of(key: RunKey) -> int:
    """The folder of a project's cells: a number, so that names from outside never become paths."""
    text = f"{key.source}\0{key.entity}\0{key.project}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


def check_version(version: int, root: Path) -> None:
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"`{root}` was written by a newer release (schema `{version}`, this one knows up to {SCHEMA_VERSION}): "
            "upgrade with `pip install -U wandb-mirror`"
        )
