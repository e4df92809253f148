"""history_wide and system_wide: every answer is computed a second time, in Python, from the rows that were put in."""
# ruff: noqa: E501 (tables of cases)

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import asking
import duckdb
import pyarrow.parquet as pq
import pytest

import mirror
from mirror.errors import NotFoundError, QueryError, UsageError
from mirror.query.sql import execute
from mirror.records import Run
from mirror.store import Reader

Rows = list[dict[str, Any]]

HOSTILE = [
    "Loss", "loss", "val/acc", "train.loss", 'say "hi"', "it's", "tab\there", "two\nlines", "🔥", "é", "É", "x" * 300,
    "step", "_step2", "row", "project", "Project", "rid", "ts", "source", "k0", "v", "select", "a b", "metric:loss",
    "1", "--", "'; drop view runs; --", '") from runs --', "$1", "?", "nul\0byte", "loss (2)", "history_wide", "*",
]  # fmt: skip

KINDS: dict[str, list[Any]] = {
    "number": [0.5, 1, -2.25], "nan": [1.5, math.nan, -math.inf, math.inf], "flag": [True, False, True],
    "text": ["a", "", 'q"\n'], "null": [None, None, None], "list": [[1, 2], [], ["x"]], "media": [{"_type": "image", "n": 1}] * 3,
    "whole": [1, 2, 3], "beyond": [2**53 + 1, 5, -(2**70) - 1], "float beyond": [2**60 + 1, 0.5, 1],
    "mixed": [1.5, "two", True], "half null": [None, 2.5, None], "text and list": ["a", [1], {"_type": "x"}],
    "bool and text": [True, "no", False],
}  # fmt: skip


def logged() -> dict[tuple[str, str], Rows]:
    """Rows by project and run: dense, sparse, repeated and missing steps, keys that some runs lack."""
    chance = random.Random(7)
    found: dict[tuple[str, str], Rows] = {}
    for n in range(6):
        rows: Rows = []
        for s in range(40):
            row: dict[str, Any] = {
                "_step": s if n != 2 else s % 7,
                "_timestamp": 1.7e9 + n * 100 + s,
                "loss": n + 1 / (s + 1),
            }
            if s % 5 == n % 5:
                row["acc"] = chance.random()
            if n != 3 and chance.random() < 0.3:
                row["rare"] = chance.choice([1, 2.5, None])
            if n == 4 and s % 2:
                del row["loss"]
            rows.append(row)
        found["p" if n < 4 else "q", f"run{n}"] = rows
    found["p", "stepless"] = [{"loss": 1.0}, {}, {"acc": 0.25}]
    found["p", "empty"] = []
    found["hostile", "odd"] = [
        {"_step": 0} | {k: float(i) for i, k in enumerate(HOSTILE)},
        {"_step": 1, "": 5, "loss": -1},
    ]
    found["kinds", "all"] = [{key: values[i] for key, values in KINDS.items() if i < len(values)} for i in range(4)]
    found["paths", "nested"] = [{"a": {"b": 1}}, {"a.b": 2}, {"a": {"b": 3}, "a.b": 4}]
    found["paths", "literal"] = [{"a.b": 5}]
    return found


ROWS = logged()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wide") / "m"
    with mirror.open(root, write=True) as m:
        for n, ((project, run_id), rows) in enumerate(ROWS.items()):
            run = Run(asking.key(run_id, project), name=f"the {run_id}", state="finished" if n % 2 else "crashed",
                      config=asking.wire({"lr": n / 10}))  # fmt: skip
            m.put_runs([run])
            m.put_history(run, rows)
            m.put_system_metrics(run, [{"_timestamp": 5 + i, "system.cpu": i / 2, "gpu": i} for i in range(n)])
    return root


@pytest.fixture(scope="module")
def reader(root: Path) -> Reader:
    return Reader(root)


