"""`mirror diff`: what differs between runs, exactly."""

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
from mirror.query.diff import compared, short_names
from mirror.query.leaves import leaves, same, shown
from mirror.query.runs import find_run
from mirror.records import Run
from mirror.store import Reader
from mirror.store.jsontext import Number


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diff") / "m"
    metadata = {"program": "train.py", "args": ["--lr", "0.1", "--name", "it's"], "git": {"commit": "abc"}}
    with mirror.open(root, write=True) as m:
        one = {"lr": 0.1, "n": 1, "big": 2**53, "flag": True, "opt": {"name": "adam", "b": [1, 2]}, "none": None,
               "empty": "", "deep": {"a": {"b": {"c": 1}}}, "a.b": 5, "a": {"b": 6}, "only": {}}  # fmt: skip
        other = {"lr": 0.1, "n": 1.0, "big": 2**53 + 1, "flag": 1, "opt": {"name": "sgd", "b": [1, 2.0]},
                 "empty": "1", "deep": {"a": {"b": {"c": 2}}}, "a.b": 5, "a": {"b": 7}}  # fmt: skip
        m.put_runs(
            [
                Run(asking.key("one"), name="same", config=asking.wire(one), summary='{"loss": NaN, "acc": 0.5}',
                    metadata=json.dumps(metadata)),
                Run(asking.key("other"), name="same", config=asking.wire(other), summary='{"loss": NaN, "acc": 0.25}',
                    metadata=json.dumps(metadata | {"args": ["--lr", "0.2"], "git": {"commit": "def"}}), host="gpu1"),
                Run(asking.key("bare")),
                Run(asking.key("one", "elsewhere"), config=asking.wire(one)),
                Run(asking.key("hostile1"), config=asking.wire(dict.fromkeys(HOSTILE_KEYS, 1))),
                Run(asking.key("hostile2"), config=asking.wire(dict.fromkeys(HOSTILE_KEYS, 2))),
            ]
        )  # fmt: skip
    return root


def differing(root: Path, *args: str) -> dict[str, dict[str, Any]]:
    found = json.loads(ok("diff", *args, "--format", "json", root=root))
    return {line.pop("key"): line for line in found}


def test_keys_that_differ(root: Path) -> None:
    found = differing(root, "digits/one", "digits/other")
    assert {key: (line["one"], line["other"]) for key, line in found.items()} == {
        "host": (None, "gpu1"),
        "commit": ("abc", "def"),
        "command": ("python train.py --lr 0.1 --name 'it'\"'\"'s'", "python train.py --lr 0.2"),
        "config.big": (2**53, 2**53 + 1),
        "config.flag": (True, 1),
        "config.opt.name": ("adam", "sgd"),
        "config.none": (None, None),
        "config.empty": ("", "1"),
        "config.deep.a.b.c": (1, 2),
        "config.a.b": (6, 7),
        "config.only": ({}, None),
        "summary.acc": (0.5, 0.25),
    }
    # A null and nothing are told apart.
    assert found["config.none"]["missing"] == ["other"] and found["config.opt.name"]["missing"] == []


def test_all_keys_and_parts(root: Path) -> None:
    found = differing(root, "digits/one", "digits/other", "--all", "--what", "config")
    assert found["config.lr"] == {"differs": False, "one": 0.1, "other": 0.1, "missing": []}
    assert found["config.n"]["differs"] is False and found["config.opt.b"]["differs"] is False
    assert all(key.startswith("config.") for key in found)
    literal_and_nested = ok(
        "diff", "digits/one", "digits/other", "--all", "--what", "config", "--format", "tsv", root=root
    )
    assert literal_and_nested.count("\nconfig.a.b\t") == 2
    assert (
        differing(root, "digits/one", "digits/other", "--what", "summary", "--all")["summary.loss"]["differs"] is False
    )


