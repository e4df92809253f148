"""How one run's history is read from a W&B server, so that what is held equals what the server has.

The number that decides is `historyLineCount`: as many rows must be held in the end as the server says it has.
Rows held already are kept if the last of them is still there and the rest adds up; otherwise the history is
read anew. If ranges of steps do not add up, two other roads are tried before the run is called incomplete:
the history without a range, and a walk over the steps in ranges as narrow as the SDK's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

from mirror.records import Fetched, Run
from mirror.sources.protocol import ExportLike, Held, HistoryRead, Restart, Rows, Step, Trouble, Wanted
from mirror.wandb.catalogue import KeyCatalogue
from mirror.wandb.ranges import END, SPARE_ROWS, Range, Scan
from mirror.wandb.rows import RowsAnswer, step_of

PAGE_BYTES = 4 << 20
"""Pages are sized to hold about as much, so that memory stays flat whatever the rows are."""
_ROW_BYTES = 4000
"""What a row is taken for if nothing tells how long rows are."""
_GOOD_PAGES = 16
_WALK_WIDTH = 1000
_WALK_PAGES = 100
"""The SDK scans 1,000 steps at a time; up to that many pages we can afford the same."""

Unranged: TypeAlias = int
"""The whole history, that many samples at most."""
_Flow: TypeAlias = Generator["Scan | Unranged", tuple[Range | None, RowsAnswer], bool]


class HistoryReader:
    """Reads one history. `question` says what to ask next (None: done), `answer` takes the reply; what was
    read gathers in `steps`. `page_rows` bounds the rows of a page, `noted_shape` is the `shape` of what is held."""

    def __init__(self, wanted: Wanted, run: Run, page_rows: int, steps: list[Step], noted_shape: str = "") -> None:
        self.key = run.key
        self.steps = steps
        self.row_bytes: float = _ROW_BYTES
        self._held = wanted.history
        self._said = run.history_line_count
        self._now = self._said
        self._catalogue = KeyCatalogue(run.history_keys)
        self.row_bytes = self._catalogue.row_bytes(self._said) or _ROW_BYTES
        self._most = page_rows
        self._page_rows = page_rows
        self._noted_shape = self.shape = noted_shape
        self._total = 0
        self._emitted = 0
        self._good_pages = 0
        self._road = ""
        self._flow = self._read()
        self._question: Scan | Unranged | None = None
        self._advance(None)

    # -- asked from outside -------------------------------------------------------------------------------

    def question(self, limit: int | None = None) -> Range | Unranged | None:
        """What to ask next: a range of about `limit` rows at most, or an unranged history. None when done."""
        question = self._question
        return question.next(limit) if isinstance(question, Scan) else question

    @property
    def expected(self) -> int:
        """About how many rows the next answer will hold."""
        question = self._question
        if isinstance(question, Scan):
            left = question.remaining
            return question.page if left is None else min(left, question.page)
        return question or 0

    def answer(self, asked: Range | Unranged, answer: RowsAnswer) -> None:
        if answer.history_lines is not None:
            self._now = answer.history_lines
        self._advance((asked if isinstance(asked, Range) else None, answer))

    @property
    def divisible(self) -> bool:
        """Whether `shrink` could do something."""
        question = self._question
        return isinstance(question, Scan) and question.page > 1 and question.remaining != 1

    @property
    def exportable(self) -> bool:
        """Whether nothing is held yet and an export would say all there is to say."""
        return not self._held.rows and self._catalogue.exportable

    def go_on_after(self, export: ExportLike) -> None:
        """The rows of an export were handed over: read what comes after them, or everything if that does not fit."""
        self._held = Held(export.rows, export.last_step, is_last=export.is_last)
        self._road = "export"
        if export.rows == self._said:
            self._total = export.rows
            self._question = None
            self._done(self._road)
            return
        self._flow = self._read()
        self._advance(None)

    def start_over(self) -> None:
        """An export broke off: what was handed over of it does not count."""
        self._restart()

    def leave_out(self) -> None:
        """Ask for nothing. What is held is complete only as long as the server has no more."""
        self._question = None
        self.steps.clear()
        held = self._held.rows
        if held and not self._held.pending and held != self._said:
            note = "what came since was left out"
            fetched = Fetched("history", "rows", got=held, total=self._said, complete=False, note=note)
            self.steps.append(HistoryRead(self.key, fetched))

    def shrink(self) -> bool:
        """Ask for less at once from now on; False if that is not possible."""
        if not isinstance(self._question, Scan) or not self._question.shrink():
            return False
        self._most = self._question.page
        self._good_pages = 0
        return True

    def _went_well(self) -> None:
        """Pages that were made smaller after a failure grow again, slowly: what failed once may fail again."""
        self._good_pages += 1
        if self._good_pages % _GOOD_PAGES == 0:
            self._most = min(2 * self._most, self._page_rows)

    def fail(self, error: str) -> None:
        """Give up. What was read so far stays held and is gone on with the next time."""
        self._question = None
        self.steps.append(Trouble(self.key, "history", error))

    def _advance(self, reply: tuple[Range | None, RowsAnswer] | None) -> None:
        try:
            self._question = next(self._flow) if reply is None else self._flow.send(reply)
        except StopIteration:
            self._question = None

    # -- the roads ----------------------------------------------------------------------------------------

    def _read(self) -> Generator[Scan | Unranged, tuple[Range | None, RowsAnswer], None]:
        if self._held.rows and not self._reshaped and (yield from self._tail()):
            return self._done(f"{self._road}, rows" if self._road else "rows")
        if self._held.rows:
            self._restart()
        if (yield from self._whole()):
            return self._done("rows")
        if (self._said or 0) <= self._page(self.row_bytes) and (yield from self._unranged()):
            return self._done("rows, unranged")
        if (self._catalogue.last_step or END) < _WALK_WIDTH * _WALK_PAGES and (yield from self._walk()):
            return self._done("rows, walked")
        return self._incomplete()

    @property
    def _reshaped(self) -> bool:
        """As many rows as are held, but others: a rewind, or a past that was written anew."""
        before, now = self._noted_shape, self._catalogue.shape
        return bool(before and now and before != now) and self._held.rows == self._said and not self._held.pending

    def _tail(self) -> _Flow:
        """Go on after the last row held; False if it is not there any more or the count does not add up."""
        lo, held = self._held.last_step, self._held.rows
        if lo is None or (self._said is not None and self._said < held):
            return False
        self._total = held
        expected = None if self._said is None else self._said - held + 1
        first = True

        def take(rows: list[str]) -> list[str] | None:
            nonlocal first
            if not first:
                return rows
            first = False
            seam = self._seam(rows, lo)
            return None if seam is None else rows[seam:]

        return (yield from self._scan(lo, expected, take))

    def _seam(self, rows: list[str], lo: int) -> int | None:
        """Where the new rows begin in the first page of a tail: after the last row held.

        Rows may be equal to the last bit (a run logged twice); then the count decides which one is meant.
        """
        found = []
        for i, row in enumerate(rows):
            if self._held.is_last(row):
                found.append(i + 1)
            elif found and (step_of(row) or 0) > lo:
                break  # rows come by step: the last one held is not repeated further on
        if not found:
            return None
        fits = [i for i in found if self._said is None or self._held.rows + len(rows) - i == self._said]
        return (fits or found)[0]

    def _whole(self) -> _Flow:
        self._total = 0
        if self._said == 0:
            return True
        return (yield from self._scan(0, self._said, lambda rows: rows))

    def _scan(self, lo: int, expected: int | None, take: Callable[[list[str]], list[str] | None]) -> _Flow:
        """Read from step `lo` to the end; beyond the last step the catalogue knows if rows are missing."""
        last = self._catalogue.last_step
        end = END if last is None else max(last, lo) + 1
        while True:
            scan = Scan(lo, end, expected, self._page(self.row_bytes), step_of)
            if not (yield from self._pages(scan, take)):
                return False
            if self._adds_up or end == END or self._said is None or self._total > self._said:
                return self._adds_up
            lo, end, expected = end, END, self._said - self._total

    def _pages(self, scan: Scan, take: Callable[[list[str]], list[str] | None]) -> _Flow:
        while not scan.done:
            asked, answer = yield scan
            if asked is None or not scan.accept(asked, answer.rows):
                continue
            self._went_well()
            if answer.rows:
                self.row_bytes = max(1.0, sum(map(len, answer.rows)) / len(answer.rows))
                scan.page = self._page(self.row_bytes)
            rows = take(answer.rows)
            if rows is None:
                return False
            self._emit(rows, paged=self._emitted > 0 or not scan.done)
        return True

    def _unranged(self) -> _Flow:
        """Without a range, rows without a step come too; all of them if `samples` exceeds their number."""
        samples = (self._said or 0) + SPARE_ROWS
        _, answer = yield samples
        if len(answer.rows) <= self._total or len(answer.rows) >= samples:
            return False
        self._restart()
        self._emit(answer.rows, paged=False)
        return self._adds_up

    def _walk(self) -> _Flow:
        self._restart()
        width = min(_WALK_WIDTH, self._page_rows)
        for lo in range(0, (self._catalogue.last_step or 0) + 1, width):
            scan = Scan(lo, lo + width, None, width, step_of)
            yield from self._pages(scan, lambda rows: rows)
        return self._adds_up

    # -- what came ----------------------------------------------------------------------------------------

    def _page(self, row_bytes: float) -> int:
        return max(1, min(self._most, int(PAGE_BYTES / row_bytes)))

    def _emit(self, rows: list[str], *, paged: bool) -> None:
        self._total += len(rows)
        self._emitted += 1
        if rows:
            self.steps.append(Rows(self.key, rows, paged, self._catalogue.string_is_nonfinite))

    def _restart(self) -> None:
        self._total = self._emitted = 0
        self.steps.append(Restart(self.key))

    @property
    def _adds_up(self) -> bool:
        """As many rows as the server said, or, if it got more meanwhile, no more than it says now."""
        if self._said is None:
            return True
        return self._said <= self._total <= max(self._said, self._now or 0)

    def _done(self, road: str) -> None:
        total = self._total if self._said is not None else None
        note = None if self._said is not None else "the server does not say how many rows there are"
        self.shape = self._catalogue.shape if self._total == self._said else ""
        fetched = Fetched("history", road, got=self._total, total=total, complete=True, note=note)
        self.steps.append(HistoryRead(self.key, fetched))

    def _incomplete(self) -> None:
        note = f"{self._total} rows came, the server says it has {self._now}"
        if not (self._held.pending or self._held.rows > self._total):
            # Else what is visible is better than what came: it stays.
            fetched = Fetched("history", "rows", got=self._total, total=self._now, complete=False, note=note)
            self.steps.append(HistoryRead(self.key, fetched))
        self.steps.append(Trouble(self.key, "history", f"incomplete: {note}"))