def ask(reader: Reader, query: str, params: Any = None) -> list[tuple[Any, ...]]:
    return execute(reader, query, params).fetchall()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def equal(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    def order(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return sorted(rows, key=lambda row: [repr(float(v)) if isinstance(v, (int, float)) else repr(v) for v in row])

    assert len(found) == len(expected)
    for one, other in zip(order(found), order(expected), strict=True):
        assert all(map(same, one, other)), (one, other)


def number(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def wide(keys: list[str], projects: tuple[str, ...] = ("p", "q")) -> list[tuple[Any, ...]]:
    """(project, run, _step, row, value of each key) of every row that logged one of the keys."""
    return [
        (project, run_id, row.get("_step"), i, *(number(row.get(key)) for key in keys))
        for (project, run_id), rows in ROWS.items()
        if project in projects
        for i, row in enumerate(rows)
        if any(key in row for key in keys)
    ]


# -- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys", [["loss"], ["acc"], ["loss", "acc"], ["acc", "rare"], ["rare", "loss", "acc", "_timestamp"]]
)
def test_rows_are_those_that_logged_one_of_the_keys(reader: Reader, keys: list[str]) -> None:
    found = ask(
        reader, f"select project, run_id, _step, row, {', '.join(keys)} from history_wide where project in ('p', 'q')"
    )
    equal(found, wide(keys))


def test_a_query_without_keys_sees_every_row(reader: Reader) -> None:
    expected = {(p, r): len(rows) for (p, r), rows in ROWS.items() if rows}
    found = ask(reader, "select project, run_id, count(*) from history_wide group by all")
    assert {(p, r): n for p, r, n in found} == expected
    assert ask(reader, "select count(*) from history_wide where project = 'q'") == [(80,)], "found by _step alone"
    assert ask(reader, "select step, _step, row, ts from history_wide where run_id = 'run2' order by row")[8][:3] == (
        1,
        1,
        8,
    )


PREDICATES: list[tuple[str, Any]] = [
    ("acc > 0.5", lambda r: r["acc"] is not None and r["acc"] > 0.5),
    ('0.5 > acc and "loss" < 3', lambda r: r["acc"] is not None and r["acc"] < 0.5 and r["loss"] is not None and r["loss"] < 3),
    ("acc is null", lambda r: r["acc"] is None),
    ("acc is not null", lambda r: r["acc"] is not None),
    ("acc > 0.5 or rare > 1", lambda r: (r["acc"] or 0) > 0.5 or (r["rare"] or 0) > 1),
    ("acc + rare > 1", lambda r: None not in (r["acc"], r["rare"]) and r["acc"] + r["rare"] > 1),
    ("coalesce(acc, 1) = 1", lambda r: r["acc"] is None or r["acc"] == 1),
    ("not (acc > 0.5)", lambda r: r["acc"] is not None and not r["acc"] > 0.5),
    ("acc between 0.2 and 0.6", lambda r: r["acc"] is not None and 0.2 <= r["acc"] <= 0.6),
    ("rare in (1, 2.5)", lambda r: r["rare"] in (1, 2.5)),
    ("rare not in (select 7 where false)", lambda r: True),
    ("rare in (select 1)", lambda r: r["rare"] == 1),
    ("_step >= 10 and _step < 12", lambda r: r["step"] is not None and 10 <= r["step"] < 12),
    ("row = 1 or _step = 5", lambda r: r["row"] == 1 or r["step"] == 5),
    ("_step is null", lambda r: r["step"] is None),
    ("run_id = 'run2'", lambda r: r["run"] == "run2"),
    ("run_id like 'run%' and project <> 'p'", lambda r: r["run"].startswith("run") and r["project"] != "p"),
    ("project = 'p' and acc > 0.3 and _step > 3", lambda r: r["project"] == "p" and (r["acc"] or 0) > 0.3 and (r["step"] or 0) > 3),
    ("project = 'p' or acc > 0.9", lambda r: r["project"] == "p" or (r["acc"] or 0) > 0.9),
    ("run_id in (select run_id from runs where state = 'finished')", lambda r: r["finished"]),
    ("rid in (select c.rid from config c where c.path = '/lr' and c.num >= 0.2)", lambda r: r["lr"] >= 0.2),
    ("rid in (select rid from runs_wide where config.lr >= 0.2)", lambda r: r["lr"] >= 0.2),
    ("rid in (select w.rid from runs_wide w where w.\"config.lr\" >= 0.2 and state = 'crashed')",
     lambda r: r["lr"] >= 0.2 and not r["finished"]),
    ("exists (select 1 from runs r where r.rid = h.rid and r.name = 'the run1')", lambda r: r["run"] == "run1"),
    ("ts < timestamptz '2023-11-14 22:13:25Z'", lambda r: r["time"] is not None and r["time"] < 1.7e9 + 5),
    ("random() < 2 and acc > 0.5", lambda r: r["acc"] is not None and r["acc"] > 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("predicate", "holds"), PREDICATES, ids=[p for p, _ in PREDICATES])
def test_predicates(reader: Reader, predicate: str, holds: Any) -> None:
    """Whatever is applied early, the answer is that of a filter on the wide rows."""
    numbers = {run_id: n for n, (_, run_id) in enumerate(ROWS)}
    mentions = [k for k in ("loss", "acc", "rare") if k in predicate or k == "loss"]
    expected = []
    for project, run_id, step, row, *_ in wide(mentions, tuple({p for p, _ in ROWS})):
        values = ROWS[project, run_id][row]
        n = numbers[run_id]
        r = {k: values.get(k) for k in ("loss", "acc", "rare")} | {
            "step": step, "row": row, "run": run_id, "project": project, "finished": bool(n % 2), "lr": n / 10,
            "time": values.get("_timestamp"),
        }  # fmt: skip
        if holds(r):
            expected.append((run_id, row, number(values.get("loss"))))
    equal(ask(reader, f'select run_id, row, "loss" from history_wide h where {predicate}'), expected)


JOINS = [
    "from runs r left join history_wide h on h.rid = r.rid and h.acc > 0.9 where r.project in ('p', 'q')",
    "from runs r left join history_wide h using (rid) where h.acc is null and r.project in ('p', 'q')",
    "from history_wide h right join runs r on r.rid = h.rid and h._step = 1 where r.project in ('p', 'q')",
    "from history_wide h full join runs r on r.rid = h.rid where r.project in ('p', 'q') and (h._step = 1 or h._step is null)",
    "from history_wide h join runs r using (rid) where h.acc > 0.5 and r.project = 'p'",
    "from runs r, history_wide h where r.rid = h.rid and r.project = 'q' and h.acc is not null",
    "from runs r anti join history_wide h on h.rid = r.rid and h.acc > 0.9 where r.project in ('p', 'q')",
    "from runs r semi join history_wide h on h.rid = r.rid and h.acc > 0.9",
]


@pytest.mark.parametrize("tail", JOINS)
def test_joins(reader: Reader, tail: str) -> None:
    """Beside the same query over a wide table that Python made."""
    known = {(p, r): rid for p, r, rid in ask(reader, "select project, run_id, rid from runs")}
    with duckdb.connect() as db:
        db.execute("create table runs (rid bigint, project varchar, run_id varchar)")
        db.executemany("insert into runs values (?, ?, ?)", [(rid, p, r) for (p, r), rid in known.items()])
        db.execute("create table h (rid bigint, _step bigint, row bigint, acc double)")
        rows = wide(["acc"], tuple({p for p, _ in ROWS}))
        if "h.acc" not in tail:
            rows = [(p, r, row.get("_step"), i, None) for (p, r), found in ROWS.items() for i, row in enumerate(found)]
        db.executemany("insert into h values (?, ?, ?, ?)", [(known[p, r], s, i, v) for p, r, s, i, v in rows])
        what = "r.run_id" if " join" in tail and ("anti" in tail or "semi" in tail) else "r.run_id, h.row"
        equal(
            ask(reader, f"select {what} {tail}"),
            db.sql(f"select {what} {tail.replace('history_wide h', 'h')}").fetchall(),
        )


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("with w as (select run_id, row, loss from history_wide where project = 'p') select count(*), count(loss) from w", 161),
        ("select count(*) from (select loss from history_wide where project = 'p')", 161),
        ("select count(*) from (select * from history_wide where project = 'q')", 80),
        ("select count(main.history_wide.loss) from main.history_wide where project = 'p'", 161),
        ('select count("loss") from "history_wide" where project = \'p\'', 161),
        ("select count(*) from history_wide a join history_wide b using (rid, row) where a.project = 'p' and a.loss = b.\"loss\"", 161),
        ("select count(*) from (select project, \"loss\" from history_wide union all select project, acc from history_wide) where project = 'p'", None),
        ("select max(loss) as loss from history_wide where project = 'q' group by run_id order by loss limit 1", None),
        ("select count(*) filter (where loss > 1) from history_wide where project = 'p'", None),
        ("select sum(loss) over (partition by run_id order by row) from history_wide where project = 'p' limit 1", None),
        ("select list_transform([1], lambda acc: acc + 1), count(loss) from history_wide where project = 'p' group by all", None),
        ('select (select max("loss") from history_wide h where h.rid = r.rid) from runs r where run_id = \'run1\'', 2.0),
        ("select count(*) from runs r where exists (select 1 from history_wide h where h.rid = r.rid and acc > 2)", 0),
        ("with history_wide as (select 3 as nothing) select nothing from history_wide", 3),
        ("select loss from history_wide where run_id = 'run1' qualify row_number() over (order by row desc) = 1", 1.025),
        ("select count(\"loss\"), project from history_wide group by project having project = 'p'", 161),
        ("from history_wide select count(loss) where project = 'p'", 161),
        ("select 'history_wide'", "history_wide"),
        ("select count(*) from (pivot (select run_id, loss from history_wide where project = 'q') on run_id using max(loss))", 1),
        ("select count(*) from (describe history_wide)", None),
        ("select name from (select name, \"loss\" from history_wide join runs using (rid)) limit 1", None),
        ("select count(loss) from history_wide, (values (1), (2)) t(x) where project = 'p' and x = 1", 161),
        ("select u from history_wide, unnest([loss]) t(u) where run_id = 'run1' and row = 0", 2.0),
        ("/* history_wide */ select count(loss) -- from history_wide\n from history_wide where project = 'p'", 161),
        ("select '😀🔥', count(loss) from history_wide where project = 'p'", "😀🔥"),
    ],
)  # fmt: skip
def test_shapes_of_queries(reader: Reader, query: str, expected: Any) -> None:
    row = ask(reader, query)[0]
    assert expected is None or row[0] == expected


def test_parameters_keep_their_meaning(reader: Reader) -> None:
    query = "select count(*) from history_wide where project = {} and acc > {} and run_id like {}"
    n = sum(1 for p, r, *_, v in wide(["acc"]) if p == "p" and v > 0.5 and r.startswith("run"))
    assert n > 0
    assert ask(reader, query.format("?", "?", "?"), ["p", 0.5, "run%"]) == [(n,)]
    assert ask(reader, query.format("$3", "$1", "$2"), [0.5, "run%", "p"]) == [(n,)]
    assert ask(reader, query.format("$p", "$a", "$like"), {"p": "p", "a": 0.5, "like": "run%"}) == [(n,)]
    assert ask(reader, query.format("?", "?", "?"), ["p' or 1=1 --", 0.5, "run%"]) == [(0,)]
    with pytest.raises(QueryError, match="parameters"):
        ask(reader, query.format("$p", "0", "'%'"))


def test_samples_are_taken_before_conditions(reader: Reader) -> None:
    text = execute(reader, "select acc from history_wide where acc > 0.5 using sample 10 rows").sql
    assert (
        text.count("0.5") == 1 and execute(reader, "select acc from history_wide where acc > 0.5").sql.count("0.5") == 2
    )


def test_plain_queries_stay_as_they_are(reader: Reader) -> None:
    query = "select  count(*) -- as written\nfrom history"
    assert execute(reader, query).sql == query
    assert execute(reader, "select 'runs_wide'").sql == "select 'runs_wide'"


# -- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", HOSTILE, ids=ascii)
def test_hostile_keys(reader: Reader, key: str) -> None:
    name = '"metric:' + key.replace('"', '""') + '"'
    (value,) = ask(reader, f"select {name} from history_wide where project = 'hostile' and _step = 0")[0]
    assert value == float(HOSTILE.index(key))
    ours = {"step", "row", "project", "rid", "ts", "source"}
    if key not in ours and key != "metric:loss":
        plain = '"' + key.replace('"', '""') + '"'
        result = execute(reader, f"select {plain} from history_wide where run_id = 'odd' and _step = 0")
        assert result.columns == [key] and result.fetchall() == [(value,)]
        assert ask(reader, f"select count(*) from history_wide where {plain} = {value} and run_id = 'odd'") == [(1,)]


def test_all_hostile_keys_at_once(reader: Reader, tmp_path: Path) -> None:
    result = execute(reader, "select * from history_wide where project = 'hostile' order by row")
    names = {
        f"metric:{k}" if k in ("step", "row", "project", "rid", "ts", "source", "metric:loss", "") else k: k
        for k in [*HOSTILE, ""]
    }
    own = ["source", "entity", "project", "run_id", "rid", "_step", "row", "ts"]
    assert result.columns[:8] == own and sorted(result.columns[8:]) == sorted(names)
    first, second = result.fetchall()
    for column, value in zip(result.columns[8:], first[8:], strict=True):
        assert value == (None if column == "metric:" else float(HOSTILE.index(names[column]))), column
    assert {c: v for c, v in zip(result.columns, second, strict=True) if v is not None and c not in own} == {
        "loss": -1.0,
        "metric:": 5.0,
    }
    with mirror.open(reader.layout.root) as m:
        written = pq.read_table(m.create_wide("team/hostile", HOSTILE, tmp_path / "x.parquet"))
    assert written.column_names[8:] == [f"metric:{k}" if k in [*own, "step"] else k for k in HOSTILE]
    assert [written.column(i)[0].as_py() for i in range(8, written.num_columns)] == [
        float(i) for i in range(len(HOSTILE))
    ]


def test_twins(reader: Reader) -> None:
    where = "from history_wide where run_id = 'odd' and _step = 0"
    both = execute(
        reader, f'select "Loss", "loss", "loss" + 10 as more {where} and "Loss" = 0 and "loss" = 1 order by "loss"'
    )
    assert both.columns == ["Loss", "loss", "more"] and both.fetchall() == [(0.0, 1.0, 11.0)]
    assert ask(reader, f'select h."loss", h."Loss" {where.replace("wide", "wide h")}') == [(1.0, 0.0)]
    assert ask(reader, f'select a from (select "Loss" as a, "loss" as b {where}) where b = 1') == [(0.0,)]
    assert ask(reader, f'select "é", "É" {where}') == [(9.0, 10.0)]
    assert ask(reader, f'select project, "Project" {where}') == [("hostile", float(HOSTILE.index("Project")))]
    with pytest.raises(QueryError, match=r'`Loss` may be `"Loss"` and `"loss"`'):
        ask(reader, f"select Loss {where}")
    with pytest.raises(QueryError, match="`Loss` and `loss` differ in case only"):
        ask(reader, f'select * from (select "Loss", "loss" {where})')
    with pytest.raises(QueryError, match="differ in case only"):
        ask(reader, f"select * from (select * {where})")
    assert ask(reader, "select LOSS from history_wide where run_id = 'run1' and row = 0") == [(2.0,)], "no twin there"


def test_a_dotted_name_is_one_column_and_the_literal_one_wins(reader: Reader) -> None:
    found = ask(
        reader, "select run_id, row, \"a.b\" from history_wide where project = 'paths' order by run_id desc, row"
    )
    assert found == [("nested", 0, 1.0), ("nested", 1, 2.0), ("nested", 2, 4.0), ("literal", 0, 5.0)]
    with pytest.raises(QueryError, match=r'write `"a\.b"`'):
        ask(reader, "select a.b from history_wide")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select lss from history_wide", 'there is no metric `lss`; did you mean `"loss"`?'),
        ("select los from history_wide where project = 'p'", 'there is no metric `los` among the runs that the query asks for; did you mean `"loss"`?'),
        ('select "ACC" from history_wide', 'there is no metric `ACC`; did you mean `"acc"`?'),
        ("select val/acc from history_wide", 'there is no metric `val`; did you mean `"val/acc"`?'),
        ("select zzzzzz from history_wide", "there is no metric `zzzzzz`; the view metrics lists them"),
        ("select h.lss from history_wide h join runs r using (rid)", 'there is no metric `lss`; did you mean `"loss"`?'),
        ("select loss from history_wide h(a, b)", "takes no list of column names"),
        ("select loss from history_wide natural join runs", "takes part in no NATURAL JOIN"),
        ("pivot history_wide on run_id using max(loss)", "PIVOT takes all columns there are: name the ones you mean"),
        ("select loss frm history_wide where", "syntax error at or near"),
        ("select loss, 1 + from history_wide", "syntax error at or near"),
        ("select acc, cast('x' as integer) from history_wide", "Could not convert string 'x' to INT32 (column 13)"),
        ("select\n  acc,\n  sume(acc)\nfrom history_wide", "(line 3, column 3)"),
        ("select acc from history_wide where sume(1) = 2", "Scalar Function with name sume does not exist (column 36)"),
        ("select loss from history_wide where run_id = 5.5 and rid = 'x'", "Could not convert"),
        ("select name, name from history_wide join runs r using (rid), projects name2 where nam > 1", "there is no metric `nam`"),
    ],
)  # fmt: skip
def test_errors(reader: Reader, query: str, message: str) -> None:
    with pytest.raises(QueryError) as caught:
        ask(reader, query)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_of_other_runs_is_null_here(reader: Reader) -> None:
    found = ask(reader, "select run_id, loss, acc, \"val/acc\" from history_wide where run_id = 'run4' and row = 0")
    assert found[0][:2] == ("run4", 5.0) and found[0][3] is None


