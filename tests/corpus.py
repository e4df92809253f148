"""Hostile runs, logged through the real wandb SDK (and over plain HTTP where the SDK cannot make them).

What was logged is remembered at the moment of logging, as the Python values that were handed in: this is the
truth that tests/test_exact.py compares with. Nothing here uses code of the mirror.

    python tests/corpus.py TRUTH.pickle      with WANDB_BASE_URL and WANDB_API_KEY of a server

logs everything in a process of its own (the SDK reads its environment once) and leaves the list of `Truth`s.
"""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENTITY = "local"
PROJECT = "corpus"
BIG_STEP = 10**12


@dataclass
class Truth:
    """What was logged into one run. `rows` are the dicts handed to `run.log`, in order, with the `_step` each
    got; for runs posted over HTTP `lines` are the JSON texts themselves and `rows` stays empty."""

    run_id: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] | None = None
    events: list[str] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    job_type: str | None = None
    state: str = "finished"
    began: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class Media:
    """A media object: the fields of its `_type` dict that are known before it is logged."""

    fields: dict[str, Any]


class Recorder:
    """Logs into a run and remembers. Steps count as the SDK counts them: up by one, or as given; a second
    `log` into the same step merges."""

    def __init__(self, run: Any, truth: Truth, step: int = 0) -> None:
        self.run, self.truth, self.step = run, truth, step

    def log(self, row: dict[str, Any], step: int | None = None, known: dict[str, Any] | None = None) -> None:
        """`known` replaces values by what is known of them in advance (`Media`)."""
        known = known or {}
        at = self.step if step is None else step
        self.step = at + 1
        truth = {"_step": at} | copy.deepcopy({k: v for k, v in row.items() if k not in known}) | known
        if self.truth.rows and self.truth.rows[-1]["_step"] == at:
            self.truth.rows[-1] |= truth
        else:
            self.truth.rows.append(truth)
        self.run.log(row, step=step)


MAKERS: list[Callable[[], Truth]] = []


def maker(make: Callable[[], Truth]) -> Callable[[], Truth]:
    MAKERS.append(make)
    return make


@contextmanager
def sdk(run_id: str, **init: Any) -> Iterator[tuple[Recorder, Truth]]:
    """A run of the real SDK. What `init` is given belongs to the truth."""
    import wandb

    truth = Truth(run_id, config=copy.deepcopy(init.get("config") or {}), began=time.time())
    for name in ("name", "notes", "group", "job_type"):
        setattr(truth, name, init.get(name))
    truth.tags = list(init.get("tags") or [])
    exit_code, first_step = init.pop("exit_code", 0), init.pop("first_step", 0)
    run = wandb.init(entity=ENTITY, project=PROJECT, id=run_id, **init)
    yield Recorder(run, truth, first_step), truth
    run.finish(exit_code=exit_code)
    truth.ended = time.time()
    if exit_code:
        truth.state = "failed"


def http(path: str, body: Any) -> Any:
    import requests

    url, key = os.environ["WANDB_BASE_URL"], os.environ["WANDB_API_KEY"]
    answer = requests.post(f"{url}{path}", json=body, auth=("api", key), timeout=300)
    answer.raise_for_status()
    return answer.json()


def posted(run_id: str, *parts: list[str], events: list[str] | None = None, state: str = "finished") -> Truth:
    """A run whose history lines are posted as they are, each part in a request of its own."""
    query = "mutation U($i: UpsertBucketInput!) { upsertBucket(input: $i) { bucket { id } } }"
    bucket = {"entityName": ENTITY, "modelName": PROJECT, "name": run_id, "displayName": f"posted {run_id}"}
    http("/graphql", {"query": query, "variables": {"i": bucket}})
    stream = f"/files/{ENTITY}/{PROJECT}/{run_id}/file_stream"
    offset = 0
    for part in parts:
        http(stream, {"files": {"wandb-history.jsonl": {"offset": offset, "content": part}}})
        offset += len(part)
    if events:
        http(stream, {"files": {"wandb-events.jsonl": {"offset": 0, "content": events}}})
    if state == "finished":
        http(stream, {"complete": True, "exitcode": 0})
    lines = [line for part in parts for line in part]
    return Truth(run_id, lines=lines, events=events, name=f"posted {run_id}", state=state)


