"""Pages of a history: every row once, in few requests, whatever its steps are."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.wandb.ranges import END, Range, Scan
from mirror.wandb.rows import step_of


class Served:
    """A history as a server gives it out by ranges: whole if it fits, thinned out if it does not."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = sorted(steps)
        self.rows = [f'{{"_step": {step}, "line": {i}}}' for i, step in enumerate(self.steps)]
        self.asked: list[Range] = []
        self.sent = 0

    def answer(self, asked: Range) -> list[str]:
        self.asked.append(asked)
        rows = self.rows[bisect_left(self.steps, asked.lo) : bisect_left(self.steps, asked.hi)]
        if len(rows) > asked.samples:
            rows = [rows[i * len(rows) // asked.samples] for i in range(asked.samples)]
        self.sent += len(rows)
        return rows


def read(served: Served, *, page: int, count: int | None, last: int | None, lo: int = 0) -> list[str]:
    scan = Scan(lo, END if last is None else last + 1, count, page, step_of)
    rows: list[str] = []
    while not scan.done:
        asked = scan.next()
        answer = served.answer(asked)
        assert len(served.asked) < 2000, "the scan does not end"
        if scan.accept(asked, answer):
            rows += answer
    return rows


steps = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 10**12), st.integers(61_000, 61_100)), max_size=300)


@settings(max_examples=300, deadline=None)
@given(
    steps=steps,
    page=st.integers(1, 200),
    count_error=st.sampled_from([0, 0, 0, -20, 50, None]),
    knows_last=st.booleans(),
)
def test_every_row_comes_once_and_in_order(
    steps: list[int], page: int, count_error: int | None, knows_last: bool
) -> None:
    served = Served(steps)
    count = None if count_error is None else max(0, len(steps) + count_error)
    last = max(steps, default=0) if knows_last else None
    assert read(served, page=page, count=count, last=last) == served.rows


@pytest.mark.parametrize(
    ("name", "steps", "requests"),
    [
        ("20 rows up to step 10^12", [i * 10**12 // 19 for i in range(20)], 1),
        ("20 rows, the last one far away", [*range(19), 10**12], 1),
        ("starting at 61,010", list(range(61_010, 61_510)), 1),
        ("dense", list(range(100_000)), 10),
        ("every 1,000th step", list(range(0, 50_000_000, 1000)), 6),
        ("every step twice", sorted([*range(30_000), *range(30_000)]), 7),
        ("dense, then a far step", [*range(50_000), 10**12], 12),
        ("a few far apart, then dense", [*range(0, 10**9, 10**7), *range(10**9, 10**9 + 50_000)], 14),
        ("thousands of rows at one step", [5] * 30_000, 30),
    ],
)
def test_few_requests(name: str, steps: list[int], requests: int) -> None:
    served = Served(steps)
    rows = read(served, page=10_000, count=len(steps), last=max(steps))
    assert rows == served.rows
    assert len(served.asked) <= requests, (name, served.asked)
    assert served.sent <= 2.5 * len(steps) + 100_000


def test_samples_are_never_fewer_than_a_dense_range_is_wide() -> None:
    served = Served(list(range(25_000)))
    read(served, page=10_000, count=25_000, last=24_999)
    assert all(asked.samples > asked.hi - asked.lo for asked in served.asked)


def test_a_scan_shrinks_its_pages_down_to_one_row() -> None:
    scan = Scan(0, 1000, 1000, 256, step_of)
    sizes = []
    while scan.shrink():
        sizes.append(scan.next().hi)
    assert sizes == [64, 16, 4, 1]


@pytest.mark.parametrize(
    ("row", "step"),
    [
        ('{"_step": 3}', 3), ('{"_step": 3.0}', 3), ('{"a": {"_step": 4}, "_step": 2, "x": NaN}', 2), ("{}", None),
        ('{"_step": true}', None), ('{"_step": 1.5}', None), ("[1]", None), ("no json", None),
    ],
)  # fmt: skip
def test_the_step_of_a_row(row: str, step: int | None) -> None:
    assert step_of(row) == step