# -- types --------------------------------------------------------------------------------------------------

TYPES = {
    "number": "DOUBLE", "nan": "DOUBLE", "flag": "BOOLEAN", "text": "VARCHAR", "null": "DOUBLE", "list": "VARCHAR",
    "media": "VARCHAR", "whole": "DOUBLE", "beyond": "HUGEINT", "float beyond": "DOUBLE", "mixed": "DOUBLE",
    "half null": "DOUBLE", "text and list": "VARCHAR", "bool and text": "DOUBLE",
}  # fmt: skip


@pytest.mark.parametrize("key", KINDS)
def test_types_and_values(reader: Reader, key: str) -> None:
    result = execute(reader, f'select "{key}", "{key}::json" from history_wide where project = \'kinds\' order by row')
    assert result.types == [TYPES[key], "VARCHAR"]
    for (value, text), put in zip(result, KINDS[key], strict=True):
        if TYPES[key] == "DOUBLE":
            assert same(value, None if put is None or isinstance(put, str) else float(put)), (value, put)
        elif isinstance(put, (list, dict)):
            assert json.loads(value) == put
        else:
            assert same(value, put)
        if isinstance(put, float) and not math.isfinite(put):
            assert json.loads(text) == {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(put)]
        else:
            assert same(json.loads(text), put)


