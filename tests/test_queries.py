"""Saved queries: each answer is computed a second time, in Python, from the rows themselves."""
# ruff: noqa: E501 (tables of cases)

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import asking
import pytest
import sqlglot
from sqlglot import exp

import mirror
from mirror.errors import AmbiguousError, MirrorError
from mirror.query import saved
from mirror.records import Run
from mirror.store import Reader

RUNS: dict[str, dict[str, Any]] = {
    "a1": {"loss": 0.5, "val/acc": 0.75, "m": {"best": 7}},
    "b2": {"loss": 0.25, "val/acc": math.nan},
    "c3": {"loss": 3, "val/acc": 0.875, "m.best": 9},
    "d4": {"loss": "broken"},
    "e5": {"loss": -1.5},
    "f6": {},
}
"""Summaries by run id."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    root = tmp_path_factory.mktemp("queries") / "m"
    with mirror.open(root, write=True) as m:
        for i, (run_id, summary) in enumerate(RUNS.items()):
            project = "p" if i < 4 else "q"
            m.put_runs([Run(asking.key(run_id, project), name=f"run {run_id}", summary=json.dumps(summary))])
    return Reader(root)


def answer(reader: Reader, name: str, **params: Any) -> list[dict[str, Any]]:
    found = saved.run(reader, name, params)
    return [dict(zip(found.columns, row, strict=True)) for row in found]


@pytest.mark.parametrize("goal", ["max", "min"])
def test_leaderboard(reader: Reader, goal: str) -> None:
    numbers = {
        run_id: s["loss"]
        for run_id, s in RUNS.items()
        if isinstance(s.get("loss"), (int, float)) and s["loss"] == s["loss"]
    }
    best = sorted(numbers, key=lambda r: numbers[r], reverse=goal == "max")
    found = answer(reader, "leaderboard", metric="loss", goal=goal)
    assert [r["run_id"] for r in found] == best
    assert [r["place"] for r in found] == [1, 2, 3, 4]
    assert [r["value"] for r in found] == [float(numbers[r]) for r in best]
    assert {r["name"] for r in found} == {f"run {r}" for r in best}


def test_leaderboard_keys_projects_and_limits(reader: Reader) -> None:
    assert [r["run_id"] for r in answer(reader, "leaderboard", metric="val/acc")] == ["c3", "a1"], "NaN does not rank"
    assert [r["value"] for r in answer(reader, "leaderboard", metric="m.best")] == [9, 7], "literal and nested dots"
    assert [r["run_id"] for r in answer(reader, "leaderboard", metric="loss", limit="1")] == ["c3"]
    assert [r["run_id"] for r in answer(reader, "leaderboard", metric="loss", project="q")] == ["e5"]
    assert answer(reader, "leaderboard", metric="loss' or 1=1 --") == []


def test_learning_curves(tmp_path: Path) -> None:
    rows = {
        "even": [{"_step": s, "loss": 1 / (s + 1)} for s in range(100)],
        "late": [{"_step": 61_010 + 7 * s, "loss": math.nan if s % 10 == 3 else float(s)} for s in range(33)],
        "twice": [{"_step": s % 5, "loss": s} for s in range(10)],
        "one": [{"_step": 10**12, "loss": 4.5}],
        "stepless": [{"loss": s} for s in range(4)],
        "mixed": [{"_step": 0, "loss": "text"}, {"_step": 1, "loss": 2**60 + 1}, {"_step": 2, "loss": True}, {"_step": 3, "x": 1}],
    }  # fmt: skip
    with mirror.open(tmp_path / "m", write=True) as m:
        for run_id, logged in rows.items():
            m.put_runs([Run(asking.key(run_id))])
            m.put_history(asking.key(run_id), logged)
    reader = Reader(tmp_path / "m")
    for buckets in (1, 7, 50):
        expected: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for run_id, logged in rows.items():
            points = [
                (r.get("_step", i), r["loss"])
                for i, r in enumerate(logged)
                if isinstance(r.get("loss"), (int, float)) and not isinstance(r["loss"], bool)
            ]
            low, high = min(p[0] for p in points), max(p[0] for p in points)
            for x, y in points:
                expected.setdefault((run_id, (x - low) * buckets // (high - low + 1)), []).append((x, y))
        found = {(r["run_id"], r["bucket"]): r for r in answer(reader, "learning_curves", key="loss", buckets=buckets)}
        assert found.keys() == expected.keys()
        for place, points in expected.items():
            r = found[place]
            assert (r["first_step"], r["last_step"], r["points"]) == (points[0][0] if place[0] != "twice" else min(points)[0], max(points)[0], len(points))  # fmt: skip
            numbers = [y for _, y in points if y == y and abs(y) <= 2**53]
            assert r["nonfinite"] == sum(y != y for _, y in points)
            assert (r["least"], r["greatest"]) == ((min(numbers), max(numbers)) if numbers else (None, None))
            assert r["mean"] == pytest.approx(math.fsum(numbers) / len(numbers)) if numbers else r["mean"] is None
    assert {r["run_id"] for r in answer(reader, "learning_curves", key="loss", run="team/digits/late")} == {"late"}
    assert answer(reader, "learning_curves", key="nothing") == []


CONFIGS = {
    "one": {"lr": 0.1, "n": 32, "opt": {"name": "adam", "beta": [0.9, 0.99]}, "same": {"deep": [1, {"x": 1}]}, "gone": None,
            "typed": 1, "empty": {}, "big": 2**60 + 1, "long": list(range(100)), "flag": True, "nan": math.nan},
    "two": {"lr": 0.2, "n": 32.0, "opt": {"name": "sgd", "beta": [0.9, 0.999]}, "same": {"deep": [1, {"x": 1}]},
            "typed": "1", "empty": {"x": 1}, "big": 2**60 + 2, "long": [*range(99), 0], "flag": False, "nan": "NaN", "new": "é"},
}  # fmt: skip


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {p: v for k, inner in value.items() for p, v in leaves(inner, f"{path}/{k}").items()}
    return {path: value}


def test_config_diff(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs(Run(asking.key(r), config=asking.wire(c)) for r, c in CONFIGS.items())
        m.put_runs([Run(asking.key("twin")), Run(asking.key("twin", source="other.example"))])
    reader = Reader(tmp_path / "m")
    one, two = leaves(CONFIGS["one"]), leaves(CONFIGS["two"])
    missing = object()
    different = sorted(
        p for p in one.keys() | two.keys()
        if repr(one.get(p, missing)) != repr(two.get(p, missing)) and p != "/n"  # 32 and 32.0 are the same number
    )  # fmt: skip
    found = answer(reader, "config_diff", a="one", b="team/digits/two")
    assert [r["path"] for r in found] == different
    by_path = {r["path"]: (r["a"], r["b"]) for r in found}
    assert by_path["/lr"] == ("0.1", "0.2")
    assert by_path["/opt/name"] == ("adam", "sgd")
    assert by_path["/gone"] == ("null", None) and by_path["/new"] == (None, "é")
    assert by_path["/typed"] == ("1", "1"), "a number and a string"
    assert by_path["/big"] == (str(2**60 + 1), str(2**60 + 2))
    assert json.loads(by_path["/opt/beta"][1]) == [0.9, 0.999]
    assert by_path["/flag"] == ("true", "false")
    assert answer(reader, "config_diff", a="one", b="one") == []
    assert [r["path"] for r in answer(reader, "config_diff", a="two", b="one")] == different
    with pytest.raises(AmbiguousError, match=r"`lab\.example`, `other\.example`"):
        answer(reader, "config_diff", a="one", b="twin")


# -- the files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", saved.names())
def test_every_query_explains_itself_and_uses_its_parameters(name: str) -> None:
    query = saved.load(name)
    assert query.question.endswith((".", "?"))
    assert re.findall(r"^-- param ", query.sql, re.M) == ["-- param "] * len(query.parameters)
    body = re.sub(r"--.*", "", query.sql)
    assert set(re.findall(r"\$(\w+)", body)) == {p.name for p in query.parameters}
    for p in query.parameters:
        assert p.about and (p.kind in ("text", "integer", "count", "number", "run") or "|" in p.kind)


@pytest.mark.parametrize("name", saved.names())
@pytest.mark.parametrize("dialect", ["spark", "trino", "postgres", "bigquery"])
def test_queries_travel_to_other_engines(name: str, dialect: str) -> None:
    """Nothing that sqlglot cannot carry: no functions it does not know, nothing it calls unsupported."""
    (tree,) = sqlglot.parse(saved.load(name).sql, dialect="duckdb")
    assert tree is not None
    assert [f.name for f in tree.find_all(exp.Anonymous)] == []
    assert not list(tree.find_all(exp.ArgMax, exp.ArgMin)) and "asof" not in tree.sql().lower()
    assert not any(g.args.get("all") for g in tree.find_all(exp.Group))
    assert tree.sql(dialect=dialect, unsupported_level=sqlglot.ErrorLevel.RAISE)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("curves", {}, "there is no saved query `curves`; there are changes, compare_runs"),
        ("learning_curves", {}, "`learning_curves` needs --param key=... (text): key of the history"),
        ("learning_curves", {"key": "loss", "buckets": "ten"}, "`buckets` is an integer from 1 on, got `ten`: write --param buckets=10"),
        ("learning_curves", {"key": "loss", "buckets": "0"}, "`buckets` is an integer from 1 on, got `0`"),
        ("diverged", {"key": "loss", "factor": "x"}, "parameter `factor` is a number, got `x`: write --param factor=0.5"),
        ("leaderboard", {"metric": "loss", "goal": "up"}, "parameter `goal` is max or min, got `up`: write --param goal=max"),
        ("leaderboard", {"metric": "loss", "top": "1"}, "`leaderboard` has no parameter `top`; it has `metric`, `goal`, `project`, `limit`"),
        ("storage", {"project": "p"}, "`storage` has no parameter `project`; it has none"),
        ("compare_runs", {"a": "a1", "b": "nope"}, "the mirror holds no run `nope`"),
    ],
)  # fmt: skip
def test_wrong_parameters(reader: Reader, name: str, given: dict[str, str], message: str) -> None:
    with pytest.raises(MirrorError) as caught:
        saved.run(reader, name, given)
    assert message in str(caught.value)
