"""What questions cost: a mirror against DuckDB over one wide Parquet file per run, in one process.

    python bench/queries.py [--runs 2000] [--values 100000000] [--repeat 5] [--root DIR]

Fills DIR (kept and used again if it holds the same size) with runs of 1,000 rows of 52 keys and a sparse one, once
through the store's own writer, compacted as by `mirror compact` unless --as-written says otherwise, and once as one
Parquet file per run with a column per key. Then asks both the same questions and prints medians, ratios and the
targets. Answers are compared before they are timed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirror.query.sql import execute
from mirror.records import Fetched, Run, RunKey
from mirror.store import Reader, Writer
from mirror.store.cellform import INT, KINDS, NUMBER
from mirror.store.cells import CELLS, CellBatch

ROWS = 1000
PLAIN = [f"train/m{i:02}" for i in range(48)]
SPARSE_EVERY = 10
PER_RUN = ROWS * (4 + len(PLAIN)) + ROWS // SPARSE_EVERY
T0 = 1.7e9


def key(n: int) -> RunKey:
    return RunKey("bench", f"s{n}", "me", "big", f"run{n:05}")


def values(n: int) -> dict[str, np.ndarray[Any, Any]]:
    """What run n logged: a column per key; NaN in `val/acc` is a row without it."""
    random = np.random.default_rng(n)
    step = np.arange(ROWS)
    found: dict[str, np.ndarray[Any, Any]] = {
        "_step": step,
        "_timestamp": T0 + n * 2000 + step * 1.25,
        "_runtime": step * 1.25,
        "loss": 2 * np.exp(-step / (100 + n % 300)) + random.random(ROWS) / 10,
    }
    noise = random.random((len(PLAIN), ROWS))
    found |= {name: noise[i] for i, name in enumerate(PLAIN)}
    acc = 1 - np.exp(-step / (200 + n % 500)) - random.random(ROWS) / 10
    found["val/acc"] = np.where(step % SPARSE_EVERY == 0, acc, math.nan)
    return found


def cells(n: int) -> CellBatch:
    """The same as the cells that the store's decoder would make."""
    columns = values(n)
    ts = np.rint(columns["_timestamp"] * 1e6).astype(np.int64)
    rows = {name: np.flatnonzero(~np.isnan(v)) for name, v in columns.items()}
    lengths = [len(r) for r in rows.values()]
    row = np.concatenate(list(rows.values()))
    count = len(row)
    code = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    kind = np.where(code == 0, INT, NUMBER).astype(np.int8)
    v = np.concatenate([columns[name][r] for name, r in rows.items()]).astype(np.float64)
    table = pa.Table.from_arrays(
        [
            pa.DictionaryArray.from_arrays(code, pa.array(list(rows), pa.string())),
            pa.array(np.zeros(count, np.int64)),
            pa.array(row),
            pa.array(row),
            pa.array(ts[row]).cast(CELLS.field("ts").type),
            pa.DictionaryArray.from_arrays(kind, pa.array(KINDS)),
            pa.array(v),
            pa.nulls(count, pa.string()),
        ],
        schema=CELLS,
    )
    return CellBatch(ROWS, table, 0, ROWS - 1, "")


