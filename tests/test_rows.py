"""The rows of one run out of a mirror: all of them, ranges of steps, selections of keys, and little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from costs import environ
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import NotFoundError
from mirror.query import rows as module
from mirror.query.rows import rows
from mirror.records import Fetched, Run, RunKey
from mirror.store import Reader, Writer

KEY = RunKey("lab", "storage-1", "me", "digits", "run1")


def put(root: Path, *parts: Sequence[dict[str, Any]], stream: Any = "history") -> int:
    """A run with these rows, each part in a commit of its own."""
    rid = 0
    for part in parts:
        with Writer(root) as writer, writer.lease("lab", "me", "digits"):
            rid = writer.put_run(Run(KEY))
            writer.append(KEY, stream, [json.dumps(row) for row in part])
            writer.publish(KEY, stream, Fetched(stream, "rows"))
    return rid


LOGGED = [{"_step": i, "loss": i / 7, "note": "x" * (i % 5), "n": {"a": i, "b": {"c": i / 2}}} for i in range(500)]


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, int]]:
    root = tmp_path_factory.mktemp("rows") / "m"
    rid = put(root, LOGGED[:123], LOGGED[123:], [{"loss": 1.5}, {}, {"_step": 7, "loss": None}])
    with Reader(root) as reader:
        yield reader, rid


EVERYTHING = [*LOGGED, {"loss": 1.5}, {}, {"_step": 7, "loss": None}]


def test_every_row_comes_back_in_logged_order(mirrored: tuple[Reader, int]) -> None:
    assert list(rows(*mirrored)) == EVERYTHING


def test_small_stretches_give_the_same_rows(mirrored: tuple[Reader, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRETCH_BYTES", 1)
    assert list(rows(*mirrored)) == EVERYTHING


@settings(max_examples=40, deadline=None)
@given(low=st.none() | st.integers(-3, 510), high=st.none() | st.integers(-3, 510))
def test_ranges_of_steps(mirrored: tuple[Reader, int], low: int | None, high: int | None) -> None:
    expected = [
        row
        for row in EVERYTHING
        if (low is None and high is None)
        or ("_step" in row and (low is None or row["_step"] >= low) and (high is None or row["_step"] < high))
    ]
    assert list(rows(*mirrored, min_step=low, max_step=high)) == expected


def test_keys_reduce_rows_and_leave_out_those_without(mirrored: tuple[Reader, int]) -> None:
    found = list(rows(*mirrored, keys=["loss"]))
    assert found == [{"loss": row["loss"]} for row in EVERYTHING if "loss" in row]
    found = list(rows(*mirrored, keys=["_step", "n.b.c"], min_step=3, max_step=5))
    assert found == [{"_step": i, "n": {"b": {"c": i / 2}}} for i in (3, 4)]
    assert list(rows(*mirrored, keys=[])) == list(rows(*mirrored, keys=["los", "nothing", "\ud800"])) == []


def test_the_name_of_a_nested_dictionary_gives_all_of_it(mirrored: tuple[Reader, int]) -> None:
    assert list(rows(*mirrored, keys=["n"])) == [{"n": row["n"]} for row in LOGGED]
    assert next(rows(*mirrored, keys=["n.b", "loss"])) == {"n": {"b": {"c": 0.0}}, "loss": 0.0}


def test_dotted_and_nested_keys_that_look_alike(tmp_path: Path) -> None:
    logged = [{"a.b": 2, "a/": 3, "a!": 4, "a.": 5, "a": {"": 6, "b": 7}, "a.c": {"d": 8}, "ab": 9}]
    rid = put(tmp_path / "m", logged)
    with Reader(tmp_path / "m") as reader:
        assert list(rows(reader, rid, keys=["a"])) == [{"a": {"": 6, "b": 7}}]
        assert list(rows(reader, rid, keys=["a.b"])) == [{"a": {"b": 7}, "a.b": 2}]
        assert list(rows(reader, rid, keys=["a.c", "a!", "a/"])) == [{"a.c": {"d": 8}, "a!": 4, "a/": 3}]


def test_a_stream_without_rows(mirrored: tuple[Reader, int]) -> None:
    assert list(rows(*mirrored, "system")) == []


def test_an_unknown_run(mirrored: tuple[Reader, int]) -> None:
    with pytest.raises(NotFoundError, match="no run with rid `-1`"):
        list(rows(mirrored[0], -1))


def test_only_the_live_generation_is_read(tmp_path: Path) -> None:
    put(tmp_path / "m", LOGGED[:10])
    with Writer(tmp_path / "m") as writer, writer.lease("lab", "me", "digits"):
        rid = writer.put_run(Run(KEY))
        writer.begin(KEY, "history")
        writer.append(KEY, "history", [json.dumps(row) for row in LOGGED[5:8]])
        writer.publish(KEY, "history", Fetched("history", "rows"))
    with Reader(tmp_path / "m") as reader:
        assert list(rows(reader, rid)) == LOGGED[5:8]


MEMORY = """
import sys
from mirror.query.rows import rows
from mirror.store import Reader
from costs import peak_kb
with Reader(sys.argv[1]) as reader:
    reader.connect().execute("select count(*) from raw.history").fetchall()
    next(rows(reader, int(sys.argv[2]), max_step=50))
    before = peak_kb()
    n = sum(1 for _ in rows(reader, int(sys.argv[2])))
    print(n, (peak_kb() - before) // 1024)
"""


@pytest.mark.slow
def test_a_long_run_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """150,000 rows of 10 keys are 1.5 million cells, and 200 rows hold a megabyte each: read in a process of its
    own, neither may cost more than a few stretches."""
    rid = put(
        tmp_path / "m",
        [{"_step": i} | {f"key{k}": i / (k + 3) for k in range(9)} for i in range(150_000)],
        [{"_step": 150_000 + i, "text": "x" * 1_000_000} for i in range(200)],
    )
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "m"), str(rid)]
    out = subprocess.run(command, env=environ(), check=True, capture_output=True, text=True).stdout
    n, grown = map(int, out.split())
    assert n == 150_200
    assert grown < 300, f"{grown} MB"


@pytest.mark.parametrize(
    "steps",
    [
        list(range(200)),
        [*range(90), *range(90)],
        [5] * 120,
        [None, 3, None, 1, 1, 2, 2**53 + 1, None, 0] * 9,
        [None] * 40,
        [],
    ],
    ids=["ascending", "resumed", "one step", "mixed", "without steps", "no rows"],
)
def test_rows_by_step(tmp_path: Path, steps: list[int | None]) -> None:
    """Rows without a step first, then by step; rows of one step as they were logged; every cell once."""
    logged = [{"n": i} | ({} if step is None else {"_step": step}) for i, step in enumerate(steps)]
    rid = put(tmp_path / "m", logged[: len(logged) // 2], logged[len(logged) // 2 :])
    expected = sorted(range(len(steps)), key=lambda i: (steps[i] is not None, steps[i] or 0, i))
    with Reader(tmp_path / "m") as reader:
        for weight in (1, 5_000, 16 << 20):
            order: list[int] = []
            for table in module.by_step(reader, rid, "history", weight):
                cells = table.to_pylist()
                numbers = {(cell["step"] is not None, cell["step"] or 0, cell["row"]) for cell in cells}
                assert sum(cell["key"] == "n" for cell in cells) == len(numbers)
                order += [row for _, _, row in sorted(numbers)]
            assert order == expected
