"""What filters cost: their translation, and asking 100,000 runs, beside mongomock and mingo over the same documents.

    python bench/filters.py [--runs 100000] [--root DIR] [--mingo DIR]

One run of this program makes (or takes from DIR) a mirror of made-up runs with about 20 config and 15 summary values,
compacted, and a copy of it with 50 further commits that change 20 runs each, not compacted. `DIR/node_modules/mingo`
is used where Node is there (`npm install --prefix DIR mingo`). The peers get their documents parsed and in memory, and
mongomock's matcher is called without its collection, which would copy every document it finds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from mirror.filters import order_sql, to_sql
from mirror.records import Run, RunKey
from mirror.store import Reader, Writer

DELTAS, CHANGED = 50, 20
SAMPLES = Path(__file__).parents[1] / "tests" / "filter_samples.json"
START = datetime(2025, 1, 1, tzinfo=timezone.utc)

# Kinds of filters that people write, each met by about one run in a hundred.
FILTERS: dict[str, dict[str, Any]] = {
    "attribute": {"display_name": "run-777"},
    "tag": {"tags": "rare"},
    "date and state": {"created_at": {"$gte": "2025-03-01", "$lt": "2025-03-02"}, "state": "finished"},
    "one number": {"config.lr": {"$lt": 0.001}},
    "one string": {"config.experiment_name": "exp-7"},
    "pattern": {"config.experiment_name": {"$regex": "^exp-7"}},
    "nested": {"config.model.layers.width": 77},
    "missing or not equal": {"config.rare": {"$ne": None}},
    "summary, range": {"summary_metrics.val/loss": {"$gte": 0.5, "$lt": 0.51}},
    "element of a list": {"config.betas": 7},
    "mixed types": {"config.x": {"$gt": 0.99}},
    "three keys": {"config.batch_size": 64, "config.optimizer": "adam", "summary_metrics.val/loss": {"$lt": 0.08}},
    "any of two keys": {"$or": [{"config.seed": 7}, {"config.experiment_name": "exp-70"}]},
    "$in of 50": {"config.seed": {"$in": list(range(0, 100, 2))}, "config.lr": {"$lt": 0.002}},
}


def document(n: int) -> dict[str, Any]:
    """A run as MongoDB would hold it."""
    rng = random.Random(n)
    config = {
        "experiment_name": f"exp-{rng.randrange(100)}", "experiment": {"category": rng.choice(["testing", "paper"])},
        "batch_size": rng.choice([16, 32, 64, 128]), "optimizer": rng.choice(["adam", "sgd", "lion"]),
        "lr": rng.random() / 10, "seed": rng.randrange(1000), "epochs": rng.randrange(100), "dropout": rng.random(),
        "betas": [rng.randrange(200), rng.randrange(200, 400)], "env_id": f"Env-v{rng.randrange(9)}", "cuda": True,
        "model": {"name": "mlp", "layers": {"width": rng.randrange(100), "depth": rng.randrange(9)}, "bias": None},
        "x": rng.choice([rng.random(), rng.randrange(2), "text", [1, 2], None, {"a": 1}]),
        "total_timesteps": 10**rng.randrange(12), "save": False,
    }  # fmt: skip
    if rng.random() < 0.01:
        config["rare"] = rng.random()
    loss = rng.random()
    summary = {
        "loss": loss, "val/loss": loss + rng.random() / 10, "acc": 1 - loss, "_step": rng.randrange(10**6),
        "_runtime": rng.random() * 1e4, "_timestamp": 1.7e9 + n, "model1": {"loss": rng.random()},
        **{f"metric/{i}": rng.random() for i in range(8)},
    }  # fmt: skip
    return {
        "name": f"id{n:06}", "display_name": f"run-{n % 1000}", "state": rng.choice(["finished", "crashed", "failed"]),
        "tags": ["v1", *(["rare"] if n % 100 == 0 else [])], "group": f"g{n % 50}",
        "created_at": (START + timedelta(minutes=n)).isoformat(), "config": config, "summary_metrics": summary,
    }  # fmt: skip


def run(n: int, found: dict[str, Any]) -> Run:
    return Run(
        RunKey("bench", f"s{n}", "me", "big", found["name"]),
        name=found["display_name"],
        state=found["state"],
        tags=tuple(found["tags"]),
        group=found["group"],
        created_at=datetime.fromisoformat(found["created_at"]),
        config=json.dumps({key: {"value": value} for key, value in found["config"].items()}),
        summary=json.dumps(found["summary_metrics"]),
    )


def make(root: Path, runs: int) -> None:
    """The compacted mirror at root/compacted and the one with deltas at root/deltas."""
    began = time.perf_counter()
    with Writer(root / "compacted") as writer:
        for n in range(runs):
            writer.put_run(run(n, document(n)))
    with Writer(root / "compacted") as writer:
        writer.compact(everything=True)
    shutil.copytree(root / "compacted", root / "deltas")
    with mock.patch("mirror.store.commit.compact"), Writer(root / "deltas") as writer:
        for i in range(DELTAS):
            for n in range(i, runs, max(1, runs // CHANGED)):
                found = document(n)
                found["config"]["changed"] = i
                writer.put_run(run(n, found))
            writer.commit()
    print(f"made two mirrors of {runs:,} runs in {time.perf_counter() - began:.0f} s")


def clocked(ask: Callable[[], Any], times: int) -> tuple[float, float, Any]:
    """Median wall and processor milliseconds, and the answer."""
    wall, cpu = [], []
    for _ in range(times):
        began, worked = time.perf_counter(), time.process_time()
        found = ask()
        wall.append((time.perf_counter() - began) * 1000)
        cpu.append((time.process_time() - worked) * 1000)
    return statistics.median(wall), statistics.median(cpu), found


def translation() -> None:
    samples = [s["filter"] for s in json.loads(SAMPLES.read_text()) if not s.get("invalid")]
    times = sorted(clocked(lambda q=q: to_sql(q), 9)[1] for q in samples)  # type: ignore[misc]
    print(f"translation of {len(samples)} samples: median {statistics.median(times):.2f} ms of CPU, "
          f"90 % below {times[int(len(times) * 0.9)]:.2f}, slowest {times[-1]:.2f}")  # fmt: skip
    many = clocked(lambda: to_sql({"config.seed": {"$in": list(range(10_000))}}), 3)[1]
    print(f"translation of $in with 10,000 values: {many:.0f} ms")


def asked(root: Path, times: int) -> dict[str, tuple[float, float, Any]]:
    with Reader(root) as reader:
        db = reader.connect()

        def ask(query: dict[str, Any]) -> int:
            return len(db.execute(f"select run_id from runs where {to_sql(query)}").fetchall())

        for query in FILTERS.values():
            ask(query)
        found = {name: clocked(lambda q=query: ask(q), times) for name, query in FILTERS.items()}  # type: ignore[misc]
        page = f"select run_id from runs where {to_sql({'state': 'finished'})} order by "
        for order in ("-created_at", "-summary_metrics.val/loss"):
            sql = page + order_sql(order) + " limit 10"
            found[f"page by {order}"] = clocked(lambda s=sql: len(db.execute(s).fetchall()), times)  # type: ignore[misc]
        return found


def mongomock(documents: list[dict[str, Any]]) -> dict[str, float]:
    from mongomock.filtering import filter_applies

    found = {}
    for name, query in FILTERS.items():
        found[name] = clocked(lambda q=query: sum(filter_applies(q, d) for d in documents), 1)[0]  # type: ignore[misc]
    return found


_MINGO = """
const mingo = require("mingo");
const lines = require("fs").readFileSync(process.argv[2], "utf8").trimEnd().split("\\n");
const filters = JSON.parse(process.argv[3]), documents = lines.map((line) => JSON.parse(line)), found = {};
for (const [name, filter] of Object.entries(filters)) {
  const query = new mingo.Query(filter), times = [];
  for (let i = 0; i < 3; i++) {
    const began = process.hrtime.bigint();
    let n = 0;
    for (const document of documents) if (query.test(document)) n++;
    times.push(Number(process.hrtime.bigint() - began) / 1e6);
  }
  found[name] = times.sort((a, b) => a - b)[1];
}
console.log(JSON.stringify(found));
"""


def mingo(documents: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "documents.jsonl"
        lines.write_text("\n".join(map(json.dumps, documents)))
        script = Path(scratch) / "bench.cjs"
        script.write_text(_MINGO)
        environment = {**os.environ, "NODE_PATH": str(folder / "node_modules")}
        command = ["node", "--max-old-space-size=4096", str(script), str(lines), json.dumps(FILTERS)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(result.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--root", type=Path, help="keep the mirrors there, or take them from there")
    parser.add_argument("--mingo", type=Path, help="folder that mingo is installed in")
    parser.add_argument("--times", type=int, default=9)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        root = args.root or Path(scratch)
        if not (root / "deltas").exists():
            make(root, args.runs)
        translation()
        compacted, deltas = asked(root / "compacted", args.times), asked(root / "deltas", args.times)
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
        documents = [document(n) for n in range(args.runs)]
        theirs = {"mongomock": mongomock(documents)}
        if args.mingo and shutil.which("node"):
            theirs["mingo"] = mingo(documents, args.mingo)
    print(
        "\n| filter | runs | compacted ms (CPU) | with 50 deltas ms (CPU) |"
        + "".join(f" {peer} ms |" for peer in theirs)
    )
    print("| --- | --- | --- | --- |" + " --- |" * len(theirs))
    for name, (wall, cpu, hits) in compacted.items():
        more = "".join(f" {peer[name]:.0f} |" if name in peer else " |" for peer in theirs.values())
        print(f"| {name} | {hits:,} | {wall:.0f} ({cpu:.0f}) | {deltas[name][0]:.0f} ({deltas[name][1]:.0f}) |{more}")
    for peer, times in theirs.items():
        ratios = sorted(times[name] / compacted[name][0] for name in times)
        print(f"\n{peer}: {ratios[0]:.0f} to {ratios[-1]:.0f} times as long, median {statistics.median(ratios):.0f}")


if __name__ == "__main__":
    main()