# What the SDK can log


@maker
def plain() -> Truth:
    with sdk("plain", config={"lr": 0.1, "layers": 3, "act": "relu", "flag": True}, name="plain run") as (run, truth):
        for i in range(120):
            run.log({"loss": 1 / (i + 3), "n": i, "even": i % 2 == 0, "phase": "warm-up" if i < 10 else "train"})
    return truth


@maker
def nonfinite() -> Truth:
    with sdk("nonfinite", config={"a": math.nan, "b": math.inf, "n": {"c": -math.inf}, "s": "NaN"}) as (run, truth):
        for i in range(12):
            run.log({
                "loss": 0.5 / (i + 1) if i < 6 else math.nan,
                "up": math.inf, "down": -math.inf, "always": math.nan,
                "inside": {"x": math.nan, "y": [math.nan, 1, -math.inf]}, "list": [math.inf, {"z": math.nan}],
                "text": "NaN", "Text": "Infinity", "lower": "nan", "mixed": math.nan if i % 2 else "NaN",
            })  # fmt: skip
    return truth


@maker
def mixed() -> Truth:
    values = [1, 1.5, "one", True, None, [1, 2], {"deep": 1}, math.nan, 2**60, {}, [], "", False, -7, 1e-300, 0.1 + 0.2]
    with sdk("mixed") as (run, truth):
        for i, value in enumerate(values):
            run.log({"k": value, "i": i})
    return truth


@maker
def nested() -> Truth:
    with sdk("nested", config={"opt": {"name": "adam", "betas": [0.9, 0.999], "more": {}}, "opt.name": "sgd"}) as (
        run,
        truth,
    ):
        run.log({"a": {"b": 1.5}, "a.b": 2.5})
        run.log({"a.b": {"c": 3}, "a": {"b.c": 4, "b": {"c": 5}}, "a.b.c": 6})
        run.log({"a": {"b": {"c": {"d": {"e": {"f": {"g": 7.5}}}}}}, "empty": {}, "half": {"x": {}, "y": 1}})
        run.log({"list": [], "lists": [[], [[]]], "dicts": [{}, {"a": {"b": []}}], ".": {".": 8}, "..": 9})
    return truth


ODD_KEYS = [
    "Loss", "loss", "LOSS", "a.b", "a/b", "a b", "a\\b", "'", '"', "`", "a\tb", "a\nb", "\t", " ", "😀", "ключ", "é",
    "e\u0301", "x" * 300, "%s", "$x", "a;drop table runs", "key::json", "metric:loss", "row", "step", "ts", "kind",
    "v", "j", "rid", "gen", "NaN", "null", "0", "-0", "__proto__", "\u202eright", "[/red]", "\x1b[31m", "_x",
    "train/loss", "train//loss", "/", "a.", ".a",
]  # fmt: skip


@maker
def odd_keys() -> Truth:
    config = {key: i for i, key in enumerate(ODD_KEYS) if key != "-0"} | {"--dashes-": 1}
    with sdk("oddkeys", config=config) as (run, truth):
        for i in range(3):
            run.log({key: i + n / 64 + 1 / 128 for n, key in enumerate(ODD_KEYS)})
        run.log({"": 1.5, "beside": 2.5})
        run.log({"Case": 1, "case": "one", "CASE": None})
    return truth


@maker
def huge_steps() -> Truth:
    with sdk("hugesteps") as (run, truth):
        for i, step in enumerate([0, 7, 10**3, 10**6, 10**9, 2**31, 2**39, BIG_STEP - 1, BIG_STEP]):
            run.log({"x": i + 0.25}, step=step)
    return truth


@maker
def late_start() -> Truth:
    with sdk("latestart") as (run, truth):
        for step in [61_010, 61_011, 61_500, 62_010, 70_000, 70_001]:
            run.log({"x": step / 7}, step=step)
        run.log({"y": 1.5}, step=70_001)  # merges into the row before
    return truth


@maker
def nulls() -> Truth:
    with sdk("nulls", config={"none": None, "inside": {"none": None, "list": [None]}}) as (run, truth):
        run.log({"a": None})
        run.log({"a": None, "b": 1.5})
        run.log({"b": None, "inside": {"c": None, "d": [None, {"e": None}]}})
        run.log({"c": 0.5})
    return truth


