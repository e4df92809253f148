"""The wire's form of an artifact's manifest: a JSON object of format 1 with the entries under `contents`, by path.

`{"version": 1, "storagePolicy": .., "storagePolicyConfig": .., "contents": {path: {"digest", "size", "ref"?, "extra"?,
"birthArtifactID"?}}}`, as W&B's SDK writes it (wandb 0.31).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from mirror.records import ArtifactEntry

_FRAME = {"version": 1, "storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}


def document(contents: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A manifest of entries in the wire's form."""
    return orjson.dumps(_FRAME | {"contents": contents})


def stream(entries: Iterable[Sequence[ArtifactEntry]]) -> Iterator[bytes]:
    """The manifest of entries that come batch by batch, piece by piece."""
    yield orjson.dumps(_FRAME)[:-1] + b',"contents":{'
    first = True
    for batch in entries:
        lines = [orjson.dumps(e.path) + b":" + orjson.dumps(as_contents(e)) for e in batch]
        if lines:
            yield (b"" if first else b",") + b",".join(lines)
            first = False
    yield b"}}"


def as_contents(entry: ArtifactEntry) -> dict[str, Any]:
    """An entry in the wire's form. What it does not have is left out."""
    found: dict[str, Any] = {"digest": entry.digest or ""}
    for name, value in (("ref", entry.ref), ("size", entry.size), ("birthArtifactID", entry.birth_id)):
        if value is not None:
            found[name] = value
    if entry.extra is not None:
        found["extra"] = orjson.Fragment(entry.extra)
    return found