def fill(root: Path, runs: int, compact: bool) -> None:
    if (root / "done").exists() and (root / "done").read_text() == str(runs):
        return
    shutil.rmtree(root, ignore_errors=True)
    (root / "wide").mkdir(parents=True)
    began = time.perf_counter()
    with Writer(root / "mirror") as writer:
        for n in range(runs):
            columns = values(n)
            summary = {"loss": float(columns["loss"][-1]), "best": float(np.nanmax(columns["val/acc"]))}
            config = {"lr": {"value": 10 ** -(1 + n % 50 / 10)}, "seed": {"value": n % 5}, "group": {"value": n // 5}}
            created = datetime.fromtimestamp(T0 + n * 2000, timezone.utc)
            run = Run(
                key(n), name=f"r{n}", state="finished", config=json.dumps(config), summary=json.dumps(summary),
                created_at=created, heartbeat_at=created + timedelta(seconds=1250), history_line_count=ROWS,
            )  # fmt: skip
            writer.put_run(run)
            writer.append(run.key, "history", cells(n))
            writer.publish(run.key, "history", Fetched("history", "rows", got=ROWS, total=ROWS, complete=True))
            table = {name: pa.array(v, from_pandas=name == "val/acc") for name, v in columns.items()}
            pq.write_table(pa.table(table), root / "wide" / f"run{n:05}.parquet")
        if compact:
            writer.compact(everything=True)
    (root / "done").write_text(str(runs))
    print(f"filled with {runs:,} runs, {runs * PER_RUN:,} values in {time.perf_counter() - began:.0f} s")


# -- questions ----------------------------------------------------------------------------------------------

ONE = "run{:05}"
QUESTIONS: list[tuple[str, str, str, str]] = [
    (
        "one metric over all runs", ">= 4x faster",
        "select run_id, _step, loss from history_wide",
        "select {run}, _step, loss from {wide}",
    ),
    (
        "the same from the tall view", ">= 4x faster",
        "select run_id, step, value from history where key = 'loss'",
        "select {run}, _step, loss from {wide}",
    ),
    (
        "its mean by run", "",
        "select run_id, avg(loss) from history_wide group by run_id",
        "select {run}, avg(loss) from {wide} group by all",
    ),
    (
        "two keys, predicate on one", "<= 2x the time",
        'select run_id, _step, loss, "val/acc" from history_wide where "val/acc" > 0.9',
        'select {run}, _step, loss, "val/acc" from {wide} where "val/acc" > 0.9',
    ),
    (
        "two keys in every row, predicate on one", "<= 2x the time",
        'select run_id, _step, loss, "train/m01" from history_wide where "train/m01" > 0.9',
        'select {run}, _step, loss, "train/m01" from {wide} where "train/m01" > 0.9',
    ),
    (
        "two keys, no predicate", "",
        'select count(loss), avg("val/acc") from history_wide',
        'select count(loss), avg("val/acc") from {wide}',
    ),
    (
        "one run, found among all files", "<= 3x slower",
        "select _step, loss from history_wide where run_id = '{one}' order by row",
        "select _step, loss from {wide} where {run} = '{one}' order by _step",
    ),
    (
        "one run, its file named", "<= 3x slower",
        "select _step, loss from history_wide where run_id = '{one}' order by row",
        "select _step, loss from read_parquet('{folder}/{one}.parquet') order by _step",
    ),
    (
        "20 curves of 20 runs", "",
        "select key, run_id, step, value from history where key like 'train/m0%' and run_id < '{twenty}'",
        "select key, {run}, _step, value from (unpivot (from {wide} where {run} < '{twenty}') on {twenty_columns} "
        "into name key value value)",
    ),
    (
        "last value of every run", "",
        "select run_id, last_v from metrics where key = 'loss'",
        "select {run}, arg_max(loss, _step) from {wide} group by all",
    ),
    (
        "mean of the last 500 steps", "",
        "select run_id, avg(loss) from history_wide where _step >= 500 group by run_id",
        "select {run}, avg(loss) from {wide} where _step >= 500 group by all",
    ),
    (
        "best loss by learning rate", "",
        "select w.config.lr, min(m.min_v) from metrics m join runs_wide w using (rid) where m.key = 'loss' group by 1",
        "select c.lr, min(loss) from {wide} join configs c on c.run = {run} group by 1",
    ),
    (
        "average of every metric", "",
        "select key, avg(value) from history where key like 'train/%' group by key",
        "select key, avg(value) from (unpivot {wide} on columns('train/.*') into name key value value) group by key",
    ),
]  # fmt: skip


def ordered(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows in an order of their own, floats rounded: sums depend on the order of their terms."""
    rows = (tuple(row.values()) for row in table.rename_columns([str(i) for i in range(table.num_columns)]).to_pylist())
    return sorted(tuple(round(v, 9) if isinstance(v, float) else v for v in row) for row in rows)


def measured(ask: Callable[[], pa.Table], repeat: int) -> float:
    """Median milliseconds until all rows are here."""
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def compare(root: Path, runs: int, repeat: int) -> None:
    reader = Reader(root / "mirror")
    peer = duckdb.connect()
    folder = str(root / "wide")
    peer.execute("create table configs (run varchar, lr double)")
    peer.executemany(
        "insert into configs values (?, ?)", [(ONE.format(n), 10 ** -(1 + n % 50 / 10)) for n in range(runs)]
    )
    places = {
        "folder": folder,
        "wide": f"read_parquet('{folder}/*.parquet', filename = true)",
        "run": "parse_filename(filename, true)",
        "one": ONE.format(runs * 2 // 5),
        "twenty": ONE.format(20),
        "twenty_columns": "columns('train/m0.*')",
    }
    print(f"{'question':42} {'mirror ms':>10} {'peer ms':>10} {'mirror/peer':>12}  target")
    for name, target, query, beside in QUESTIONS:
        ours, theirs = query.format(**places), beside.format(**places)
        small = runs * ROWS <= 200_000

        def mine(ours: str = ours) -> pa.Table:
            return execute(reader, ours).arrow()

        def other(theirs: str = theirs) -> pa.Table:
            return peer.sql(theirs).to_arrow_table()

        one, two = mine(), other()
        assert one.num_rows == two.num_rows, (name, one.num_rows, two.num_rows)
        if small or one.num_rows <= 20_000:
            assert ordered(one) == ordered(two), name
        del one, two
        a, b = measured(mine, repeat), measured(other, repeat)
        print(f"{name:42} {a:10.1f} {b:10.1f} {a / b:12.2f}  {target}", flush=True)


def overhead(root: Path, repeat: int) -> None:
    """What rewriting costs where nothing is to be rewritten, and where it is."""
    reader = Reader(root / "mirror")
    execute(reader, "select 1").fetchall()
    for name, query in (("select 1", "select 1"), ("prepared history_wide", "select loss from history_wide limit 0")):
        times = []
        for _ in range(20 * repeat):
            began = time.perf_counter()
            execute(reader, query)
            times.append(time.perf_counter() - began)
        print(f"{name}: {statistics.median(times) * 1000:.1f} ms until it can run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int)
    parser.add_argument(
        "--values", type=int, default=100_000_000, help="at least so many; decides --runs if that is left out"
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--as-written", action="store_true", help="do not compact the mirror")
    args = parser.parse_args()
    runs = args.runs or -(-args.values // PER_RUN)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.root or Path(scratch) / "bench"
        fill(root, runs, not args.as_written)
        held = Reader(root / "mirror").snapshot
        cells = held.files("history")
        size = sum(file["bytes"] for table in held.content["tables"].values() for file in table["files"]) >> 20
        wide = sum(path.stat().st_size for path in (root / "wide").glob("*.parquet")) >> 20
        print(f"{runs:,} runs, {runs * PER_RUN:,} values; mirror: {len(cells)} files of cells, {size} MB in all;")
        print(f"peer: {runs:,} files, {wide} MB; medians of {args.repeat}")
        compare(root, runs, args.repeat)
        overhead(root, args.repeat)


if __name__ == "__main__":
    main()
