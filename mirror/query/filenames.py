"""File names for runs, whatever they are called: safe on every system, unique, and told by the run alone."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

_LONGEST = 100  # bytes of a name; a file name may have 255 in all


def file_names(runs: Sequence[tuple[str, str, str, str, str | None]]) -> list[str]:
    """A stem for each (source, entity, project, run id, name): the name and the run id, with `_` for everything that
    is no letter, digit, `.`, `-`, `+`, `=` or `_`. A hash of the run's identity follows where the run id had to be
    changed, or where two stems would differ in nothing or in case only."""
    stems = []
    for run in runs:
        run_id, name = run[3], run[4]
        stem = run_id if name in (None, "", run_id) else f"{_plain(name)}-{_plain(run_id)}"
        changed = _plain(run_id) != run_id
        stems.append(f"{_plain(stem, 2 * _LONGEST + 1)}{_mark(run) if changed else ''}")
    taken = Counter(stem.casefold() for stem in stems)
    return [
        stem if taken[stem.casefold()] == 1 else f"{stem}{_mark(run)}" for stem, run in zip(stems, runs, strict=True)
    ]


def _mark(run: Sequence[str | None]) -> str:
    return "-" + sha256("\0".join(run[i] or "" for i in range(4)).encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _plain(text: str, longest: int = _LONGEST) -> str:
    text = unicodedata.normalize("NFC", text)
    kept = "".join(c if c.isalnum() or c in ".-+=_" else "_" for c in text)
    kept = kept.encode("utf-8", "replace")[:longest].decode("utf-8", "ignore")
    return kept.lstrip(".-") or "_"
