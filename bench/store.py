"""How questions grow with the mirror: the same ones at 10 million, 100 million and 1,000 million values.

    python bench/store.py [--sizes 10e6 100e6 1e9] [--repeat 5] [--place DIR] [--threads 2] [--memory 6GB]

Each size is generated in PLACE, asked, and removed before the next one: 6 bytes of disk a value. Runs are 200 to 5,000
rows long; they log 48 metrics as training does (single precision, noise around a curve), `_step`, `_timestamp`,
`_runtime`, `loss`, and `val/acc` every 20 rows. Cells go through the store's own segment writer, one compacted segment
after the other, documents and metrics through its Writer. Every answer is checked against what was generated.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from mirror.query.sql import execute
from mirror.records import Fetched, Run, RunKey
from mirror.store import Reader, Writer, segments
from mirror.store.catalog import FileRow, StreamState, now
from mirror.store.cellform import INT, KINDS, NUMBER
from mirror.store.layout import shard_of
from mirror.store.metrics import MetricStats
from mirror.store.schema import coded, tables

PLAIN = [f"train/m{i:02}" for i in range(48)]
KEYS = sorted(["_step", "_timestamp", "_runtime", "loss", "val/acc", *PLAIN])
SPARSE_EVERY = 20
SEGMENT = 36_000_000
"""Cells of a segment: about the 128 MB up to which compaction merges."""
T0 = 1.7e9
RATES = 50
"""Learning rates that the runs share."""
Array = np.ndarray[Any, Any]


def key_of(n: int) -> RunKey:
    return RunKey("bench", f"s{n}", "me", "big", f"run{n:06}")


def rate(n: int) -> float:
    return float(10 ** -(1 + n % RATES / 10))


@dataclass
class Truth:
    """What the questions must find, counted while generating."""

    runs: int = 0
    values: int = 0
    rows: int = 0
    loss: float = 0.0
    last_loss: float = 0.0
    good: int = 0
    best: dict[int, float] = field(default_factory=dict)
    late: list[float] = field(default_factory=list)


@dataclass
class Block:
    """The runs of one segment, their rows one after the other."""

    first: int
    lengths: Array
    rids: list[int]

    def __post_init__(self) -> None:
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.row = np.arange(int(self.lengths.sum())) - np.repeat(self.starts, self.lengths)
        self.rid = np.repeat(np.array(self.rids), self.lengths)
        self.number = np.repeat(np.arange(self.first, self.first + len(self.rids)), self.lengths)
        self.timestamp = T0 + self.number * 60.0 + self.row * 1.25
        self.ts = np.rint(self.timestamp * 1e6).astype(np.int64)

    def values(self, key: str) -> tuple[Array, Array]:
        """Which rows have the key, and its values there."""
        every = np.arange(len(self.row))
        if key == "_step":
            return every, self.row.astype(np.float64)
        if key == "_timestamp":
            return every, self.timestamp
        if key == "_runtime":
            return every, self.row * 1.25
        random = np.random.default_rng([self.first, KEYS.index(key)])
        if key == "val/acc":
            every = np.flatnonzero(self.row % SPARSE_EVERY == 0)
        row, number = self.row[every], self.number[every]
        noise = random.standard_normal(len(every), dtype=np.float32) / 20
        curve = np.exp(-row / (100.0 + number % 300)).astype(np.float32)
        made = 1 - curve + noise if key == "val/acc" else 2 * curve + np.abs(noise)
        return every, made.astype(np.float64)  # as `tensor.item()` gives single precision


def segment(block: Block, schema: pa.Schema, stats: list[list[dict[str, Any]]], truth: Truth) -> Iterator[pa.Table]:
    """The block's cells key by key, as a segment holds them; notes what they are in `stats` (a list a run)."""
    names, kinds = pa.array(KEYS, pa.string()), pa.array(KINDS)
    for code, key in enumerate(KEYS):
        at, v = block.values(key)
        n = len(at)
        kind = INT if key == "_step" else NUMBER
        row = pa.array(block.row[at])
        yield pa.Table.from_arrays(
            [
                pa.array(block.rid[at]),
                pa.repeat(pa.scalar(1, pa.int64()), n),
                pa.DictionaryArray.from_arrays(pa.array(np.full(n, code, np.int32)), names),
                pa.repeat(pa.scalar(0, pa.int64()), n),
                row,
                row,
                pa.array(block.ts[at]).cast(schema.field("ts").type),
                pa.DictionaryArray.from_arrays(pa.array(np.full(n, kind, np.int8)), kinds),
                pa.array(v),
                pa.nulls(n, pa.string()),
            ],
            schema=schema,
        )
        _note(block, key, at, v, stats, truth)


