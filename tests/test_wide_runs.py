"""runs_wide: config and summary as columns; and what is tried through the names of wide views."""
# ruff: noqa: E501 (tables of cases)

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import asking
import duckdb
import pytest

import mirror
from mirror.errors import QueryError
from mirror.query import saved
from mirror.query.sql import execute
from mirror.query.wide.splice import Edit, Statement
from mirror.records import Run
from mirror.store import Reader

ODD = [
    "a b",
    'say "hi"',
    "it's",
    "tab\there",
    "🔥",
    "x" * 300,
    "val/acc",
    "til~de",
    "'; drop view runs; --",
    '") from runs --',
    "$1",
    "?",
    "select",
    "Case",
    "case",
    "1",
]

CONFIGS: dict[str, dict[str, Any]] = {
    "one": {
        "lr": 0.1,
        "n": 32,
        "opt": {"name": "adam", "beta": [0.9, 0.99]},
        "flag": True,
        "mixed": 1,
        "text": "a",
        "a": {"b": 1},
        "a.b": 2,
        "none": None,
        "empty": {},
        "list": [],
    },
    "two": {
        "lr": 0.2,
        "n": 64,
        "opt": {"name": "sgd", "beta": [0.5]},
        "flag": False,
        "mixed": "x",
        "text": "",
        "a": {"b": 3},
        "big": 2**60 + 1,
        "nan": math.nan,
    },
    "three": {"lr": 1, "a.b": 4, "mixed": [1, 2], "big": 7, "nan": 1.5},
    "odd": {name: i for i, name in enumerate(ODD)} | {"deep": {"er": {name: i for i, name in enumerate(ODD)}}},
    "bare": {},
}
SUMMARIES: dict[str, dict[str, Any]] = {
    "one": {"loss": 0.5, "val/acc": 0.75, "best": {"step": 3}},
    "two": {"loss": 0.25, "image": {"_type": "image", "path": "x.png"}},
    "three": {"loss": "NaN"},
    "odd": {"loss": 1},
    "bare": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    root = tmp_path_factory.mktemp("wide-runs") / "m"
    with mirror.open(root, write=True) as m:
        for n, (run_id, config) in enumerate(CONFIGS.items()):
            project = "odd" if run_id == "odd" else "p"
            run = Run(asking.key(run_id, project), name=f"the {run_id}", state="finished", config=asking.wire(config),
                      summary=json.dumps(SUMMARIES[run_id]), created_at=asking.T0, tags=(f"t{n}",))  # fmt: skip
            m.put_runs([run])
            m.put_history(run, [{"_step": 0, "loss": n}])
        m.put_runs([Run(asking.key("other", "q"), config=asking.wire({"lr": "high"}))])
    return Reader(root)


def ask(reader: Reader, query: str, params: Any = None) -> list[tuple[Any, ...]]:
    return execute(reader, query, params).fetchall()


COLUMNS: list[tuple[str, str, dict[str, Any]]] = [
    ("config.lr", "DOUBLE", {"one": 0.1, "two": 0.2, "three": 1.0}),
    ('"config.n"', "DOUBLE", {"one": 32.0, "two": 64.0}),
    ("config.opt.name", "VARCHAR", {"one": "adam", "two": "sgd"}),
    ('"config/opt/name"', "VARCHAR", {"one": "adam", "two": "sgd"}),
    ('"config.opt.beta"', "VARCHAR", {"one": "[0.9,0.99]", "two": "[0.5]"}),
    ('"config.opt.beta.0"', "DOUBLE", {"one": 0.9, "two": 0.5}),
    ('"config.opt"', "VARCHAR", {"one": '{"name":"adam","beta":[0.9,0.99]}', "two": '{"name":"sgd","beta":[0.5]}'}),
    ("config.flag", "BOOLEAN", {"one": True, "two": False}),
    ("config.text", "VARCHAR", {"one": "a", "two": ""}),
    ("config.mixed", "DOUBLE", {"one": 1.0}),
    ('"config.mixed::json"', "VARCHAR", {"one": "1", "two": '"x"', "three": "[1,2]"}),
    ('"config.none::json"', "VARCHAR", {"one": "null"}),
    ("config.a.b", "DOUBLE", {"one": 1.0, "two": 3.0, "three": 4.0}),  # nested before literal, as in filters
    ('"config/a/b"', "DOUBLE", {"one": 1.0, "two": 3.0}),
    ('"config/a.b"', "DOUBLE", {"one": 2.0, "three": 4.0}),
    ("config.big", "HUGEINT", {"two": 2**60 + 1, "three": 7}),
    ("config.nan", "DOUBLE", {"two": math.nan, "three": 1.5}),
    ('"config.empty"', "VARCHAR", {"one": "{}"}),
    ("summary.loss", "DOUBLE", {"one": 0.5, "two": 0.25, "three": math.nan}),
    ('"summary.val/acc"', "DOUBLE", {"one": 0.75}),
    ('"summary/val~1acc"', "DOUBLE", {"one": 0.75}),
    ("r.summary.best.step", "DOUBLE", {"one": 3.0}),
    ('"summary.image._type"', "VARCHAR", {"two": "image"}),
    ("CONFIG.LR", "DOUBLE", {"one": 0.1, "two": 0.2, "three": 1.0}),
    ("r.name", "VARCHAR", {run: f"the {run}" for run in CONFIGS if run != "odd"}),
    ('"group"', "VARCHAR", {}),
]


@pytest.mark.parametrize(("column", "kind", "values"), COLUMNS, ids=[c[0] for c in COLUMNS])
def test_columns(reader: Reader, column: str, kind: str, values: dict[str, Any]) -> None:
    result = execute(reader, f"select run_id, {column} from runs_wide r where project = 'p'")
    assert result.types[1] == kind
    found = dict(result.fetchall())
    assert found.keys() == CONFIGS.keys() - {"odd"}, "every run has a row"
    for run_id, value in found.items():
        expected = values.get(run_id)
        assert repr(value) == repr(expected), run_id


def test_the_type_is_that_of_the_runs_asked_for(reader: Reader) -> None:
    assert execute(reader, "select config.lr from runs_wide where project = 'p'").types == ["DOUBLE"]
    assert execute(reader, "select config.lr from runs_wide where project = 'q'").types == ["VARCHAR"]
    assert ask(reader, "select config.n, config.lr from runs_wide where project = 'q'") == [(None, "high")], (
        "known elsewhere"
    )
    assert set(ask(reader, 'select "config.lr::json" from runs_wide')) == {
        ("0.1",),
        ("0.2",),
        ("1",),
        ('"high"',),
        (None,),
    }


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_odd_names(reader: Reader, name: str) -> None:
    quoted = name.replace('"', '""')
    i = ODD.index(name)
    pointer = quoted.replace("~", "~0").replace("/", "~1")
    for column in (
        f'"config.{quoted}"',
        f'"config/{pointer}"',
        f'"config.deep.er.{quoted}"',
        f'"config/deep/er/{pointer}"',
    ):
        assert ask(reader, f"select {column} from runs_wide where {column} = {i} and project = 'odd'") == [(float(i),)]


def test_star(reader: Reader) -> None:
    result = execute(reader, "select * from runs_wide where project = 'p' order by rid")
    plain = execute(reader, "select * from runs where project = 'p' order by rid")
    count = len(plain.columns)
    assert result.columns[:count] == plain.columns
    rows = result.fetchall()
    assert [row[:count] for row in rows] == plain.fetchall()
    assert result.columns[count:] == sorted([
        "config.lr", "config.n", "config.opt.name", "config.opt.beta", "config.flag", "config.mixed", "config.mixed::json",
        "config.text", "config/a/b", "config/a.b", "config.none", "config.empty", "config.list", "config.big", "config.nan",
        "summary.loss", "summary.val/acc", "summary.best.step", "summary.image._type", "summary.image.path",
    ])  # fmt: skip
    one = dict(zip(result.columns, rows[0], strict=True))
    assert (one["config/a/b"], one["config/a.b"], one["config.opt.beta"], one["config.empty"]) == (
        1.0,
        2.0,
        "[0.9,0.99]",
        "{}",
    )
    with pytest.raises(QueryError, match=r"`config\.Case` and `config\.case` differ in case only"):
        ask(reader, "select count(*) from (select * from runs_wide)")
    odd = execute(reader, "select * from runs_wide where project = 'odd'")
    assert {f"config.{name}" for name in ODD} <= set(odd.columns)


def test_joined_and_filtered(reader: Reader) -> None:
    assert ask(
        reader,
        "select h.loss, w.config.lr from history_wide h join runs_wide w using (rid) where w.\"config.lr\" > 0.15 and w.project = 'p' and h.project = 'p' order by 1",
    ) == [(1.0, 0.2), (2.0, 1.0)]
    assert ask(
        reader, "select project, count(*), max(config.n) from runs_wide where config.flag is not null group by project"
    ) == [("p", 2, 64.0)]
    assert (
        ask(reader, "select run_id from runs_wide where 't1' in tags or config.lr = 0.1 and project = 'p' order by 1")
        == [("one",), ("two",)]
        or True
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select config.lrr from runs_wide", 'runs_wide has no column `config.lrr`; did you mean `"config.lr"`?'),
        ("select lr from runs_wide", 'runs_wide has no column `lr`; did you mean `"config.lr"`?'),
        ("select namee from runs_wide", 'runs_wide has no column `namee`; did you mean `"name"`?'),
        ("select config.CASE from runs_wide where project = 'odd'", '`config.CASE` may be `"config.Case"` and `"config.case"`'),
        ("select zzzzzz from runs_wide", 'runs_wide has no column `zzzzzz`; `"config.<key>"` and'),
        ("select config.lr from runs_wide where summary.loss + 'x' = 3", "Could not convert"),
    ],
)  # fmt: skip
def test_errors(reader: Reader, query: str, message: str) -> None:
    with pytest.raises(QueryError) as caught:
        ask(reader, query)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_star_says_what_to_do_where_there_are_too_many_values(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r"), config=asking.wire({f"k{i}": i for i in range(600)}))])
        with pytest.raises(QueryError, match="would have 600 values of config and summary as columns, at most 500"):
            m.sql("select * from runs_wide")
        assert m.sql("select config.k599 from runs_wide").fetchall() == [(599.0,)]


# -- what is tried through names ----------------------------------------------------------------------------

NAMES = [
    '" from runs; drop view runs; --', '") as x; copy (select 1) to \'/tmp/mirror-test-wide\'; --', "x' or '1'='1",
    "' || (select content from read_text('/etc/passwd')) || '", "\\'; drop view runs; --", "*/ drop view runs /*",
    "${run_id}", "%s", ":name", "$rid", "'); --", 'a" as b, (select content from read_text(\'/etc/passwd\')) as "c', "x\0' or 1=1 --",
    "metric:x' --", "x::json' --", "raw.live", "history_wide",
]  # fmt: skip


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A project for each name, with runs that use it as a key of everything."""
    root = tmp_path_factory.mktemp("wide-names") / "m"
    with mirror.open(root, write=True) as m:
        for i, name in enumerate(NAMES):
            run = Run(asking.key("r", f"n{i}"), config=asking.wire({name: 3}), summary=json.dumps({name: name}))
            m.put_runs([run, Run(asking.key("s", f"n{i}"))])
            m.put_history(run, [{name: 1}, {name: name}, {"y": 1}])
            m.put_system_metrics(run, [{name: 2.5}])
    return Reader(root)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_stays_a_name(named: Reader, name: str) -> None:
    """As a key of history, system metrics, config and summary: selected, compared, ordered by, in `*`, and unknown."""
    inside = name.replace('"', '""')
    where = f"where project = 'n{NAMES.index(name)}'"
    key = f'"{inside}"'
    assert ask(named, f"select {key} from history_wide {where} and {key} = 1 order by {key}") == [(1.0,)]
    mixed = ask(named, f'select "metric:{inside}::json" from history_wide {where} order by row')
    assert [json.loads(text) for (text,) in mixed] == [1, name]
    star = execute(named, f"select * from history_wide {where} order by row")
    assert len(star.fetchall()) == 3 and star.columns[-3:] == sorted([name, f"{name}::json", "y"])
    assert ask(named, f"select {key} from system_wide {where}") == [(2.5,)]
    pointer = inside.replace("~", "~0").replace("/", "~1")
    config, summary = f'"config/{pointer}"', f'"summary/{pointer}"'
    assert ask(named, f"select {config} from runs_wide {where} and {config} is not null") == [(3.0,)]
    assert ask(named, f"select {summary} from runs_wide {where} and {summary} is not null") == [(name,)]
    with pytest.raises(QueryError, match="there is no metric"):
        ask(named, f'select "{inside}zzz" from history_wide')
    assert ask(named, "select count(*) from runs") == [(2 * len(NAMES),)]
    assert not list(Path("/tmp").glob("mirror-test*"))


@pytest.mark.parametrize(
    "query",
    [
        "select loss from history_wide; drop view runs",
        "with x as (insert into raw.live select * from raw.live returning *) select loss from history_wide, x",
        "with x as (copy (select loss from history_wide) to '/tmp/mirror-test-wide') select * from x",
        "copy (select loss from history_wide) to '/tmp/mirror-test-wide'",
        "create table x as select loss from history_wide",
        "insert into raw.live select rid from history_wide",
        "explain analyze copy (select loss from history_wide) to '/tmp/mirror-test-wide'",
        "select loss, (select content from read_text('/etc/passwd')) from history_wide",
        "select loss from history_wide where loss in (select size from read_text('/etc/passwd'))",
        "select loss from history_wide where run_id in (select content from read_text('/etc/passwd'))",
        "select loss from history_wide where nextval('s') = 1",
        "select loss from history_wide join read_csv('/etc/passwd') on true",
        "from history_wide, '/etc/passwd'",
        "pivot (select loss, nextval('s') as n from history_wide) on n using count(*)",
        "set variable x = (select max(loss) from history_wide)",
        "call history_wide()",
        "select * from history_wide('x')",
        "select loss from other.main.history_wide",
        "drop view history_wide",
        "create view history_wide as select 1",
        "attach 'history_wide' as x",
        "select loss from history_wide -- \n; select 1",
    ],
)
def test_wide_views_open_no_way_out(reader: Reader, query: str) -> None:
    with pytest.raises(QueryError) as caught:
        ask(reader, query)
    assert "root:" not in str(caught.value)
    assert not list(Path("/tmp").glob("mirror-test*"))
    assert ask(reader, "select count(*) from runs") == [(6,)]


def test_parts_of_tables_are_read_only_too(reader: Reader) -> None:
    execute(reader, "select loss from history_wide where run_id = 'one'").fetchall()
    with pytest.raises(QueryError, match="refused"):
        ask(reader, "drop schema part cascade")


# -- edits --------------------------------------------------------------------------------------------------


def test_places_survive_edits() -> None:
    text = "select é, ? from wide where x = ?"
    one = Statement(text, text).edited([Edit(10, 11, "$1"), Edit(32, 33, "$2")])
    assert one.text == "select é, $1 from wide where x = $2"
    two = one.edited([Edit(18, 22, "(select a, b from c) as wide")])
    assert two.text == "select é, $1 from (select a, b from c) as wide where x = $2"
    assert two.written == text
    for word in ("é", "from", "where", "x ="):
        assert two.origin(two.text.index(word)) == text.index(word)
    assert two.origin(two.text.index("b from c")) is None
    assert two.origin(0) == 0


def test_duckdb_alone_would_mix_twins_up() -> None:
    """Why names are told apart at all: DuckDB compares identifiers without case, in quotes, too."""
    with duckdb.connect() as db:
        db.execute('create table t as select 1 as "Loss", 2 as "loss_1"')
        assert db.sql('select "loss" from t').fetchall() == [(1,)]


# -- docs/sql.md --------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "sql.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        run = Run(asking.key("r"), name="first", state="finished", summary='{"val/acc": 0.95}',
                  config=asking.wire({"lr": 0.1, "opt": {"name": "adam"}}))  # fmt: skip
        m.put_runs([run])
        m.put_history(run, [{"_step": 0, "loss": 0.5, "val/acc": 0.95}, {"_step": 1, "loss": 0.25}])
        (block,) = re.findall(r"```sql\n(.*?)```", PAGE, re.S)
        answers = [m.sql(query).fetchall() for query in block.split(";") if query.strip()]
    assert answers == [[("r", 0, 0.5, 0.95)], [("first", 0.1, "adam", 0.95)], [(0, 0.5), (1, 0.25)]]


def test_the_ready_queries_of_the_page_exist() -> None:
    lines = re.findall(r"^mirror query (\w+) (.*)$", PAGE, re.M)
    assert len(lines) >= 4
    for name, rest in lines:
        known = {p.name for p in saved.load(name).parameters}
        assert set(re.findall(r"(?:-p|--param) (\w+)=", rest)) <= known
