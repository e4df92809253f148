"""The key catalogue, against a count made the slow way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.store.cells import decode
from mirror.store.metrics import MetricStats
from mirror.store.schema import tables

JSON_KINDS = ("list", "dict", "media")


def slowly(batches: list[list[str]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The catalogue, cell by cell in order of rows."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    offset = 0
    for rows in batches:
        cells = decode(rows).table.to_pylist()
        for cell in sorted(cells, key=lambda c: c["row"]):
            if cell["kind"] == "empty":
                continue
            row = offset + cell["row"]
            kind = "json" if cell["kind"] in JSON_KINDS else cell["kind"]
            m = found.setdefault((cell["key"], cell["path_id"]), {"n": 0, "min_v": None, "max_v": None})
            if m["n"] == 0:
                m["first_row"], m["first_step"] = row, cell["step"]
            m["n"] += 1
            m[f"n_{kind}"] = m.get(f"n_{kind}", 0) + 1
            m["last_row"], m["last_step"], m["last_v"] = row, cell["step"], cell["v"]
            if kind in ("number", "int") and cell["v"] is not None:
                m["min_v"] = cell["v"] if m["min_v"] is None else min(m["min_v"], cell["v"])
                m["max_v"] = cell["v"] if m["max_v"] is None else max(m["max_v"], cell["v"])
        offset += len(rows)
    return found


def agree(stats: MetricStats, batches: list[list[str]]) -> None:
    table = stats.table()
    assert table.column_names == [name for name in tables()["metric"].names if name not in ("rid", "gen")]
    expected = slowly(batches)
    assert len(table) == len(expected)
    for row in table.to_pylist():
        wanted = expected[row["key"], row["path_id"]]
        for name in set(row) - {"key", "path_id"}:
            value = wanted.get(name, 0 if name.startswith("n_") else None)
            assert row[name] == value or (row[name] != row[name] and value != value), name  # NaN is NaN


values = st.one_of(
    st.integers(-5, 5), st.floats(width=16), st.booleans(), st.none(), st.just("s"), st.just([1]), st.just({}),
    st.just({"b": 1}), st.just({"_type": "x"}), st.sampled_from([2**60, -0.0]),
)  # fmt: skip
rows = st.dictionaries(st.sampled_from(["a", "b", "a.b", "_step", ""]), values, max_size=4).map(json.dumps)
batches = st.lists(st.lists(rows, max_size=4), max_size=4)


def fed(batches: list[list[str]]) -> MetricStats:
    stats = MetricStats()
    offset = 0
    for found in batches:
        stats.add(decode(found).table, offset)
        offset += len(found)
    return stats


@settings(max_examples=300, deadline=None)
@given(batches)
def test_the_catalogue_is_the_one_counted_slowly(batches: list[list[str]]) -> None:
    agree(fed(batches), batches)


@settings(max_examples=150, deadline=None)
@given(batches, st.integers(0, 4))
def test_it_continues_from_stored_rows(batches: list[list[str]], at: int) -> None:
    stats = MetricStats()
    stats.load(fed(batches[:at]).table())
    offset = sum(map(len, batches[:at]))
    for found in batches[at:]:
        stats.add(decode(found).table, offset)
        offset += len(found)
    agree(stats, batches)


@settings(max_examples=100, deadline=None)
@given(batches, st.randoms())
def test_the_order_of_batches_and_cells_does_not_matter(batches: list[list[str]], random: Any) -> None:
    offsets = np.cumsum([0, *map(len, batches)]).tolist()
    parts = list(zip(batches, offsets, strict=False))
    random.shuffle(parts)
    stats = MetricStats()
    for found, offset in parts:
        table = decode(found).table
        order = list(range(len(table)))
        random.shuffle(order)
        stats.add(table.take(pa.array(order, pa.int64())), offset)
    agree(stats, batches)


def test_a_run_of_ten_thousand_keys() -> None:
    found = [json.dumps({f"k{k}": k + row for k in range(10_000)}) for row in range(4)]
    table = fed([found[:2], found[2:]]).table()
    assert len(table) == 10_000
    by_key = {row["key"]: row for row in table.to_pylist()}
    assert (by_key["k7"]["n"], by_key["k7"]["min_v"], by_key["k7"]["last_v"]) == (4, 7.0, 10.0)


def test_no_cells_no_keys() -> None:
    assert len(fed([[], ["{}"]]).table()) == 0
