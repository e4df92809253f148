"""Console lines compared, by their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mirror.sources.protocol import ConsoleLines
from mirror.store.console import parsed
from mirror.verify.findings import Findings, as_json, plain

if TYPE_CHECKING:
    from mirror.store import Reader

Line = tuple[Any, ...]
"""Number, time, level, text."""


class ConsoleCompared:
    """Takes lines of the other side in order and reads those of the mirror beside them. With `more_here`, the lines
    here are those of a log on disk: texts alone are compared, and lines that are here alone are no differences.
    `is_origin` says that what the other side tells of a line is to be here, too."""

    def __init__(
        self,
        reader: Reader,
        rid: int,
        where: str,
        findings: Findings,
        *,
        more_here: bool = False,
        is_origin: bool = False,
    ) -> None:
        self._more_here = more_here
        self._is_origin = is_origin
        self._reader = reader
        self._rid = rid
        self._where = where
        self._findings = findings
        self._over = False
        self._begin()

    def _begin(self) -> None:
        self._found = self._findings.sheet()
        self._mine: Iterator[Line] | None = None
        self._next: Line | None = None

    def take(self, step: ConsoleLines) -> None:
        if step.restart:
            self._begin()
        for number, at, level, text in step.lines:
            if step.raw:
                at, level, text = parsed(text)
            self._before(number)
            there = (number, at, level, text)
            if self._next is not None and self._next[0] == number:
                self._compare(self._next, there)
                self._advance()
            else:
                self._compare(None, there)

    def give_up(self) -> None:
        """The lines could not all be read."""
        self._over = True

    def finish(self) -> None:
        if not self._over:
            self._before(None)
            self._findings.add(self._found)
            self._over = True

    def _before(self, number: int | None) -> None:
        """Lines here that come before that number (all that are left) are not there."""
        if self._mine is None:
            self._mine = self._held()
            self._advance()
        while self._next is not None and (number is None or self._next[0] < number):
            self._compare(self._next, None)
            self._advance()

    def _advance(self) -> None:
        assert self._mine is not None
        self._next = next(self._mine, None)

    def _held(self) -> Iterator[Line]:
        lines = self._reader.relation("logs", self._rid)
        query = f"select line, ts, level, text from {lines} s semi join raw.live l on l.rid = s.rid "
        cursor = self._reader.connect().execute(query + "and l.logs_gen = s.gen order by line")
        while some := cursor.fetchmany(1000):
            yield from some

    def _compare(self, here: Line | None, there: Line | None) -> None:
        self._found.count(console_lines=1)
        if here is not None and there is not None:
            # Not every server tells the time and the level of a line.
            own = () if self._more_here else (1, 2)
            told = [3, *(i for i in own if there[i] is not None and (self._is_origin or here[i] is not None))]
            if [here[i] for i in told] == [there[i] for i in told]:
                return
        elif there is None and self._more_here:
            self._found.count(console_lines_of_a_log_on_disk_alone=1)
            return
        sides = {
            name: as_json([plain(part) for part in line[1:]])
            for name, line in (("here", here), ("there", there))
            if line is not None
        }
        number = here[0] if here is not None else None
        self._found.differ(self._where, "console", row=number, **sides)
