"""How a run's console lines are read from a W&B server: those that were added, or all of them anew.

A progress bar writes lines again that were there already, and no count tells of it. So lines are added while a run
goes on, all of them are read once more when it has ended, and from then on only what a resumed run adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import BinaryIO

from mirror.records import Run
from mirror.sources.protocol import ConsoleLines, Step, Trouble, Wanted
from mirror.wandb.rows import LinesAnswer, LinesAsk

PAGE_LINES = 5_000
_FEWEST = 50
_LINE_BYTES = 150
"""What a line is taken for."""
LOG_FILE = "output.log"
"""Where servers that do not give out lines keep them."""


class ConsoleReader:
    """Reads one console log. `question` says what to ask next (None: nothing), `answer` takes the reply; what was read
    gathers in `steps`. With `by_file` the lines are to be read out of the file `output.log` instead.

    `memo` is noted with the run: how many lines were read, `!` if the run had ended then, and where to go on.
    """

    def __init__(self, wanted: Wanted, run: Run, noted: str, *, ended: bool, steps: list[Step]) -> None:
        self.key = run.key
        self.by_file = False
        self._steps = steps
        self._ended = ended
        self._said = run.log_line_count
        self._page = PAGE_LINES
        count, _, self._cursor = noted.partition(":")
        self._noted, was_final = count.rstrip("!"), count.endswith("!")
        self._memo_before = noted
        self._restart = False
        self._come = 0
        self._asking = self._repeated = False
        self._sure = was_final or not ended
        self._left_out = "logs" not in wanted.what
        if self._left_out or self._said is None or self._is_held(self._said):
            return
        held = int(self._noted) if self._noted.isdecimal() else 0
        if self._sure and self._cursor and held <= wanted.logs.rows and held < self._said:
            self._come = held
        else:
            self._cursor, self._restart = "", True
        self._asking = True

    def _is_held(self, said: int) -> bool:
        return said == 0 if not self._noted else str(said) == self._noted and self._sure

    @property
    def memo(self) -> str:
        if self._left_out:
            return self._memo_before
        count = self._noted if self._said is None else str(self._said)
        return f"{count}{'!' * self._ended}:{self._cursor}"

    # -- line by line -------------------------------------------------------------------------------------

    @property
    def expected(self) -> int:
        """About how many lines the next answer will hold."""
        return min(self._page, max(1, (self._said or 0) - self._come)) if self._asking else 0

    @property
    def expected_bytes(self) -> int:
        return _LINE_BYTES * self.expected

    @property
    def question(self) -> LinesAsk | None:
        if self._asking and self._said == 0:
            self._asking = False
            self._hand_over(())
        return LinesAsk(self._page, self._cursor or None) if self._asking else None

    def answer(self, answer: LinesAnswer | None) -> None:
        """None if the server gives out no lines."""
        if answer is None:
            self._asking = False
            self.by_file = True
            return
        if not answer.lines and self._come < (self._said or 0) and not self._repeated:
            self._repeated = True  # there should be some: ask the same once more
            return
        lines = [
            (self._come + i if number is None else number, at, level, text)
            for i, (number, at, level, text) in enumerate(answer.lines)
        ]
        self._hand_over(lines)
        self._come = max([self._come + len(lines), *(line[0] + 1 for line in lines)])
        advances = answer.cursor not in (None, self._cursor)
        self._cursor = answer.cursor or self._cursor
        self._asking = answer.more and advances
        if not self._asking and self._ended and self._come < (self._said or 0):
            self.by_file = True  # which does not have the times
            if not self._come:
                error = f"no console lines came, the server says it has {self._said}"
                self._steps.append(Trouble(self.key, "logs", error, doubtful=True))

    def shrink(self) -> bool:
        """Ask for less at once; False if that is not possible."""
        if self._page <= _FEWEST:
            return False
        self._page = max(_FEWEST, self._page // 10)
        return True

    def fail(self, error: str) -> None:
        self._asking = False
        self._steps.append(Trouble(self.key, "logs", error))

    def _hand_over(self, lines: Sequence[tuple[int, datetime | None, str | None, str]]) -> None:
        if lines or self._restart:
            self._steps.append(ConsoleLines(self.key, lines, restart=self._restart))
        self._restart = False

    # -- out of a file ------------------------------------------------------------------------------------

    def saw_file(self, version: str) -> None:
        """The manifest lists a log file: read it if the server does not count lines and the file is another one."""
        if self._said is None and not self._left_out and version != self._noted:
            self._noted = version
            self.by_file = True

    def no_file(self) -> None:
        if self._said is not None and self._come < self._said:
            error = f"incomplete: {self._come} console lines came, the server says it has {self._said}"
            self._steps.append(Trouble(self.key, "logs", error, doubtful=True))

    def take(self, file: BinaryIO) -> Iterator[Step]:
        """The lines of the file, in place of all that are held."""
        restart, number = True, 0
        while some := list(islice(file, PAGE_LINES)):
            texts = [line.removesuffix(b"\n").decode("utf-8", "replace") for line in some]
            lines = [(number + i, None, None, text) for i, text in enumerate(texts)]
            yield ConsoleLines(self.key, lines, restart=restart, raw=True)
            restart, number = False, number + len(lines)
        self._cursor = ""
        if number > self._come or self._said is None:
            self._come = number
        self.no_file()
