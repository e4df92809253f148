"""The hostile corpus logged without a server, and what only logs hold: console output, artifacts, later changes.

    python tests/offline_corpus.py TRUTH.pickle      with WANDB_MODE=offline and WANDB_DIR

Nothing here uses code of the mirror.
"""

from __future__ import annotations

import inspect
import math
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from corpus import MAKERS, Truth, sdk
from google.protobuf.message import DecodeError
from logfiles import HEADER, framed, unframed
from wandb.proto import wandb_internal_pb2 as pb

ONLINE = {"offline"}
"""Makers of tests/corpus.py that need a server, besides those that post lines themselves."""


def documents() -> Truth:
    """Everything that can be changed while a run goes on."""
    with sdk("documents", config={"lr": 1.0, "n": {"x": {"y": 2}}}, tags=["a", "b"], name="first") as (run, truth):
        sdk_run = run.run
        sdk_run.config.update({"lr": 2.5, "new": None, "n": {"x": {"z": 1}}}, allow_val_change=True)
        sdk_run.config["later"] = [1, {"a": 2}]
        truth.config |= {"lr": 2.5, "new": None, "n": {"x": {"z": 1}}, "later": [1, {"a": 2}]}
        sdk_run.tags = (*sdk_run.tags, "c")
        sdk_run.name, sdk_run.notes = "second", "notes"
        truth.tags, truth.name, truth.notes = ["a", "b", "c"], "second", "notes"
        run.log({"x": 0.5, "a": {"b": 1}, "gone": 7})
        sdk_run.summary["deep"] = {"one": 1, "two": {"three": 3.5}}
        sdk_run.summary["dotted.key"] = 4
        sdk_run.summary["gone"] = None
        sdk_run.summary.update({"a": {"b": 2.5, "c": 3}})
        truth.summary = {"deep": {"one": 1, "two": {"three": 3.5}}, "dotted.key": 4, "gone": None}
    return truth


def axes() -> Truth:
    with sdk("axes") as (run, truth):
        run.run.define_metric("epoch")
        run.run.define_metric("val/*", step_metric="epoch", summary="min,max")
        run.run.define_metric("best", summary="max,last")
        run.run.define_metric("hidden", hidden=True)
        for i in range(12):
            run.log({"epoch": i // 4, "val/loss": 1 / (i + 1), "best": float(i % 5) + 0.5, "hidden": i})
    return truth


def console() -> Truth:
    import wandb

    with sdk("console", settings=wandb.Settings(console="wrap")) as (run, truth):
        print("one line")
        print("é 😀 \x1b[31mred\x1b[0m")
        print("halves of", end="")
        print(" a line")
        print("\ttab", "", "after an empty line", sep="\n")
        print("to stderr", file=sys.stderr)
        run.log({"x": 0.5})
    return truth


def things() -> Truth:
    """Artifacts, a saved file, and system metrics."""
    import wandb

    place = Path.cwd() / "things"
    place.mkdir()
    (place / "weights.bin").write_bytes(b"abc" * 100)
    with sdk("things", settings=wandb.Settings(x_stats_sampling_interval=0.1, x_stats_buffer_size=100)) as (run, truth):
        run.log({"x": 0.5})
        artifact = wandb.Artifact("weights", "model", metadata={"k": [1, 2.5]}, description="what it is")
        artifact.add_file(str(place / "weights.bin"))
        artifact.add_reference("elsewhere://bucket/key", name="elsewhere", checksum=False)
        run.run.log_artifact(artifact, aliases=["best", "latest"], tags=["t1"])
        run.run.save(str(place / "weights.bin"), base_path=str(place))
        while len(run.run._system_metrics.get("cpu", ())) < 3:
            time.sleep(0.05)
    return truth


def twice() -> Truth:
    """The same id logged twice, both times from step 0: a server that is sent both logs holds both."""
    with sdk("twice", config={"first": 1}) as (run, truth):
        for i in range(10):
            run.log({"x": i + 0.5})
    with sdk("twice", resume="allow", config={"second": 2}) as (run, again):
        for i in range(10):
            run.log({"x": 100.5 + i})
    truth.rows += again.rows
    truth.config |= again.config
    truth.ended = again.ended
    return truth


def crowded() -> Truth:
    """Three rows a step, which the SDK does not log, but servers hold and logs may: steps put in by hand."""
    with sdk("crowded") as (run, truth):
        for i in range(12):
            run.log({"x": i + 0.5, f"only{i % 3}": i})
    [log] = (Path(os.environ["WANDB_DIR"]) / "wandb").glob("offline-run-*-crowded/*.wandb")
    end = time.monotonic() + 300
    while True:  # the SDK closes its log a little later
        try:
            records = [pb.Record.FromString(data) for data in unframed(log)]
        except (struct.error, DecodeError):
            records = []
        if any(record.WhichOneof("record_type") == "exit" for record in records) or time.monotonic() > end:
            break
        time.sleep(0.1)
    for record in records:
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                if list(item.nested_key) == ["_step"] or item.key == "_step":
                    item.value_json = str(int(item.value_json) // 3)
            record.history.step.num //= 3
    new = log.with_suffix(".new")
    new.write_bytes(HEADER + framed([record.SerializeToString() for record in records]))
    new.replace(log)  # a file of its own: the SDK may still hold the old one
    return truth


def infinite_summary() -> Truth:
    with sdk("infinite") as (run, truth):
        run.log({"up": math.inf, "nan": math.nan, "list": [math.nan, 1]})
        run.run.summary["set"] = math.nan
    return truth


def makers() -> list[Callable[[], Truth]]:
    of_corpus = [make for make in MAKERS if "posted(" not in inspect.getsource(make) and make.__name__ not in ONLINE]
    return [*of_corpus, documents, axes, console, things, twice, crowded, infinite_summary]


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(pickle.dumps([make() for make in makers()]))
