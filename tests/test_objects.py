"""Runs as objects: the shapes of `wandb.Api()`, read from a mirror."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import asking
import pytest

import mirror
from mirror.errors import AmbiguousError, CommError, NotFoundError, SourceError, StoreError, UsageError
from mirror.objects.attrs import ArgumentError
from mirror.query import samples
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


# -- histories -----------------------------------------------------------------------------------------------------

LOGGED: list[dict[str, Any]] = [
    {"_step": i, "_timestamp": 1.7e9 + i}
    | ({"loss": 1 / (i + 1)} if i % 3 else {})
    | ({"acc": i} if i % 2 else {"acc": None} if i % 4 else {})
    | ({"n": {"a": i, "b": {"c": -i}}} if i % 5 == 0 else {"n.a": -i} if i % 7 == 0 else {})
    | ({"only": 1} if i == 6 else {})
    for i in range(120)
]


@pytest.fixture(scope="module")
def rows_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("rows") / "m"
    with mirror.open(root, write=True) as m:
        m.put_runs([Run(asking.key("r"))])
        m.put_history(asking.key("r"), LOGGED)
        m.put_system_metrics(asking.key("r"), [{"_timestamp": 1.7e9 + i, "system.cpu": i} for i in range(700)])
    return lambda: mirror.Api(root).run("r")


def nth(items: list[Any], n: int) -> list[Any]:
    """Evenly chosen items, the first and the last among them, computed with fractions instead of floats."""
    from fractions import Fraction

    return items if len(items) <= n else [items[round(Fraction(i * (len(items) - 1), n - 1))] for i in range(n)]


def at(row: dict[str, Any], key: str) -> Any:
    inner = {"n": lambda: row.get("n", {}), "n.a": lambda: row.get("n.a", row.get("n", {}).get("a", KeyError))}
    inner["n.b.c"] = lambda: row.get("n", {}).get("b", {}).get("c", KeyError)
    found = inner[key]() if key in inner else row.get(key, KeyError)
    return KeyError if found == {} else found


@pytest.mark.parametrize("few", [0, 20_000])
@pytest.mark.parametrize("n", [2, 5, 10, 37, 500])
@pytest.mark.parametrize("keys", [["loss"], ["acc"], ["loss", "acc"], ["n.a"], ["n"], ["n.b.c", "acc"], ["only"], ["_step"]])  # fmt: skip # noqa: E501
def test_rows_with_keys_are_chosen_evenly_from_those_that_have_all(
    rows_run: Any, monkeypatch: pytest.MonkeyPatch, keys: list[str], n: int, few: int
) -> None:
    monkeypatch.setattr(samples, "_FEW", few)
    wanted = list(dict.fromkeys(["_step", *keys]))
    every = [
        {key: at(row, key) for key in wanted} for row in LOGGED if all(at(row, key) is not KeyError for key in wanted)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert rows_run().history(samples=n, keys=keys, pandas=False) == nth(every, n)


def test_the_default_is_500_rows_and_says_so_once(rows_run: Any) -> None:
    run = rows_run()
    with pytest.warns(
        UserWarning, match=r"gives 500 of 700 rows of team/digits/r, evenly chosen.*samples=None"
    ) as told:
        first = run.history(stream="events")
        second = run.history(stream="system")
    assert len(told) == 1 and first.equals(second) and len(first) == 500
    assert [first["system.cpu"].iloc[0], first["system.cpu"].iloc[-1]] == [0, 699]
    assert len(run.history(stream="events", samples=None)) == 700
    assert run.history(samples=0, pandas=False) == []
    assert run.history(samples=None, pandas=False) == LOGGED == list(run.scan_history())


def test_why_there_are_no_rows(rows_run: Any) -> None:
    with pytest.warns(UserWarning, match=r"never logged `losss`; did you mean `loss`\?"):
        assert rows_run().history(keys=["losss"]).empty
    with pytest.warns(UserWarning, match=r"no row of team/digits/r has all of `_step`, `only`, `loss`"):
        assert rows_run().history(keys=["only", "loss"]).empty


def test_frames_lose_no_digit(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r"))])
        m.put_history(asking.key("r"), [{"_step": 0, "big": 2**53 + 1, "n": 1}, {"_step": 1, "n": 2**70}, {"x": "a"}])
    frame = mirror.Api(tmp_path / "m").run("r").history()
    assert frame["big"].tolist()[0] == 2**53 + 1 and math.isnan(frame["_step"].tolist()[2])
    assert frame["n"].tolist()[:2] == [1, 2**70]


def test_frames_say_which_package_they_need(rows_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pip install 'wandb-mirror\[pandas\]', or .* pandas=False"):
        rows_run().history()
    assert rows_run().history(pandas=False, samples=None) == LOGGED


def test_bad_arguments_of_histories(rows_run: Any) -> None:
    run = rows_run()
    for call, text in (
        (lambda: run.history(keys="loss"), r"keys=\['loss'\]"),
        (lambda: run.history(keys=[1]), "list of strings"),
        (lambda: run.history(samples="many"), "samples"),
        (lambda: run.history(keys=["loss"], stream="events"), "default stream"),
        (lambda: run.scan_history(keys="loss"), "keys="),
    ):
        with pytest.raises(ArgumentError, match=text):
            call()
        with pytest.raises(ValueError, match=text):  # what wandb raises
            call()


def test_histories_of_many_runs(root: Path) -> None:
    runs = mirror.Api(root).runs("team/digits")
    rows = runs.histories(keys=["n"], samples=3)
    assert [(row["run_id"], row["n"]) for row in rows] == [(f"run{i}", n) for i in (1, 2, 3) for n in (0, 24, 49)]
    frame = runs.histories(keys=["n"], samples=3, format="polars")
    assert frame.columns == ["_step", "n", "run_id"] and frame["n"].to_list() == [0, 24, 49] * 3
    with pytest.raises(ArgumentError, match="default, pandas or polars"):
        runs.histories(format="csv")  # type: ignore[arg-type]


# -- lists of runs -------------------------------------------------------------------------------------------------


def test_runs_are_a_list_whatever_way_they_are_walked(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs(Run(asking.key(f"r{i:03}"), config=asking.wire({"i": i})) for i in range(300))
    api = mirror.Api(tmp_path / "m")
    runs = api.runs("team/digits", order="+config.i", per_page=7)
    assert [runs[i].config["i"] for i in (0, 299, -1, 150, 3, 4, 5)] == [0, 299, 299, 150, 3, 4, 5]
    assert [run.config["i"] for run in reversed(runs)] == list(range(299, -1, -1))
    assert [run.config["i"] for run in runs[290:]] == list(range(290, 300)) and runs[300:] == []
    assert next(runs).config["i"] == 0 and runs.next().config["i"] == 1
    with pytest.raises(IndexError, match="there are 300 runs, number 300 is none of them"):
        runs[300]
    with pytest.raises(ArgumentError, match="at least 1"):
        api.runs("team/digits", per_page=0)
    assert runs[5].config is runs[5].config


def test_documents_of_a_page_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mirror.objects import runs as module

    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs(Run(asking.key(f"r{i:04}"), config=asking.wire({"i": i}), summary="{}") for i in range(2000))
    asked: list[str] = []
    select = module.select
    monkeypatch.setattr(module, "select", lambda state, sql, params=(): asked.append(sql) or select(state, sql, params))
    assert [(r.config["i"], r.summary == {}, r.state) for r in mirror.Api(tmp_path / "m").runs()][-1] == (
        1999,
        True,
        None,
    )
    assert len(asked) <= 14  # pages of 50, 100, 200, 400, 800, 1000: attributes once, documents once


def test_deleted_runs_are_left_out_unless_wanted(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("there")), Run(asking.key("gone"), name="kept")])
        m.commit()
        m.writer.tombstone(asking.key("gone"))
    api = mirror.Api(tmp_path / "m")
    assert [run.id for run in api.runs("team/digits")] == ["there"]
    assert [run.id for run in api.runs("team/digits", deleted=True)] == ["gone", "there"]
    assert api.run("team/digits/gone").name == "kept" and api.run("gone").deleted_at is not None


# -- errors and names ----------------------------------------------------------------------------------------------


def test_whatever_goes_wrong_is_a_comm_error(api: mirror.Api) -> None:
    with pytest.raises(mirror.CommError) as caught:
        api.run("team/digits/nothing")
    assert caught.value.exc is None and mirror.errors.CommError is CommError
    behind = OSError("reset")
    assert SourceError("x", behind).exc is behind
    with pytest.raises(CommError) as caught:
        try:
            raise behind
        except OSError as e:
            raise UsageError("y") from e
    assert caught.value.exc is behind


def test_names_of_wandb(api: mirror.Api) -> None:
    run = api.run("team/digits/run1")
    assert (run.createdAt, run.displayName, run.jobType) == (run.created_at, "run 1", "train")
    assert run.lastHistoryStep == 49 and run.historyLineCount == 50
    with pytest.warns(UserWarning, match="`run.user.username` made the run"):
        assert run.username == "team"
    with pytest.raises(AttributeError, match="no attribute `colour`"):
        _ = run.colour
    with pytest.raises(AttributeError, match="log runs with wandb"):
        _ = mirror.init
    assert "shown" not in run.to_html() and run.to_html().startswith('<iframe src="https://lab.example/team/digits')
    run.load(force=True)
    with pytest.raises(UsageError, match="what the last sync saw"):
        run.wait_until_finished()


def test_defaults_for_paths(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = mirror.Api(root, overrides={"entity": "team", "project": "digits"}, timeout=30)
    assert api.run("run1").path == ["team", "digits", "run1"] and api.settings["entity"] == "team"
    monkeypatch.setenv("MIRROR_ROOT", str(root))
    assert mirror.Api({"base_url": "https://other.example"}).source == "other.example"
    assert len(mirror.Api({"base_url": "https://other.example"}).runs()) == 1
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert mirror.Api().default_entity == "team"