@maker
def big_integers() -> Truth:
    numbers = [
        2**53,
        2**53 + 1,
        -(2**53) - 1,
        2**62,
        2**63 - 1,
        -(2**63),
        2**63,
        2**64 - 1,
        2**64,
        2**70,
        -(2**70),
        10**30,
    ]
    with sdk("bigintegers", config={"seed": 2**53 + 1, "seeds": [2**62, {"x": 2**63 - 1}]}) as (run, truth):
        for n in numbers:
            run.log({"n": n, "list": [n], "inside": {"n": n}})
        run.log(
            {
                "small": 5e-324,
                "large": 1.7976931348623157e308,
                "zero": -0.0,
                "third": 1 / 3,
                "integral": 4.0,
                "e22": 1e22,
            }
        )
    return truth


@maker
def media() -> Truth:
    import numpy as np
    import wandb

    rng = np.random.default_rng(0)
    picture = {"_type": "image-file", "format": "png"}
    with sdk("media") as (run, truth):
        for i in range(2):
            counts, edges = np.histogram(rng.normal(size=200), bins=8)
            image = wandb.Image(rng.integers(0, 255, (5, 7, 3), dtype=np.uint8), caption="caption [/red] é")
            table = wandb.Table(columns=["a", "b"], data=[[1, "x"], [2.5, None], [3, "é"]])
            run.log(
                {
                    "histogram": wandb.Histogram(np_histogram=(counts, edges)),
                    "picture": image,
                    "pictures": [wandb.Image(np.zeros((2, 2, 3), np.uint8)), wandb.Image(np.ones((2, 2, 3), np.uint8))],
                    "table": table,
                    "inside": {"picture": wandb.Image(np.zeros((3, 4, 3), np.uint8))},
                    "loss": 0.5 + i,
                },
                known={
                    "histogram": Media({"_type": "histogram", "values": counts.tolist(), "bins": edges.tolist()}),
                    "picture": Media(picture | {"width": 7, "height": 5, "caption": "caption [/red] é"}),
                    "pictures": Media({"_type": "images/separated", "count": 2, "width": 2, "height": 2}),
                    "table": Media({"_type": "table-file", "ncols": 2, "nrows": 3}),
                    "inside": {"picture": Media(picture | {"width": 4, "height": 3})},
                },
            )  # fmt: skip
    return truth


@maker
def no_rows() -> Truth:
    with sdk("norows") as (_, truth):
        pass
    return truth


@maker
def config_only() -> Truth:
    deep = {"level": {"level": {"level": {"list": list(range(100)), "floats": [0.1, 1.0, 1e-9, 1e300]}}}}
    with sdk("configonly", config={"deep": deep, "a.b": 1, "a/b": 2, "": 3, "~": 4, "long": "x" * 10_000}) as (
        _,
        truth,
    ):
        pass
    return truth


@maker
def unicode() -> Truth:
    with sdk(
        "unicode",
        name="名前 😀 é e\u0301 [/red] \x1b]0;x\x07",
        notes="line one\nline two\t\u202e ünï\u2028 'quoted' \"quoted\"",
        tags=["ünï", "😀", "with space", "a,b", "[bold]"],
        group="グループ/1",
        job_type="тип;x",
        config={"schlüssel": "wert 😀", "𝄞": ["é", {"ß": "\x7f\x00\x1b[0m"}]},
    ) as (run, truth):
        for text in [
            "é",
            "e\u0301",
            "😀",
            "\u2028\u2029",
            "\x00\x01\x7f",
            "\x1b[31mred",
            "\ufeff",
            "a\r\nb",
            "\\u0041",
            "</script>",
            "'\"`",
        ]:
            run.log({"text": text, "текст": [text, {text: text}]})
    return truth


@maker
def failed() -> Truth:
    with sdk("failed", exit_code=3, tags=["broken"]) as (run, truth):
        for i in range(5):
            run.log({"loss": i + 0.125})
    return truth


