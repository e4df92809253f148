"""Console output of a log as lines: of a line that is written over, what it showed in the end counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
Line = tuple[int, datetime | None, str | None, str]
"""Number, time, level, text."""


@dataclass
class Console:
    """`count` lines were handed out; `begun` are the lines that go on, by level, with the time they began."""

    count: int = 0
    begun: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, record: Any) -> list[Line]:
        """The lines that end with a record of output (OutputRecord, OutputRawRecord)."""
        level = "error" if record.output_type == record.STDERR else ""
        at = record.timestamp.seconds * 1_000_000 + record.timestamp.nanos // 1000
        began, text = self.begun.pop(level, None) or (at, "")
        *whole, rest = (text + record.line).split("\n")
        found = []
        for i, line in enumerate(whole):
            found.append(self._line(at if i or not text else began, level, line))
        if rest:
            self.begun[level] = [at if whole or not text else began, _shown(rest, keep_return=True)]
        return found

    def rest(self) -> list[Line]:
        """The lines that were begun and do not go on."""
        begun, self.begun = self.begun, {}
        return [self._line(at, level, text) for level, (at, text) in begun.items()]

    def _line(self, at: int, level: str, text: str) -> Line:
        self.count += 1
        return self.count - 1, _EPOCH + timedelta(microseconds=at), level or None, _shown(text)


def _shown(text: str, keep_return: bool = False) -> str:
    """What is left of a line after its carriage returns. One at the end stays if the line goes on."""
    bare = text.rstrip("\r")
    shown = bare.rpartition("\r")[2]
    return shown + "\r" if keep_return and bare != text else shown
