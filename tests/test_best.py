"""`mirror best`: the best runs of a sweep or a project, as W&B's `sweep.best_run` orders them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import asking
import pytest
from commanding import call, ok
from test_runs import HOSTILE_KEYS

import mirror
from mirror.records import ItemKey, Run, Sweep

YAML = """
method: random
metric: {name: val/loss, goal: minimize}
parameters:
  lr: {min: 0.001, max: 0.1}
  epochs: {value: 3}
  opt: {parameters: {name: {values: [adam, sgd]}}}
"""
LOSSES: list[Any] = [0.5, 0.25, math.nan, None, 0.75, "low", 0.125]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("best") / "m"
    with mirror.open(root, write=True) as m:
        for n, loss in enumerate(LOSSES):
            config = {"lr": n / 100, "epochs": 3, "opt": {"name": "adam" if n % 2 else "sgd"}, "other": n % 3}
            summary = {"val/loss": loss, "acc": n} if loss is not None else {"acc": n, "best": {"step": n}}
            run = Run(
                asking.key(f"run{n}", "swept"), name=f"trial {n}", sweep="sw1",
                state="crashed" if n == 1 else "finished",
                config=asking.wire(config), summary=json.dumps(summary), group="even" if n % 2 == 0 else "odd",
            )  # fmt: skip
            m.put_runs([run])
        m.writer.tombstone(asking.key("run6", "swept"))
        m.put_runs(
            [
                Run(
                    asking.key("lone", "swept"),
                    sweep="sw3",
                    config=asking.wire({"a": 1, "b": {"c": 2}}),
                    summary='{"x": 1}',
                )
            ]
        )
        m.put_runs([Run(asking.key("other", "elsewhere"), sweep="sw1", summary="{}")])
        m.put_runs(
            Run(asking.key(f"h{i}", "hostile"), sweep="hostile", config=asking.wire(dict.fromkeys(HOSTILE_KEYS, i)),
                summary=json.dumps(dict.fromkeys(HOSTILE_KEYS, -i)))
            for i in range(3)
        )  # fmt: skip
        for sweep, text in (("sw1", YAML), ("sw2", "method: grid\n"), ("empty", YAML)):
            key = ItemKey("lab.example", f"storage-{sweep}", "team", "swept")
            m.writer.put_item(Sweep(key, sweep, config=text, state="FINISHED"))
    return root


def rows(root: Path, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ok("best", *args, "--format", "json", root=root))
    return found


def names(found: list[dict[str, Any]]) -> list[str]:
    return [row["path"].rpartition("/")[2] for row in found]


@pytest.mark.parametrize(
    "path", ["team/swept/sweeps/sw1", "team/swept/sw1", "swept/sw1", "https://lab.example/team/swept/sweeps/sw1"]
)
def test_the_best_of_a_sweep(root: Path, path: str) -> None:
    found = rows(root, path, "-n", "10")
    # Numbers first, then strings, NaN and nothing last; what was deleted is not among them, what crashed is.
    assert names(found)[:4] == ["run1", "run0", "run4", "run5"] and {*names(found)[4:]} == {"run2", "run3"}
    assert found[0] == {
        "path": "team/swept/run1", "name": "trial 1", "state": "crashed", "summary_metrics.val/loss": 0.25,
        "config.lr": 0.01, "config.opt.name": "adam",
    }  # fmt: skip


def test_metric_and_goal_may_be_chosen(root: Path) -> None:
    assert names(rows(root, "swept/sw1", "--goal", "maximize"))[:3] == ["run4", "run0", "run1"]
    assert names(rows(root, "swept/sw1", "--metric", "acc", "--goal", "max", "-n", "2")) == ["run5", "run4"]
    done = call("best", "swept/sw1", "--metric", "acc", "-n", "1", "--format", "csv", root=root)
    assert "The lowest acc is best; --goal maximize turns that around." in done.err
    assert done.out.splitlines()[1].startswith("team/swept/run0,trial 0,finished,0,")
    assert call("best", "swept/sw1", root=root).err == ""


def test_without_a_sweep(root: Path) -> None:
    found = rows(root, "team/swept", "--metric", "val/loss", "--group", "even", "--goal", "min", "-n", "2")
    assert names(found) == ["run0", "run4"]
    assert found[0].keys() - {"path", "name", "state", "summary_metrics.val/loss"} == {"config.lr", "config.other"}
    found = rows(
        root,
        "team/swept",
        "--metric",
        "acc",
        "--filter",
        '{"config.opt.name": "sgd"}',
        "--group",
        "even",
        "-c",
        "config.lr",
    )
    assert [list(row)[3:] for row in found] == [["summary_metrics.acc", "config.lr"]] * 3
    assert names(rows(root, "team", "--metric", "best.step")) == [
        "run3",
        *names(rows(root, "team", "--metric", "best.step"))[1:],
    ]


def test_sweeps_that_say_little(root: Path) -> None:
    done = call("best", "swept/sw2", root=root)
    assert done.code == 2 and "names no metric: say which with --metric KEY" in done.err
    assert rows(root, "swept/sw3", "--metric", "x")[0]["config.b.c"] == 2
    done = call("best", "swept/empty", root=root)
    assert (done.code, "No runs." in done.err) == (0, True)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["sw1"], 1, "may be `team/elsewhere/sweeps/sw1` from `lab.example`, `team/swept/sweeps/sw1` from"),
        (["team/swept/run1", "--metric", "acc"], 2, "is a run, not a sweep"),
        (["team/swept/sweeps/none"], 1, "holds no sweep `team/swept/sweeps/none`"),
        (["team/swepd", "--metric", "acc"], 1, "did you mean `team/swept`?"),
        (["team/swept", "--metric", "val/los"], 1, "did you mean `val/loss`?"),
        (["team/swept"], 2, "`team/swept` names no metric"),
        (["swept/sw1", "--goal", "best"], 2, "'best' is not one of"),
        (["swept/sw1", "-c", "nmae"], 2, "unknown column `nmae`"),
        (["x' or '1'='1", "--metric", "acc"], 1, "holds nothing of"),
        (["swept/sw1", "--metric", "x'] desc; drop view runs; --"], 1, "in its summary"),
    ],
)
def test_bad_calls(root: Path, args: list[str], code: int, message: str) -> None:
    done = call("best", *args, root=root)
    assert (done.code, message in done.err) == (code, True), done.err


def test_hostile_metrics(root: Path) -> None:
    for key in HOSTILE_KEYS:
        if "\0" in key:
            continue
        found = rows(root, "hostile/hostile", "--metric", key, "--goal", "minimize", "-c", f"config.{key}")
        assert names(found) == ["h2", "h1", "h0"], key
        assert [row[f"config.{key}"] for row in found] == [2, 1, 0]
    out = ok("best", "hostile/hostile", "--metric", "a,b", root=root)
    assert all(c.isprintable() or c == "\n" for c in out)