@maker
def resumed() -> Truth:
    with sdk("resumed", config={"first": 1}, tags=["one"]) as (run, truth):
        for i in range(10):
            run.log({"x": i + 0.5})
    with sdk("resumed", resume="must", first_step=10, config={"second": 2}) as (run, again):
        for i in range(10, 20):
            run.log({"x": i + 0.5, "again": True})
    truth.rows += again.rows
    truth.config |= again.config
    truth.ended = again.ended
    return truth


@maker
def long_strings() -> Truth:
    with sdk("longstrings") as (run, truth):
        for i, letter in enumerate(["x", "é", "😀"]):
            run.log({"text": letter * 1_000_000, "i": i})
        run.log({"list": ["y" * 1000] * 300})
    return truth


@maker
def wide() -> Truth:
    with sdk("wide") as (run, truth):
        for i in range(4):
            run.log({f"layer.{k}/grad_norm": (i + 1) / (k + 3) for k in range(3000)})
    return truth


@maker
def sparse() -> Truth:
    with sdk("sparse") as (run, truth):
        for i in range(60):
            row: dict[str, Any] = {"every": i / 3}
            if i % 7 == 0:
                row["seventh"] = i / 9
            if i == 59:
                row["once"] = "late"
            run.log(row)
    return truth


@maker
def summaries() -> Truth:
    with sdk("summaries", config={"x": 1}) as (run, truth):
        run.run.define_metric("best", summary="max")
        for i in range(10):
            run.log({"loss": 1 / (i + 3), "best": [3.5, 9.5, 1.5][i % 3], "gone": i + 0.5})
        overrides = {"loss": 42.5, "extra": {"deep": [1.5, None]}, "text": "final", "big": 2**53 + 1, "flag": False}
        run.run.summary.update(overrides)
        truth.summary = {"loss": 42.5, "extra": {"deep": [1.5, None]}, "text": "final", "big": 2**53 + 1, "flag": False}
        truth.summary |= {"best": {"max": 9.5}, "gone": 9.5}
    return truth


@maker
def lists() -> Truth:
    with sdk("lists", config={"tuple": (1, 2), "list": [1.5, "x", None, True, [2], {"a": 3}]}) as (run, truth):
        run.log(
            {"numbers": [1, 2.5, -3], "texts": ["a", "", "é"], "flags": [True, False, None], "deep": [[1], [[2.5]]]}
        )
        run.log(
            {
                "dicts": [{"a": 1, "b.c": [2]}, {"_type": "not media"}],
                "long": [i / 7 for i in range(500)],
                "tuple": (1, "x"),
            }
        )
    return truth


@maker
def labelled() -> Truth:
    with sdk(
        "labelled", name="same name", group="g", job_type="eval", tags=["z", "a", "m"], notes="# Markdown\n* list"
    ) as (run, truth):
        run.log({"x": 0.5})
    return truth


@maker
def labelled_alike() -> Truth:
    with sdk("labelled2", name="same name") as (run, truth):
        run.log({"x": 0.75})
    return truth


@maker
def numpy_values() -> Truth:
    import numpy as np

    with sdk("numpy") as (run, truth):
        for i in range(3):
            run.log(
                {
                    "f32": np.float32(0.1) * i,
                    "i64": np.int64(2**53 + 1),
                    "flag": np.bool_(i > 0),
                    "few": np.arange(3) / 4,
                },
                known={"f32": float(np.float32(0.1) * i), "i64": 2**53 + 1, "flag": i > 0, "few": [0, 0.25, 0.5]},
            )
    return truth


@maker
def steps_that_go_back() -> Truth:
    """A step below the last one is dropped by the SDK, with a warning; the rows around it stay."""
    with sdk("goback") as (run, truth):
        run.log({"x": 0.5}, step=5)
        run.run.log({"x": 99.5}, step=3)
        run.log({"x": 1.5}, step=6)
    return truth


