"""The parts of what a source holds, for those who do not want all of it."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.errors import UsageError

OF_RUNS = ("runs", "history", "system", "files", "logs")
"""`runs` are attributes, config and summary, which come with any other part of a run; `files` the manifest and the
environment, not the bytes."""
OF_PROJECTS = ("sweeps", "artifacts", "reports")
ALL = frozenset(OF_RUNS + OF_PROJECTS)
RUN_PARTS = frozenset(OF_RUNS[1:])


def chosen(texts: Iterable[str]) -> frozenset[str]:
    """The parts that comma-separated lists name; all of them if none is named. Raises UsageError."""
    from difflib import get_close_matches

    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in ALL:
            near = get_close_matches(name, ALL, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(OF_RUNS + OF_PROJECTS)}"
            raise UsageError(f"`{name}` is nothing that can be chosen; {hint}")
    return frozenset(names) or ALL
