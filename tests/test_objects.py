"""Runs as objects: the shapes of `wandb.Api()`, read from a mirror."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import asking
import pytest

import mirror
from mirror.errors import AmbiguousError, NotFoundError, StoreError, UsageError
from mirror.records import Run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asking.fill(tmp_path_factory.mktemp("objects") / "m")


@pytest.fixture(scope="module")
def api(root: Path) -> mirror.Api:
    return mirror.Api(root)


def test_a_run(api: mirror.Api) -> None:
    run = api.run("team/digits/run1")
    assert (run.id, run.name, run.state, run.tags) == ("run1", "run 1", "finished", ["t", "v1"])
    assert (run.group, run.job_type, run.notes, run.user) == ("g", "train", "note 1", None)
    assert (run.entity, run.project, run.path) == ("team", "digits", ["team", "digits", "run1"])
    assert run.created_at == "2025-01-31T13:00:00Z" and run.heartbeat_at == "2025-01-31T13:01:30Z"
    assert run.url == "https://lab.example/team/digits/runs/run1" and run.source == "lab.example"
    assert run.config == {"lr": 0.1, "layers": [1, 2], "opt": {"name": "adam", "beta": 0.9}, "seed": 1, "a.b": 1}
    assert run.summary["val/acc"] == 0.25 and run.summary._json_dict["best"] == {"step": 1}
    assert run.metadata == {"program": "train.py"}
    assert run.lastHistoryStep == 49
    assert repr(run) == "<Run team/digits/run1 (finished)>"


def test_what_a_run_lacks_is_none_or_empty(api: mirror.Api) -> None:
    run = api.run("https://lab.example/team/shared/runs/twin")
    assert (run.name, run.state, run.tags, run.created_at, run.metadata, run.commit) == (
        None,
        None,
        [],
        None,
        None,
        None,
    )
    assert (run.config, run.summary, list(run.scan_history()), run.lastHistoryStep) == ({}, {}, [], -1)


def test_every_row_as_logged_in_order(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = [
        {"_step": 5, "a": 1, "b": {"c": 2.0}},
        {"_step": 5, "a": None, "b.c": "x"},
        {"_step": 0, "a": 9007199254740993, "n": math.nan, "i": -math.inf},
        {"a": [1, {}], "Loss": 1, "loss": 2},
        {},
        {"_step": 61_010, "img": {"_type": "image-file", "path": "x.png"}, "_timestamp": 1700000000.123456, "t": True},
    ]
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r"))])
        m.put_history(asking.key("r"), logged)
    run = mirror.Api(tmp_path / "m").run("r")
    found = list(run.scan_history())
    assert repr(found[2].pop("n")) == "nan" and logged[2].pop("n") != 0
    assert found == logged
    assert type(found[0]["b"]["c"]) is float and type(found[0]["a"]) is int
    assert [r["_step"] for r in run.scan_history(min_step=1)] == [5, 5, 61_010]
    assert [r["_step"] for r in run.scan_history(max_step=5)] == [0]
    assert list(run.scan_history(keys=["_step", "a"])) == [{"_step": 5, "a": 1}, {"_step": 5, "a": None}, {"_step": 0, "a": 9007199254740993}]  # fmt: skip # noqa: E501
    assert list(run.scan_history(keys=["b.c"])) == [{"b.c": 2.0}, {"b.c": "x"}]
    assert list(run.scan_history(keys=["loss", "Loss"])) == [{"loss": 2, "Loss": 1}]
    assert list(run.scan_history(keys=["nothing"])) == []
    with pytest.raises(UsageError, match=r"write keys=\['loss'\]"):
        next(run.scan_history(keys="loss"))
    assert len(list(run.scan_history(page_size=1))) == 6


def test_non_finite_config_and_summary_values_come_back_as_they_were(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs(
            [Run(asking.key("r"), config='{"x": {"value": NaN}}', summary='{"a": Infinity, "b": "NaN", "c": 1e400}')]
        )
    run = mirror.Api(tmp_path / "m").run("r")
    assert math.isnan(run.config["x"])
    assert run.summary == {"a": math.inf, "b": "NaN", "c": math.inf}


def test_runs(api: mirror.Api) -> None:
    runs = api.runs("team/digits")
    assert len(runs) == 3 and [r.id for r in runs] == ["run1", "run2", "run3"]
    assert runs[-1].id == "run3" and [r.id for r in runs[:2]] == ["run1", "run2"]
    assert [r.id for r in reversed(runs)] == ["run3", "run2", "run1"]
    assert [r.id for r in api.runs("team/digits", {"config.seed": {"$gte": 2}}, order="-created_at")] == [
        "run3",
        "run2",
    ]
    assert len(api.runs()) == 14 and len(api.runs("team")) == 14
    assert repr(runs) == "<Runs team/digits: 3>"
    with pytest.warns(UserWarning, match="summary_metrics"):
        assert len(api.runs(filters={"summary.val/acc": 0.5})) == 1


def test_many_runs_are_read_a_page_at_a_time(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs(Run(asking.key(f"r{i:04}"), config=asking.wire({"i": i})) for i in range(450))
    runs = mirror.Api(tmp_path / "m").runs("team/digits", order="-config.i")
    assert [r.config["i"] for r in runs] == list(range(449, -1, -1))


def test_errors(root: Path, api: mirror.Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(AmbiguousError, match=r"`lab\.example`, `other\.example`: name one"):
        api.run("team/shared/twin")
    assert mirror.Api(root, source="other.example").run("team/shared/twin").source == "other.example"
    assert len(mirror.Api(root, source="other.example").runs()) == 1
    with pytest.raises(NotFoundError, match="holds no run `team/digits/nothing`"):
        api.run("team/digits/nothing")
    with pytest.raises(NotFoundError, match="did you mean `team/digits`"):
        api.runs("team/digit")
    with pytest.raises(UsageError, match=r"\$bogus"):
        api.runs(filters={"config.x": {"$bogus": 1}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIRROR_ROOT", raising=False)
    with pytest.raises(StoreError, match="wandb-mirror` does not exist: make one with `mirror sync"):
        mirror.Api()
    monkeypatch.setenv("MIRROR_ROOT", str(root))
    assert len(mirror.Api().runs()) == 14


def test_new_runs_are_seen_and_old_objects_keep_working(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r"), config=asking.wire({"x": 1}))])
        m.put_history(asking.key("r"), [{"_step": s, "loss": s} for s in range(1000)])
    api = mirror.Api(tmp_path / "m")
    old = api.run("r")
    reading = old.scan_history()
    assert next(reading) == {"_step": 0, "loss": 0}
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r"), config=asking.wire({"x": 2})), Run(asking.key("s"))])
    assert len(api.runs()) == 2
    assert (old.config, api.run("r").config) == ({"x": 1}, {"x": 2})
    assert next(reading) == {"_step": 1, "loss": 1}
    assert len(list(reading)) == 1000  # as in wandb, going over it starts again
    assert json.dumps(next(old.scan_history())) == '{"_step": 0, "loss": 0}'
