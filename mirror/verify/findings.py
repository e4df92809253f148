"""What a verification says: how much was compared, what could not be, and what differs, the first of each by name."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

LISTED = 100
"""Differences and reasons that are kept by name unless another number is asked for; all of them are counted."""
_LONGEST = 300
NOTHING = "(nothing)"


@dataclass(frozen=True)
class Difference:
    """`where` is a run, an artifact or a file of the mirror, `stream` what of it. `row` is the number of the row here,
    None if there is none here; `here` and `there` are JSON texts, `(nothing)` where there is no such value."""

    where: str
    stream: str
    row: int | None = None
    step: int | None = None
    key: str = ""
    here: str = NOTHING
    there: str = NOTHING


COLUMNS = {
    "where": "VARCHAR", "stream": "VARCHAR", "row": "BIGINT", "step": "BIGINT", "key": "VARCHAR", "here": "VARCHAR",
    "there": "VARCHAR",
}  # fmt: skip


class Findings:
    """Gathers what several threads find. `compared` counts things by name, `different` differences by run or other
    place, `unproven` reasons why something could not be compared; `respelled` are values that are equal and written in
    another way (`2` for `2.0`, the text "NaN" for NaN), which JSON servers do."""

    def __init__(self, listed: int = LISTED) -> None:
        self.compared: Counter[str] = Counter()
        self.different: Counter[str] = Counter()
        self.unproven: dict[str, list[str]] = {}
        self.differences: list[Difference] = []
        self.respelled = 0
        self._listed = listed
        self._lock = threading.Lock()

    @property
    def ok(self) -> bool:
        return not self.different and not self.unproven

    def count(self, **things: int) -> None:
        """Things that were compared, equal or not."""
        with self._lock:
            self.compared.update({name.replace("_", " "): n for name, n in things.items() if n})

    def respell(self, values: int) -> None:
        with self._lock:
            self.respelled += values

    def differ(self, where: str, stream: str, **what: Any) -> None:
        """A difference: see `Difference`. Long values are cut."""
        for side in ("here", "there"):
            if len(what.get(side, "")) > _LONGEST:
                what[side] = f"{what[side][:_LONGEST]}... ({len(what[side]):,} characters)"
        with self._lock:
            self.different[where] += 1
            if len(self.differences) < self._listed:
                self.differences.append(Difference(where, stream, **what))

    @property
    def full(self) -> bool:
        """Whether further differences are counted only, so that nobody needs to put them into words."""
        return len(self.differences) >= self._listed

    def sheet(self) -> Findings:
        """Findings that may still turn out not to count, to be `add`ed if they do."""
        return Findings(self._listed)

    def add(self, other: Findings) -> None:
        with self._lock:
            self.compared.update(other.compared)
            self.different.update(other.different)
            for where, reasons in other.unproven.items():
                self.unproven.setdefault(where, []).extend(reasons)
            self.differences += other.differences[: max(0, self._listed - len(self.differences))]
            self.respelled += other.respelled

    def doubt(self, where: str, reason: str) -> None:
        """Something that should have been compared and could not be."""
        with self._lock:
            self.unproven.setdefault(where, []).append(reason)


def plain(value: Any) -> Any:
    """A value as JSON has it; an empty text or list is none."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return list(value) or None
    return None if value == "" else value


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