def test_a_table_for_people(root: Path) -> None:
    out = ok("diff", "digits/one", "digits/other", "bare", "--what", "config", root=root)
    head, _, *lines = out.splitlines()
    assert head.split() == ["key", "one", "other", "bare"]
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert cells["config.lr"] == ["0.1", "0.1"] and cells["config.none"] == ["null"]
    assert cells["config.empty"] == ['""', '"1"']  # a number and a string that looks like one are told apart
    assert cells["config.opt.name"] == ["adam", "sgd"]


def test_exit_codes(root: Path) -> None:
    assert call("diff", "digits/one", "digits/other", root=root).code == 0
    assert call("diff", "digits/one", "digits/other", "--exit-code", root=root).code == 1
    done = call("diff", "one", "one", "--exit-code", root=root)
    assert (done.code, done.out) == (1, "") and "may be `team/digits/one`" in done.err
    done = call("diff", "digits/one", "digits/one", "--exit-code", root=root)
    assert (done.code, done.out) == (0, "") and "do not differ" in done.err
    done = call("diff", "digits/one", root=root)
    assert done.code == 2 and "at least two runs" in done.err
    done = call("diff", "digits/one", "digits/on", root=root)
    assert done.code == 1 and "`digits/on`" in done.err


def test_headings_tell_runs_apart(root: Path) -> None:
    reader = Reader(root)
    rows = [find_run(reader, path) for path in ("digits/one", "elsewhere/one")]
    assert short_names(rows) == ["team/digits/one", "team/elsewhere/one"]
    assert short_names([rows[0], find_run(reader, "other")]) == ["one", "other"]


def test_hostile_keys(root: Path) -> None:
    reader = Reader(root)
    rids = [find_run(reader, path)["rid"] for path in ("hostile1", "hostile2")]
    lines = compared(reader, rids, ["config"])
    assert [line.key for line in lines] == [f"config.{key}" for key in HOSTILE_KEYS]
    assert all(line.values == {0: 1, 1: 2} and line.differs for line in lines)
    out = ok("diff", "hostile1", "hostile2", root=root)
    assert all(c.isprintable() or c == "\n" for c in out)
    for format in ("csv", "parquet"):
        ok("diff", "hostile1", "hostile2", "-o", root.parent / f"x.{format}", root=root)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1.0, True), (1, True, False), (0, False, False), (2**53 + 1, float(2**53), False), (0.1, 0.1, True),
        (math.nan, math.nan, True), (math.inf, -math.inf, False), ("1", 1, False), (None, None, True),
        (None, "", False), ([1, 2], [1.0, 2], True), ([1, 2], [2, 1], False), ({"a": 1}, {"a": 1.0}, True),
        (Number("1e400"), Number("1e400"), True), (Number("1e400"), math.inf, False),
        (10**30, Number("1" + "0" * 30), True),
        (0.1, Number("0.1000000000000000055511151231257827"), False),
    ],
)  # fmt: skip
def test_equality(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) is same(other, one) is equal


def test_leaves() -> None:
    media = {"_type": "image-file", "path": "x.png"}
    document = {"a": {"b": 1, "c": {}}, "l": [{"x": 1}], "m": media, "a.b": 2}
    assert list(leaves(document).items()) == [
        (("a", "b"), 1), (("a", "c"), {}), (("l",), [{"x": 1}]), (("m",), media), (("a.b",), 2),
    ]  # fmt: skip
    deep: Any = 1
    for _ in range(5000):
        deep = {"k": deep}
    assert leaves(deep) == {("k",) * 5000: 1}


@pytest.mark.parametrize(
    ("value", "text"),
    [("a b", "a b"), ("1", '"1"'), ("null", '"null"'), ("", '""'), (" x", '" x"'), (None, "null"), (math.nan, "NaN"),
     (True, "true"), (1.0, "1.0"), ([1, "a"], '[1,"a"]'), ("[1]", '"[1]"'), ("[1", "[1")],
)  # fmt: skip
def test_values_for_people(value: Any, text: str) -> None:
    assert shown(value) == text
