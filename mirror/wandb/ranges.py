"""Which step ranges to ask for, so that a history comes whole, in few requests, in pages of bounded size.

`history(minStep, maxStep, samples)` gives every row of a range of steps as long as `samples` exceeds the rows
in it, and a sample otherwise. Steps may be dense, sparse (20 rows up to step 10^12), start
anywhere and repeat. So a range is sized by the rows expected in it, from the rows still to come and the steps
still to go, then from what the last page held; an answer as large as its `samples` is thrown away and the
range asked again, narrower. Nothing stops at an empty page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

END = 2**63 - 1
"""Beyond every step: `maxStep` is exclusive and an Int64."""

SPARE_ROWS = 64
"""How many more samples are asked for than rows are expected, at least."""


@dataclass(frozen=True)
class Range:
    """Steps `lo` (inclusive) to `hi` (exclusive); at most `samples` rows are wanted."""

    lo: int
    hi: int
    samples: int


class Scan:
    """The ranges of one scan, in ascending order. Ask `next`, hand the rows to `accept`, until `done`.

    `end` is the first step after the scan, `expected` how many rows there should be, `page` how many rows a
    page should hold. `step_of` reads the `_step` of a row (None if it has none).
    """

    def __init__(
        self,
        lo: int,
        end: int,
        expected: int | None,
        page: int,
        step_of: Callable[[str], int | None],
    ) -> None:
        self.lo = lo
        self.end = max(end, lo + 1)
        self.page = page
        self.got = 0
        self.pages = 0
        self._expected = expected
        self._step_of = step_of
        self._stride: float | None = None
        self._narrowed: int | None = None
        self._samples = 0
        self._refused = 0

    @property
    def done(self) -> bool:
        return self.lo >= self.end

    @property
    def remaining(self) -> int | None:
        """Rows still expected; None if nobody said how many there are."""
        return None if self._expected is None else max(self._expected - self.got, 0)

    def next(self, limit: int | None = None) -> Range:
        """The next range, of about `page` rows (or `limit`, if that is fewer)."""
        rows = max(1, min(self.page, limit or self.page))
        hi = self._narrowed or self._wide(rows)
        samples = 2 * rows + SPARE_ROWS
        if hi == self.end and self.remaining is not None and self.remaining <= rows:
            samples = self.remaining + self.remaining // 4 + SPARE_ROWS
        if hi - self.lo <= 2 * rows + SPARE_ROWS:
            samples = max(samples, hi - self.lo + 1)  # as the SDK asks: never less than the range is wide
        return Range(self.lo, hi, max(samples, self._samples))

    def _wide(self, rows: int) -> int:
        """The end of a range that should hold about `rows` rows."""
        left = self.remaining
        if left is not None and left <= rows:
            return self.end
        if left is None and self.end == END:
            return END  # nobody knows where the rows end: only an open range can show it
        stride = self._stride
        if stride is None:
            # Where one of both is not known, the first page tells how dense the steps are.
            stride = 1.0 if left is None or self.end == END else (self.end - self.lo) / left
        return min(self.end, self.lo + max(1, int(rows * stride)))

    def accept(self, asked: Range, rows: Sequence[str]) -> bool:
        """Take the answer. False if it may have been sampled: then `next` gives a range to ask instead."""
        width = asked.hi - asked.lo
        if len(rows) >= asked.samples:
            if width <= 1:
                self._samples = 2 * asked.samples
                self._narrowed = asked.hi
            else:
                self._narrowed = asked.lo + self._narrower(asked, rows)
            self._refused += 1
            return False
        self.lo = asked.hi
        self.got += len(rows)
        self.pages += 1
        self._narrowed = None
        self._samples = self._refused = 0
        if rows:
            self._stride = width / len(rows)
        else:
            # A gap: widen quickly, a run may go on 10^9 steps later.
            self._stride = max(1.0, 4 * (self._stride or 1.0))
        return True

    def _narrower(self, asked: Range, rows: Sequence[str]) -> int:
        """A width at which the range should hold half a page: where the rows that came say they lie."""
        half = max(1, (asked.hi - asked.lo) // 2)
        total = max(self.remaining or 0, 2 * len(rows))
        index = min(len(rows) - 1, len(rows) * self.page // (2 * total))
        step = self._step_of(rows[index])
        if step is None or not asked.lo < step < asked.hi:
            return half
        # The rows may all lie at the end of the range; but if they mislead, halving is sure to get there.
        return step - asked.lo if self._refused == 0 else min(half, step - asked.lo)

    def shrink(self) -> bool:
        """After a failure: smaller pages from now on. False if they are as small as can be."""
        held = self.page if self.remaining is None else min(self.page, self.remaining)
        if held <= 1:
            return False
        self.page = max(1, held // 4)
        self._narrowed = None
        return True
