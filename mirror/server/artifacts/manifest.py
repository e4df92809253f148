"""Manifests: what an artifact holds, path by path, and the digest that makes it the same artifact or another one.

A file's digest is the base64 md5 of its bytes; that of a reference is whatever its handler made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, overload

import orjson

from mirror.errors import UsageError
from mirror.records import ArtifactEntry, manifest_digest

Contents = dict[str, dict[str, Any]]

MAX_BYTES = 32 << 20
"""The largest manifest that is taken: about 400,000 entries (W&B advises to stay below 100,000). It is read in one
piece and takes about ten times as much memory; large ones are read one at a time."""

_MAX_PATH = 4096
_BAD = re.compile(r"[\x00\ud800-\udfff]")


def parse(data: bytes, whose: str) -> Contents:
    """The entries of a manifest by path. `UsageError` names the entry that cannot be one; `whose` is the artifact."""

    def refuse(why: str) -> UsageError:
        return UsageError(f"the manifest of artifact `{whose}` {why}: log it again")

    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise refuse(f"is no JSON ({str(exc)[:100]})") from exc
    contents = found.get("contents") if isinstance(found, dict) else None
    if not isinstance(contents, dict) or found.get("version") != 1:
        raise refuse('is no object with `"version": 1` and `"contents"`')
    for path, entry in contents.items():
        if wrong := _wrong_path(path) or _wrong_entry(entry):
            raise refuse(f"has an entry `{path[:200]!r}` {wrong}")
    return contents


def _wrong_path(path: str) -> str | None:
    parts = path.split("/")
    if not path or len(path) > _MAX_PATH or path.startswith("/") or ".." in parts or _BAD.search(path):
        return f"whose name is no relative path without `..` of at most {_MAX_PATH} characters"
    return None


def _wrong_entry(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "that is no object"
    size = entry.get("size")
    if not isinstance(entry.get("digest"), str):
        return "without a digest"
    if not (size is None or (isinstance(size, int) and 0 <= size < 2**63)):
        return f"of size `{size!r}`"
    for name in ("ref", "birthArtifactID"):
        if not isinstance(entry.get(name), (str, type(None))):
            return f"whose `{name}` is no text"
    if not isinstance(entry.get("extra"), (dict, type(None))):
        return "whose `extra` is no object"
    return None


def digest(contents: Mapping[str, Mapping[str, Any]]) -> str:
    """The digest of an artifact with these entries, in hex."""
    return manifest_digest((path, entry["digest"]) for path, entry in contents.items())


class Entries(Sequence[ArtifactEntry]):
    """Entries of a manifest, sorted by path, made one by one when they are asked for.

    `held` says where bytes are: md5 -> (sha256, size).
    """

    def __init__(self, contents: Contents, held: Mapping[str, tuple[str, int]]) -> None:
        self._contents = contents
        self._held = held
        self._paths = sorted(contents)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, at: int) -> ArtifactEntry: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[ArtifactEntry]: ...
    def __getitem__(self, at: int | slice) -> ArtifactEntry | Sequence[ArtifactEntry]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        path = self._paths[at]
        entry = self._contents[path]
        ref, extra = entry.get("ref"), entry.get("extra")
        sha256, size = self._held.get(entry["digest"], (None, None)) if ref is None else (None, None)
        return ArtifactEntry(
            path,
            entry["digest"],
            entry.get("size") if size is None else size,
            ref,
            entry.get("birthArtifactID"),
            json.dumps(extra) if extra else None,
            sha256,
        )


def check_bytes(contents: Contents, held: Mapping[str, tuple[str, int]], whose: str) -> None:
    """`UsageError` if a file of the manifest has no bytes here, or another size than the manifest says."""
    for path, entry in contents.items():
        if entry.get("ref") is not None:
            continue
        found = held.get(entry["digest"])
        if found is None:
            raise UsageError(f"file `{path[:200]}` of artifact `{whose}` did not arrive: log it again")
        if entry.get("size") is not None and entry["size"] != found[1]:
            raise UsageError(
                f"file `{path[:200]}` of artifact `{whose}` has {found[1]} bytes, its manifest says {entry['size']}: "
                "log it again"
            )