@maker
def custom_axis() -> Truth:
    with sdk("axis") as (run, truth):
        run.run.define_metric("epoch", hidden=True)
        run.run.define_metric("val/*", step_metric="epoch")
        for i in range(6):
            run.log({"epoch": i // 2, "val/acc": i / 7} if i % 2 else {"train": i / 5})
    return truth


@maker
def long_run() -> Truth:
    """More rows than a page of the SDK holds."""
    with sdk("long") as (run, truth):
        for i in range(2300):
            run.log({"x": i / 7, "note": f"é{i}"} if i % 3 else {"x": i / 7})
    return truth


@maker
def offline() -> Truth:
    """Logged without a server, and sent by `wandb sync` afterwards."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["WANDB_DIR"]))
    with sdk("offline", mode="offline", dir=folder, config={"lr": 0.5, "n": None}, tags=["later"]) as (run, truth):
        for i in range(25):
            run.log({"x": i + 0.125, "bad": math.nan if i % 4 == 0 else i / 3, "deep": {"list": [i, None]}})
    found = [str(path) for path in folder.glob("wandb/offline-run-*")]
    subprocess.run([sys.executable, "-m", "wandb", "sync", *found], check=True, timeout=300, capture_output=True)
    return truth


# What only the wire can carry


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(row) for row in rows]


@maker
def repeated_steps() -> Truth:
    """As two offline logs of one run give after `wandb sync`: the second begins at step 0 again."""
    first = _lines([{"_step": i, "_timestamp": 1.7e9 + i, "_runtime": i + 0.5, "x": i / 8} for i in range(10)])
    second = _lines([{"_step": i, "_timestamp": 1.71e9 + i, "_runtime": i + 0.5, "x": 100 + i / 8} for i in range(10)])
    return posted("repeated", first, second)


@maker
def same_step_forever() -> Truth:
    return posted("samestep", _lines([{"_step": 5, "_timestamp": 1.7e9 + i, "n": i} for i in range(40)]))


@maker
def wire_spellings() -> Truth:
    """Number spellings the SDK never writes, NaN as string and as token, rows without user keys."""
    return posted(
        "spellings",
        [
            '{"_step":0,"_timestamp":1700000000.125,"f":1.0,"z":-0.0,"iz":-0,"e":1E+2,"tiny":5e-324}',
            '{"_step":1,"_timestamp":1700000001,"big":123456789012345678901234567890,"l":[18446744073709551616,-0]}',
            '{"_step":2,"nan":NaN,"text":"NaN","l":[NaN,"NaN"]}',
            '{"_step":3}',
            '{"_step":4,"":{"":1},"a":{"b":{}},"a.b":null}',
            '{"_step":5,"s":"\\ud800 alone","\\udfff":1}',
            '{ "_step" : 6 , "spaced" : [ 1 , 2 ] , "u" : "\\u00e9\\/" }',
            '{"_step":7,"type":{"_type":"unknown-type","x":[1.0]}}',
        ],
    )


@maker
def steps_of_every_kind() -> Truth:
    """A float step, a step beyond 2^53, and gaps."""
    rows = [{"_step": 1.0, "x": 1}, {"_step": 3, "x": 2}, {"_step": 61_010, "x": 3}, {"_step": 2**53 + 1, "x": 4}]
    return posted("oddsteps", _lines(rows))


@maker
def system_metrics() -> Truth:
    keys = ["system.cpu", "system.gpu.0.gpu", "system.disk./.usagePercent"]
    rows = [
        {"_wandb": True, "_timestamp": 1.7e9 + 15 * i, "_runtime": 15.5 * i}
        | {k: i / 3 + n for n, k in enumerate(keys)}
        for i in range(30)
    ]
    events = _lines(rows)
    return posted(
        "system", _lines([{"_step": i, "_timestamp": 1.7e9 + i, "loss": 1 / (i + 1)} for i in range(20)]), events=events
    )


@maker
def preempted() -> Truth:
    truth = posted(
        "preempted", _lines([{"_step": i, "_timestamp": 1.7e9 + i, "x": i} for i in range(4)]), state="running"
    )
    stream = f"/files/{ENTITY}/{PROJECT}/preempted/file_stream"
    http(stream, {"preempting": True})
    http(stream, {"complete": True, "exitcode": 1})
    truth.state = "preempted"
    return truth


@maker
def still_running() -> Truth:
    return posted(
        "running", _lines([{"_step": i, "_timestamp": 1.7e9 + i, "loss": i / 4} for i in range(7)]), state="running"
    )


def main(target: str) -> None:
    truths = [make() for make in MAKERS]
    Path(target).write_bytes(pickle.dumps(truths))


if __name__ == "__main__":
    from corpus import main as run  # so that the pickle names this module `corpus`

    run(sys.argv[1])