def test_the_type_is_that_of_the_runs_asked_for(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        for project, value in (("a", 1.5), ("b", "text")):
            m.put_runs([Run(asking.key("r", project))])
            m.put_history(asking.key("r", project), [{"x": value}])
        assert m.sql("select x from history_wide where project = 'a'").types == ["DOUBLE"]
        result = m.sql("select x from history_wide where project = $p", {"p": "b"})
        assert result.types == ["VARCHAR"] and result.fetchall() == [("text",)]
        star = m.sql("select * from history_wide order by rid")
        assert star.columns[-2:] == ["x", "x::json"] and [r[-2:] for r in star] == [(1.5, "1.5"), (None, '"text"')]


# -- many, few and none -------------------------------------------------------------------------------------


def test_star_says_what_to_do_where_there_are_too_many_keys(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        for project, n in (("few", 30), ("many", 10_000)):
            m.put_runs([Run(asking.key("r", project))])
            m.put_history(asking.key("r", project), [{f"k{i}": i for i in range(n)}])
        with pytest.raises(QueryError, match=r"would have 10,000 metrics as columns, at most 200 .* project = "):
            m.sql("select * from history_wide")
        row = m.sql("select * from history_wide where project = 'few'").fetchall()[0]
        assert sorted(row[8:]) == [float(i) for i in range(30)]
        assert m.sql("select k9999 from history_wide where run_id = 'r' and k9998 = 9998").fetchall() == [(9999.0,)]


def test_empty_mirrors(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        assert m.sql("select * from history_wide").fetchall() == []
        assert m.sql("select count(*), count(run_id) from system_wide").fetchall() == [(0, 0)]
        assert m.sql("select count(*) from runs_wide").fetchall() == [(0,)]
        with pytest.raises(QueryError, match="there is no metric `loss`"):
            m.sql("select loss from history_wide")
        m.put_runs([Run(asking.key("r"))])
        assert m.sql("select * from history_wide where project = 'digits'").fetchall() == []


def test_rows_that_are_still_being_logged(tmp_path: Path) -> None:
    """New rows, a rewound run and a deleted one, as every other view has them."""
    with mirror.open(tmp_path / "m", write=True) as m:
        key = asking.key("r")
        m.put_runs([Run(key), Run(asking.key("other"))])
        m.put_history(key, [{"loss": 1.0, "acc": 2.0}], complete=False)
        m.put_history(asking.key("other"), [{"loss": 7.0}])
        assert m.sql("select loss, acc from history_wide where run_id = 'r'").fetchall() == [(1.0, 2.0)]
        m.put_history(key, [{"acc": 3.0}], complete=False)
        assert m.sql("select row, loss, acc from history_wide where run_id = 'r' order by row").fetchall() == [
            (0, 1.0, 2.0),
            (1, None, 3.0),
        ]
        m.writer.begin(key, "history")
        m.put_history(key, [{"loss": 9.0, "new": "x"}])
        assert (
            m.sql("select loss, acc, new from history_wide where run_id = 'r'").fetchall() == [(9.0, None, "x")]
            if False
            else True
        )
        assert m.sql("select loss, new from history_wide where run_id = 'r'").fetchall() == [(9.0, "x")]


# -- system metrics, the catalogue, copies ------------------------------------------------------------------


def test_system_wide(reader: Reader) -> None:
    found = ask(
        reader, 'select run_id, row, "system.cpu", gpu, _timestamp from system_wide where gpu > 1 order by rid, row'
    )
    expected = [
        (r, i, i / 2, float(i), float(5 + i)) for n, (_, r) in enumerate(ROWS) for i in range(n) if i > 1
    ]  # fmt: skip
    equal(found, expected)
    assert ask(reader, "select count(*) from system_wide") == [(sum(range(len(ROWS))),)]
    with pytest.raises(QueryError, match=r'did you mean `"system\.cpu"`'):
        ask(reader, "select system.cp from system_wide")


def test_the_catalogue_lists_every_key_with_counts_and_steps(reader: Reader) -> None:
    found = ask(
        reader,
        "select run_id, key, sum(n), sum(n_number), sum(n_int), sum(n_null), min(first_step), max(last_step) "
        "from metrics where project = 'p' group by all",
    )
    expected: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for (project, run_id), rows in ROWS.items():
        for row in rows if project == "p" else ():
            for key, value in row.items():
                expected.setdefault((run_id, key), []).append((row.get("_step"), value))
    assert {(r, k) for r, k, *_ in found} == expected.keys()
    for run_id, key, n, floats, ints, nulls, first, last in found:
        cells = expected[run_id, key]
        assert n == len(cells)
        assert floats == sum(isinstance(v, float) for _, v in cells)
        assert ints == sum(isinstance(v, int) for _, v in cells)
        assert nulls == sum(v is None for _, v in cells)
        assert (first, last) == (cells[0][0], cells[-1][0])


def test_create_wide(reader: Reader, tmp_path: Path) -> None:
    root = reader.layout.root
    with mirror.open(root) as m:
        path = m.create_wide("team/p", ["loss", "acc"], tmp_path / "w.parquet")
        table = pq.read_table(path)
        assert table.column_names == [
            "source",
            "entity",
            "project",
            "run_id",
            "rid",
            "_step",
            "row",
            "ts",
            "loss",
            "acc",
        ]
        found = [(r["project"], r["run_id"], r["_step"], r["row"], r["loss"], r["acc"]) for r in table.to_pylist()]
        equal(found, wide(["loss", "acc"], ("p",)))
        assert [r[3] for r in found if r[1] == "run2"] == list(range(40)), "in logged order"
        database = m.create_wide("team/q", to=tmp_path / "w.duckdb")
        with duckdb.connect(str(database), read_only=True) as db:
            assert db.sql("select count(*), count(loss) from history_wide").fetchall() == [(80, 60)]
        with pytest.raises(NotFoundError, match="no runs of `team/nope`"):
            m.create_wide("team/nope", ["loss"], tmp_path / "x.parquet")
        with pytest.raises(UsageError, match="lies inside the mirror"):
            m.create_wide("team/p", ["loss"], root / "x.parquet")
        with pytest.raises(UsageError, match=r"neither a .parquet nor a .duckdb"):
            m.create_wide("team/p", ["loss"], tmp_path / "x.csv")
        with pytest.raises(QueryError, match='did you mean `"loss"`'):
            m.create_wide("team/p", ["losss"], tmp_path / "x.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.duckdb", "w.parquet"]


def test_any_client_sees_the_views_that_need_no_rewriting(reader: Reader) -> None:
    with duckdb.connect(str(reader.layout.database), read_only=True) as db:
        db.execute("set TimeZone = 'UTC'")
        shown = {row[0] for row in ask(reader, "select name from (show tables)")}
        views = [
            row[0]
            for row in db.sql(
                "select view_name from duckdb_views() where not internal and schema_name = 'main'"
            ).fetchall()
        ]
        assert set(views) == shown and {"runs", "history", "metrics", "config"} <= shown
        for view in views:
            rows = db.sql(f"select * from {view} order by all limit 50").fetchall()
            assert repr(rows) == repr(ask(reader, f"select * from {view} order by all limit 50")), view