def _note(block: Block, key: str, at: Array, v: Array, stats: list[list[dict[str, Any]]], truth: Truth) -> None:
    starts = np.searchsorted(at, block.starts)
    ends = np.append(starts[1:], len(at))
    lowest, highest = np.minimum.reduceat(v, starts), np.maximum.reduceat(v, starts)
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        first, last = int(block.row[at[start]]), int(block.row[at[end - 1]])
        n = end - start
        counts = dict.fromkeys(("n_number", "n_int", "n_bool", "n_string", "n_null", "n_nonfinite", "n_json"), 0)
        counts["n_int" if key == "_step" else "n_number"] = n
        stats[i].append(
            {"key": key, "path_id": 0, "n": n, **counts, "first_row": first, "last_row": last, "first_step": first}
            | {"last_step": last, "last_v": float(v[end - 1]), "min_v": float(lowest[i]), "max_v": float(highest[i])}
        )
        if key == "loss":
            of_rate = (block.first + i) % RATES
            truth.best[of_rate] = min(truth.best.get(of_rate, math.inf), float(lowest[i]))
            truth.late.append(float(v[max(start, end - 500) : end].mean()))
            truth.last_loss += float(v[end - 1])
    truth.values += len(v)
    if key == "loss":
        truth.loss += float(v.sum())
    if key == "val/acc":
        truth.good += int((v > 0.9).sum())


def put(writer: Writer, block: Block, stats: list[list[dict[str, Any]]]) -> None:
    """The documents of the block's runs, and the state of their streams, as if their cells had been appended."""
    for i, rid in enumerate(block.rids):
        n, length = block.first + i, int(block.lengths[i])
        created = datetime.fromtimestamp(T0 + n * 60, timezone.utc)
        config = {"lr": {"value": rate(n)}, "seed": {"value": n % 5}}
        last = {"loss": next(s["last_v"] for s in stats[i] if s["key"] == "loss")}
        run = Run(
            key_of(n), name=f"r{n}", state="finished", config=json.dumps(config), summary=json.dumps(last),
            created_at=created, heartbeat_at=created + timedelta(seconds=length * 1.25), history_line_count=length,
        )  # fmt: skip
        writer.put_run(run, rid=rid)
        found = writer._opened(run.key)
        found.streams["history"] = StreamState(gen=1, rows=length, last_step=length - 1)
        found.stats, found.stats_gen, found.metrics_changed = MetricStats(), 1, True
        rows = [{"rid": rid, "gen": 1, **s} for s in stats[i]]
        found.stats.load(pa.Table.from_pylist(rows, schema=tables()["metric"]))
        writer.publish(run.key, "history", Fetched("history", "rows", got=length, total=length, complete=True))


def fill(root: Path, size: int) -> Truth:
    truth, schema = Truth(), coded(tables()["history"])
    random = np.random.default_rng(7)
    with Writer(root, flush_bytes=1 << 40, flush_seconds=1e9) as writer:
        while truth.values < size:
            rows = min(SEGMENT, size - truth.values) // (len(KEYS) - 1)
            lengths: list[int] = []
            while sum(lengths) < rows:
                lengths.append(int(np.clip(random.lognormal(6.7, 0.7), 200, 5000)))
            block = Block(truth.runs, np.array(lengths), [writer.reserve_rid() for _ in lengths])
            stats: list[list[dict[str, Any]]] = [[] for _ in lengths]
            ids = [(rid, *_who(block.first + i)) for i, rid in enumerate(block.rids)]
            footer = {
                "rids": segments.rid_ranges(block.rids), "identities": ids, "replaces": [],
                "streams": [[rid, 1, 0, length - 1] for rid, length in zip(block.rids, lengths, strict=True)],
            }  # fmt: skip
            made = segments.write_pieces(
                writer.layout, writer.new_name(), "history", segment(block, schema, stats, truth), schema, footer,
                shard=shard_of(key_of(0)),
            )  # fmt: skip
            put(writer, block, stats)
            writer._batch.later.append(partial(_list, writer, made))
            writer.commit()
            truth.runs += len(lengths)
            truth.rows += len(block.row)
        writer.compact(everything=True)
    return truth


def _list(writer: Writer, made: FileRow) -> None:
    writer.catalog.add_file(made, writer.catalog.new_snapshot(now(), writer.session))


def _who(n: int) -> tuple[str, str, str, str, str]:
    k = key_of(n)
    return k.source, k.storage_id, k.entity, k.project, k.run_id


# -- questions ----------------------------------------------------------------------------------------------

