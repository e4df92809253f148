"""Names that MLflow takes: letters, digits, `_ - . / :` and spaces, 250 of them at most, and a normal path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 250
_REFUSED = re.compile(r"[^\w.\-/ :]|^/|/$|//|^\.+(/|$)|(?<=/)\.+(?=/|$)")


def fitting(name: str) -> str:
    """The name itself, or what it becomes with `_` in place of what MLflow refuses."""
    return _REFUSED.sub("_", _REFUSED.sub("_", name)[:LONGEST]) or "_"  # twice, since a cut makes another end


def unique_names(wanted: Sequence[str]) -> list[str]:
    """A name for each, no two of them the same: its own for what MLflow takes as it is, so that what others are called
    does not change it; the rest get a number behind it if need be."""
    found: list[str] = [""] * len(wanted)
    taken: set[str] = set()
    tries = Counter[str]()
    for i, name in enumerate(wanted):
        if fitting(name) == name and name not in taken:
            found[i] = name
            taken.add(name)
    for i, name in enumerate(wanted):
        if found[i]:
            continue
        base = found[i] = fitting(name)
        while found[i] in taken:
            tries[base] += 1
            found[i] = f"{base[: LONGEST - 10]} {tries[base] + 1}"
        taken.add(found[i])
    return found
