"""`mirror runs`: which runs, in which order, with which columns; and one run by its path."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import asking
import pytest
from commanding import call, ok

import mirror
from mirror.errors import AmbiguousError, NotFoundError, UsageError
from mirror.paths import parse
from mirror.query.columns import listing
from mirror.query.filters import parse as parse_filter
from mirror.query.runs import Selection, find_run, rids
from mirror.records import Run
from mirror.store import Reader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(asking.fill(tmp_path_factory.mktemp("runs") / "m"))


def listed(reader: Reader, columns: str, *paths: str, **more: Any) -> list[tuple[Any, ...]]:
    filter = parse_filter(more.pop("filter")) if "filter" in more else None
    selection = Selection([parse(p) for p in paths], filter=filter, **more)
    return listing(reader, selection, columns.split(",")).fetchall()


def test_all_runs_or_those_of_paths(reader: Reader) -> None:
    assert len(listed(reader, "run_id")) == 3 + len(asking.HOSTILE) + 2
    assert listed(reader, "path", "team/digits") == [
        ("team/digits/run1",),
        ("team/digits/run2",),
        ("team/digits/run3",),
    ]
    assert len(listed(reader, "path", "team")) == len(listed(reader, "path"))
    assert listed(reader, "run_id", "team/digits/run2", "team/digits:run1") == [("run1",), ("run2",)]
    assert listed(reader, "run_id", "https://lab.example/team/shared") == [("twin",)]
    assert len(listed(reader, "run_id", "team/shared")) == 2
    assert listed(reader, "source", "team/shared", source="other.example") == [("other.example",)]


def test_filter_order_and_limit(reader: Reader) -> None:
    where = {"config.lr": {"$gt": 0.15}, "summary_metrics.val/acc": {"$lte": 0.75}}
    assert listed(reader, "run_id", "team/digits", filter=where, order="-summary_metrics.val/acc") == [
        ("run3",),
        ("run2",),
    ]
    assert listed(reader, "run_id", "team/digits", order="-created_at", limit=1) == [("run3",)]
    assert listed(reader, "run_id", "team/digits", limit=0) == []
    assert rids(reader, Selection([parse("team/digits")], order="-created_at")) == [3, 2, 1]


def test_columns(reader: Reader) -> None:
    columns = "path,name,state,duration,config.lr,config.opt.name,config.a.b,summary_metrics.loss,summary.best"
    first, _, third = listed(reader, columns, "team/digits")
    assert first == (
        "team/digits/run1", "run 1", "finished", 90.0, 0.1, "adam", 1, asking.loss(1, 49), '{"step":1}',
    )  # fmt: skip
    assert math.isnan(third[7])
    found = listing(reader, Selection([parse("team/digits")]), ["config.lr", "config.seed", "config.opt", "tags"])
    assert found.columns == ["config.lr", "config.seed", "config.opt", "tags"]
    assert found.types == ["DOUBLE", "BIGINT", "JSON", "VARCHAR[]"]
    with pytest.raises(UsageError, match="unknown column `nmae`; did you mean `name`"):
        listed(reader, "nmae")


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        ([1, 2, None], "BIGINT", [1, 2, None]),
        ([1, 2**60 + 1], "HUGEINT", [1, 2**60 + 1]),
        ([1, -(2**100)], "HUGEINT", [1, -(2**100)]),
        ([1, 10**50], "JSON", ["1", str(10**50)]),
        ([1, 0.5], "DOUBLE", [1.0, 0.5]),
        ([1.0, 2.0], "DOUBLE", [1.0, 2.0]),
        ([0.5, 2**60 + 1], "JSON", ["0.5", str(2**60 + 1)]),
        ([0.5, "NaN"], "DOUBLE", [0.5, math.nan]),
        ([1, math.inf], "DOUBLE", [1.0, math.inf]),
        ([True, False], "BOOLEAN", [True, False]),
        (["a", "1"], "VARCHAR", ["a", "1"]),
        (["a", "NaN"], "VARCHAR", ["a", "NaN"]),
        (["a", 1], "JSON", ['"a"', "1"]),
        ([True, 1], "JSON", ["true", "1"]),
        ([[1, 2.0], None], "JSON", ["[1,2.0]", "null"]),
        ([None, None], "VARCHAR", [None, None]),
    ],
)
def test_a_config_column_has_the_type_that_holds_all_its_values(
    tmp_path: Path, values: list[Any], type_: str, expected: list[Any]
) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs(
            Run(asking.key(f"r{i}"), config=asking.wire({"x": v}), summary=json.dumps({"x": v}))
            for i, v in enumerate(values)
        )
    reader = Reader(tmp_path / "m")
    for column in ("config.x", "summary_metrics.x"):
        found = listing(reader, Selection(), [column])
        assert found.types == [type_]
        rows = [row[0] for row in found]
        assert [str(v) for v in rows] == [str(v) for v in expected] and [type(v) for v in rows] == [
            type(v) for v in expected
        ]


def test_one_run_by_its_path(reader: Reader) -> None:
    for path in ("team/digits/run2", "digits/run2", "run2", "team/digits/runs/run2", "digits:run2",
                 "https://lab.example/team/digits/runs/run2"):  # fmt: skip
        assert find_run(reader, path)["rid"] == 2
    assert find_run(reader, "team/shared/twin", "lab.example")["source"] == "lab.example"
    assert find_run(reader, "https://other.example/team/shared/runs/twin")["source"] == "other.example"
    with pytest.raises(AmbiguousError) as caught:
        find_run(reader, "team/shared/twin")
    assert "`lab.example`, `other.example`" in str(caught.value)
    with pytest.raises(NotFoundError, match="did you mean `team/digits/run1`"):
        find_run(reader, "team/digit/run1")
    with pytest.raises(NotFoundError, match="did you mean `team/digits/run1`"):
        find_run(reader, "team/digits/run 1")
    with pytest.raises(UsageError, match="names no run"):
        find_run(reader, "https://lab.example/team/digits")


def test_a_short_path_that_several_projects_have(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("same", "one")), Run(asking.key("same", "two"))])
    with pytest.raises(AmbiguousError, match="`same` may be `team/one/same` or `team/two/same`: write the whole path"):
        find_run(Reader(tmp_path / "m"), "same")


def test_an_empty_mirror(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True):
        pass
    reader = Reader(tmp_path / "m")
    assert listed(reader, "path,config.x") == []
    with pytest.raises(NotFoundError, match="it is empty: `mirror sync ENTITY/PROJECT` fills it"):
        listed(reader, "path", "team/digits")


HOSTILE_KEYS = [
    "a.b", "a..b", ".", "x/y", "~0", 'q"uote', "it's", "tab\t", "new\nline", "🦄", "Loss", "loss", "", "k" * 300,
    "run_id", "path", "config", "a,b", "[red]x[/red]", "\x1b[31m", "lr.value", ".".join("abcdefghijklmnopqrstuvwxyz"),
    "'; drop view runs; --", "nul\x00", "*", "$lr",
]  # fmt: skip
"""Names that would do harm, or get lost, if they were not taken as they are."""


def test_columns_of_any_name(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        values = {name: i for i, name in enumerate(HOSTILE_KEYS)}
        m.put_runs([Run(asking.key("r"), config=asking.wire(values), summary=json.dumps(values))])
    reader = Reader(tmp_path / "m")
    for root in ("config", "summary_metrics"):
        names = [f"{root}.{name}" for name in HOSTILE_KEYS]
        found = listing(reader, Selection(), names)
        assert found.columns == names and found.fetchall() == [tuple(range(len(HOSTILE_KEYS)))]


def test_deleted_runs_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("here")), Run(asking.key("gone"))])
        m.writer.tombstone(asking.key("gone"))
    reader = Reader(tmp_path / "m")
    assert listed(reader, "run_id") == listed(reader, "run_id", "team/digits") == [("here",)]
    gone, here = listed(reader, "run_id,deleted_at", deleted=True)
    assert gone[0] == "gone" and gone[1] is not None and here == ("here", None)
    assert listed(reader, "run_id", "team/digits/gone") == [("gone",)]
    assert find_run(reader, "gone")["deleted_at"] is not None
    assert rids(reader, Selection()) == [1]


def test_filters_come_from_files_and_stdin(reader: Reader, tmp_path: Path) -> None:
    root = reader.layout.root
    filter = '{"config.lr": {"$gt": 0.25}}'
    (tmp_path / "f.json").write_text(filter)
    for given in (filter, f"@{tmp_path}/f.json", "-"):
        assert (
            ok("runs", "-c", "run_id", "--format", "csv", "--filter", given, root=root, stdin=filter)
            == "run_id\nrun3\n"
        )
    done = call("runs", "--filter", "@/no/such/file", root=root)
    assert done.code == 2 and "cannot read the filter `@/no/such/file`" in done.err


def test_names_of_columns_with_commas(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r"), config=asking.wire({"a,b": 1, 'q"': 2}))])
    for args in (
        ["--columns", 'run_id,"config.a,b","config.q"""'],
        ["-c", "run_id", "-c", "config.a,b", "-c", 'config.q"'],
    ):
        out = ok("runs", *args, "--format", "csv", root=tmp_path / "m")
        assert out == 'run_id,"config.a,b","config.q"""\nr,1,2\n'
    done = call("runs", "--columns", '"config.a', root=tmp_path / "m")
    assert done.code == 2 and "is no line of names" in done.err
