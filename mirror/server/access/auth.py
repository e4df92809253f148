"""Who may ask: the API key, the Host header, and signed links.

A key has at least 40 characters, as the SDK demands (`wandb` refuses shorter ones before it asks a server).
The key made at the first start has 40 random letters and digits, so a salted SHA-256 of it is as good as a
slow hash: there is nothing to guess. A key given by file or environment is held in memory only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import socket
import string
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mirror.errors import StoreError, UsageError

MIN_KEY_LENGTH = 40
KEY_FILE = "serve-key.json"
_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Key:
    """What is needed to check a key: its salted hash. A key that is not kept on the disk needs no salt."""

    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, key: str, salt: bytes | None = None) -> Key:
        salt = secrets.token_bytes(16) if salt is None else salt
        return cls(salt, hashlib.sha256(salt + key.encode()).digest())

    def matches(self, key: str) -> bool:
        return hmac.compare_digest(self.digest, Key.of(key, self.salt).digest)


def find_key(root: Path, key_file: Path | None, read_only: bool) -> tuple[Key, str | None, str]:
    """The key to check against, the key itself if it was made just now, and a word on where it is from.

    `--api-key-file`, then `MIRROR_API_KEY`, then the hash kept in ROOT; else a new key, whose hash is kept
    in ROOT unless the server is read-only.
    """
    if key_file is not None:
        return Key.of(read_key(key_file), b""), None, f"with the API key in {key_file}"
    if given := os.environ.get("MIRROR_API_KEY", "").strip():
        return Key.of(checked_key(given, "in `MIRROR_API_KEY`"), b""), None, "with the API key in MIRROR_API_KEY"
    path = root / KEY_FILE
    if path.exists():
        return _read(path), None, f"with the API key shown when {path} was made (remove it to get another one)"
    key = new_key()
    checked = Key.of(key)
    if read_only:
        return checked, key, "with an API key for this once"
    _write(path, checked)
    return checked, key, "with a new API key, shown this once"


def read_key(path: Path) -> str:
    """The key in a file. `UsageError` if it cannot be read or is none."""
    try:
        given = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"the API key file `{path}` cannot be read: {exc}") from exc
    return checked_key(given, f"in `{path}`")


def new_key() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(MIN_KEY_LENGTH))


def checked_key(key: str, where: str) -> str:
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"the API key {where} has {len(key)} characters; W&B's SDK takes only keys of at least "
            f"{MIN_KEY_LENGTH} printable ASCII characters without spaces"
        )
    return key


def _read(path: Path) -> Key:
    try:
        held = json.loads(path.read_text())
        return Key(bytes.fromhex(held["salt"]), bytes.fromhex(held["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StoreError(f"the key file `{path}` is damaged; remove it to have a new key made") from exc


def _write(path: Path, key: Key) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as out:
            json.dump({"salt": key.salt.hex(), "sha256": key.digest.hex()}, out)
            out.flush()
            os.fsync(out.fileno())
    except OSError as exc:
        raise StoreError(f"the key file `{path}` cannot be written: {exc}") from exc


def presented_key(authorization: str | None) -> str | None:
    """The key of an `Authorization: Basic base64("api:" + KEY)` header, or None."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, key = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (ValueError, binascii.Error):
        return None
    return key if user == "api" else None


class Hosts:
    """Which Host headers are answered: a page of a stranger's domain that is made to resolve to this
    machine (DNS rebinding) cannot name any of these."""

    def __init__(self, bound: str, allowed: Iterable[str] = ()) -> None:
        self._names = {"localhost", bound.lower(), socket.gethostname().lower(), *(a.lower() for a in allowed)}

    def allows(self, header: str | None) -> bool:
        if not header:
            return False
        name = header.rsplit(":", 1)[0] if not header.endswith("]") and ":" in header else header
        name = name.strip("[]").lower()
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class Signer:
    """Links that work without a key for a while, as W&B's signed bucket URLs do: `directUrl` for a GET, `uploadUrl`
    for a PUT (to which the SDK sends no key). They outlive a restart of the server, since clients do."""

    def __init__(self, key: Key, seconds: int = 24 * 3600) -> None:
        self._secret = hashlib.sha256(b"links\n" + key.salt + key.digest).digest()
        self._seconds = seconds

    def sign(self, method: str, path: str) -> str:
        """The query string that lets anybody GET or PUT `path` (the decoded URL path) until it expires."""
        until = int(time.time()) + self._seconds
        return f"expires={until}&signature={self._mac(method, path, until)}"

    def valid(self, method: str, path: str, expires: str | None, signature: str | None) -> bool:
        if not (expires and expires.isascii() and expires.isdigit()) or not signature:
            return False
        until = int(expires)
        return until >= time.time() and hmac.compare_digest(signature, self._mac(method, path, until))

    def _mac(self, method: str, path: str, until: int) -> str:
        text = f"{method}\n{until}\n{path}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()