QUESTIONS: list[tuple[str, str]] = [
    ("one metric over all runs", "select count(loss), sum(loss) from history_wide"),
    ("one run", "select _step, loss from history_wide where run_id = '{middle}' order by row"),
    (
        "20 curves of 20 runs",
        "select key, run_id, step, value from history where key like 'train/m0%' and run_id < '{twenty}'",
    ),
    ("last value of every run", "select run_id, last_v from metrics where key = 'loss'"),
    (
        "mean of each run's last 500 steps",
        "select h.run_id, avg(h.value) from history h join runs r using (rid) "
        "where h.key = 'loss' and h.step > r.history_last_step - 500 group by all",
    ),
    (
        "best loss by learning rate",
        "select w.config.lr, min(m.min_v) from metrics m join runs_wide w using (rid) where m.key = 'loss' group by 1",
    ),
    ("two keys, predicate on one", 'select count(loss), count(*) from history_wide where "val/acc" > 0.9'),
    ("full scan: every value read", "select count(*), sum(value) from history"),
]


def check(name: str, found: list[tuple[Any, ...]], truth: Truth) -> None:
    """What was found is what was generated."""

    def near(a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=1e-9)

    if name == "one metric over all runs":
        assert found[0][0] == truth.rows and near(found[0][1], truth.loss), found
    elif name == "last value of every run":
        assert len(found) == truth.runs and near(math.fsum(v for _, v in found), truth.last_loss)
    elif name.startswith("mean of"):
        assert len(found) == truth.runs
        assert all(near(a, b) for a, b in zip((v for _, v in sorted(found)), truth.late, strict=True))
    elif name.startswith("best"):
        assert sorted(v for _, v in found) == sorted(truth.best.values())
    elif name.startswith("two keys"):
        assert found == [(truth.good, truth.good)], found
    elif name.startswith("full scan"):
        assert found[0][0] == truth.values, found
    elif name == "one run":
        assert [step for step, _ in found] == list(range(len(found))) and found
    else:
        assert len({(key, run) for key, run, _, _ in found}) == 200


class Limited(Reader):
    """A reader whose DuckDB uses so many threads and so much memory."""

    threads, memory = 2, "6GB"

    def database(self) -> duckdb.DuckDBPyConnection:
        db = super().database()
        db.execute(f"set global threads = {self.threads}; set global memory_limit = '{self.memory}'")
        return db


def ask(root: Path, truth: Truth, repeat: int) -> dict[str, float]:
    """Median milliseconds of CPU by question, since other work makes clocks lie; opening the mirror is one of them."""
    places = {"middle": key_of(truth.runs // 2).run_id, "twenty": key_of(20).run_id}
    took: dict[str, float] = {}
    used = time.process_time()
    with Limited(root) as reader:
        execute(reader, "select 1").fetchall()
        took["opening it"] = 1000 * (time.process_time() - used)
        for name, query in QUESTIONS:
            text = query.format(**places)
            check(name, execute(reader, text).fetchall(), truth)
            times, cpu = [], []
            for _ in range(repeat):
                began, used = time.perf_counter(), time.process_time()
                execute(reader, text).arrow()
                times.append(1000 * (time.perf_counter() - began))
                cpu.append(1000 * (time.process_time() - used))
            took[name] = statistics.median(cpu)
            print(f"  {name}: {took[name]:.0f} ms of CPU, {statistics.median(times):.0f} ms", flush=True)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[10e6, 100e6, 1e9])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--place", type=Path, help="a folder with room for the largest size; the default is a new one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default="6GB", help="DuckDB's limit")
    args = parser.parse_args()
    Limited.threads, Limited.memory = args.threads, args.memory
    columns: list[tuple[Truth, dict[str, float]]] = []
    for size in map(int, args.sizes):
        place = Path(tempfile.mkdtemp(prefix="bench-store-", dir=args.place))
        try:
            began = time.perf_counter()
            truth = fill(place / "mirror", size)
            files = sorted((place / "mirror").rglob("*.parquet"))
            held = sum(f.stat().st_size for f in files)
            snapshot = (place / "mirror" / "snapshot.json").stat().st_size
            print(
                f"{truth.values:,} values of {truth.runs:,} runs in {time.perf_counter() - began:.0f} s: {len(files)} "
                f"files, {held / 1e6:,.0f} MB, {held / truth.values:.1f} B a value, snapshot {snapshot:,} B",
                flush=True,
            )
            columns.append((truth, ask(place / "mirror", truth, args.repeat)))
        finally:
            shutil.rmtree(place)
    print(
        f"\nmedians of {args.repeat}, {args.threads} threads, {args.memory}; x is the growth for ten times the values"
    )
    print("| question | " + " | ".join(f"{t.values / 1e6:,.0f} million, CPU ms | x" for t, _ in columns) + " |")
    print("| --- |" + " --- | --- |" * len(columns))
    for name in columns[0][1]:
        cells, before = [], None
        for truth, took in columns:
            grown = ""
            if before is not None:  # per tenfold, whatever the sizes are
                grown = f"{(took[name] / before[1]) ** (1 / math.log10(truth.values / before[0])):.1f}"
            cells.append(f"{took[name]:,.0f} | {grown}")
            before = (truth.values, took[name])
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
