"""`mirror.filters.to_sql` and `mirror translate`: inlined, with parameters, for other engines, as strict as W&B."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import filter_cases
import pytest
import sqlglot
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from sqlglot import exp
from test_filters import PROJECT, QUERIES, Store

import mirror
from mirror.cli import cli
from mirror.errors import UsageError
from mirror.filters import FilterError, parse, to_sql
from mirror.query.filters.portable import DIALECTS, portable
from mirror.query.filters.sql import written

OTHERS = [d for d in DIALECTS if d != "duckdb"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("project") / "m", PROJECT)


def test_the_expression_works_in_the_sandbox(project: Store) -> None:
    m = mirror.open(project.reader.layout.root)
    for query in QUERIES:
        found = m.sql(f"select run_id from runs where {to_sql(query)} order by 1").fetchall()
        assert [row[0] for row in found] == project.expected(query), query


def test_parameters_take_the_place_of_values(project: Store) -> None:
    m = mirror.open(project.reader.layout.root)
    for query in QUERIES:
        sql, values = to_sql(query, params=True)
        found = m.sql(f"select run_id from runs where {sql} order by 1", values or None).fetchall()
        assert [row[0] for row in found] == project.expected(query), query


def test_values_are_in_parameters_only() -> None:
    sql, values = to_sql({"display_name": "o'hara", "config.secret key": {"$in": ["p1", 2**70, 0.25]}}, params=True)
    assert not any(word in sql for word in ("hara", "secret", "p1", "1180591620717411303424", "0.25"))
    assert set(values) == {"o'hara", "/secret key", "p1", str(2**70), float(2**70), 0.25}


@pytest.mark.parametrize("dialect", OTHERS)
def test_other_engines_take_what_they_are_given(dialect: str, project: Store) -> None:
    """The text is SQL of the dialect; its meaning is checked in DuckDB, which has the same tables."""
    taken = 0
    for query in QUERIES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sql = to_sql(query, dialect)
        except FilterError as e:
            assert dialect in str(e), e
            continue
        taken += 1
        (statement,) = sqlglot.parse(f"select run_id from runs where {sql}", dialect=dialect)
        assert isinstance(statement, exp.Select)
        assert {t.name for t in statement.find_all(exp.Table)} <= {"runs", "config", "summary"}
        if dialect != "postgres" or ("tags" not in query and "$lte" not in json.dumps(query)):
            same = written(portable(parse(query).node, dialect), "duckdb")
            found = project.db.execute(f"select run_id from runs where {same} order by 1").fetchall()
            assert [row[0] for row in found] == project.expected(query), query
    assert taken > len(QUERIES) / 2


def test_other_engines_agree_on_lists_of_few_elements(tmp_path: Path) -> None:
    documents: list[Any] = [[1, 7], [], [[1]], "a", ["a", None], {"0": 1}, None, 1, True, [True], "NaN", {"y": 1}]
    store = Store(tmp_path / "m", {f"r{i:02}": {"config": {"x": d}} for i, d in enumerate(documents)} | {"none": {}})
    for condition in (
        1, "a", None, True, {"$ne": 1}, {"$gt": 1}, {"$in": ["a", None]}, {"$exists": False}, {"$type": "number"},
        {"$regex": "^a"}, {"$contains": "q"}, {"$not": {"$lt": 2}},
    ):  # fmt: skip
        for name in ("config.x", "config.x.y", "config.x.0"):
            if name == "config.x.0" or (name == "config.x.y" and condition in (None, {"$in": ["a", None]})):
                continue  # lists on the way to a name are not looked into: the notice says so
            query = {name: condition}
            same = written(portable(parse(query).node, "spark"), "duckdb")
            found = store.db.execute(f"select run_id from runs where {same} order by 1").fetchall()
            assert [row[0] for row in found] == store.expected(query), query


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"duration": 5}, "duration: no exact spark for durations; use the dialect duckdb"),
        ({"state": {"$regex": "a|b"}}, "state: no exact spark for the pattern `a|b`; use the dialect duckdb"),
        ({"config.x": {"$size": 2}}, "config.x: no exact spark for $size; use the dialect duckdb"),
        ({"config.x": {"$elemMatch": {"$gt": 2}}}, "config.x: no exact spark for $elemMatch; use the dialect duckdb"),
        ({"config.x": [1]}, "config.x: no exact spark for whole lists and objects; use the dialect duckdb"),
        ({"config.x": 2**60}, "config.x: no exact spark for integers from 2^53 on; use the dialect duckdb"),
        ({"config.x": {"$gt": "a"}}, "config.x: no exact spark for the order of strings or for NaN and Infinity"),
        ({"config.x": {"$contains": "Na"}}, "config.x: no exact spark for a text that NaN or Infinity may hold"),
        ({"created_at": {"$regex": "^2025"}}, "created_at: no exact spark for a pattern in a time"),
        ({"tags": {"$gt": "a"}}, "tags: no exact spark for this of tags; use the dialect duckdb"),
    ],
)
def test_what_other_engines_cannot_be_asked(query: Any, message: str) -> None:
    with pytest.raises(FilterError) as caught:
        to_sql(query, "spark")
    assert str(caught.value).startswith(message)


def test_other_engines_come_with_a_notice() -> None:
    with pytest.warns(UserWarning, match="lists of more than 64 elements"):
        to_sql({"config.x": 1}, "trino")
    with pytest.raises(UsageError, match="unknown dialect `oracle`; known are duckdb, spark"):
        to_sql({}, "oracle")
    with pytest.raises(UsageError, match="parameters are for the dialect duckdb, not for `spark`"):
        to_sql({}, "spark", params=True)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(query=filter_cases.filters)
def test_whatever_is_taken_is_one_expression(query: Any) -> None:
    try:
        to_sql(query)
    except FilterError:
        return
    for dialect in OTHERS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sql = to_sql(query, dialect)
        except FilterError as e:
            assert dialect in str(e)
        else:
            assert len(sqlglot.parse(f"select 1 from runs where {sql}", dialect=dialect)) == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"job_type": "train"}, "job_type: W&B's server knows no column of that name; write `jobType`"),
        ({"run_id": "x"}, "run_id: W&B's server knows no column of that name; write `name`, which is the run id"),
        ({"id": "x"}, "id: matches nothing on W&B's server; write `name`, which is the run id"),
        ({"summary.loss": 1}, "summary.loss: unknown field; use 'summary_metrics.loss'"),
        ({'config["a"]': 1}, 'config["a"]: W&B\'s server knows no names in brackets; write config.<key>'),
        ({"config.x": {"$type": "int"}}, "config.x $type: W&B's server is not known to take it"),
        ({"config.x": {"$regex": "a", "$options": "i"}}, "config.x $options: W&B's server is not known to take it"),
    ],
)
def test_server_compat_refuses_what_the_server_refuses(query: Any, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        to_sql(query)
    with pytest.raises(FilterError) as caught:
        to_sql(query, server_compat=True)
    assert str(caught.value).startswith(message)


def test_server_compat_finds_no_keys_with_dots(project: Store) -> None:
    """wandb#2819, #3087: the server matches nothing there."""
    query = {"config.model.dim": 128}
    assert project.ask(query) == ["bbb2"]
    strict = to_sql(query, server_compat=True)
    assert project.db.execute(f"select run_id from runs where {strict}").fetchall() == []
    assert to_sql({"jobType": "a", "displayName": "b"}, server_compat=True)


# -- the command ----------------------------------------------------------------------------------------------


def translate(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(cli, ["translate", *arguments], input=stdin)


def test_translate_prints_the_expression(tmp_path: Path) -> None:
    query = {"config.lr": {"$gt": 0.001}, "state": {"$ne": "crashed"}}
    file = tmp_path / "f.json"
    file.write_text(json.dumps(query))
    for result in (translate(json.dumps(query)), translate(f"@{file}"), translate("-", stdin=json.dumps(query))):
        assert result.exit_code == 0
        assert result.stdout.strip() == to_sql(query)


def test_translate_takes_options() -> None:
    result = translate('{"state": "it\'s"}', "--params")
    assert json.loads(result.stdout) == {"sql": "runs.state = $1", "params": ["it's"]}
    assert translate('{"state": "x"}', "--dialect", "spark").stdout.strip() == "`runs`.`state` = 'x'"
    assert isinstance(translate('{"job_type": "x"}', "--server-compat").exception, FilterError)
    noted = translate('{"summary.loss": 1}')
    assert "Note: `summary.loss` is read as `summary_metrics.loss`" in noted.stderr
    assert "Note: spark: lists of more than 64" in translate('{"config.x": 1}', "--dialect", "spark").stderr


def test_translate_refuses_bad_input(tmp_path: Path) -> None:
    missing = translate(f"@{tmp_path / 'nothing.json'}")
    assert isinstance(missing.exception, UsageError) and "cannot read the filter" in str(missing.exception)
    assert isinstance(translate("{stat").exception, FilterError)
    assert translate("{}", "--dialect", "oracle").exit_code == 2


# -- hostile names, one translator ----------------------------------------------------------------------------

HOSTILE = [
    "a.b", ".", "a..b", "a/b", "/", "~", "~1", "it's", 'say "x"', "tab\there", "line\nbreak", "🦊", "Loss", "loss", "",
    "x" * 300, "rid", "gen", "path", "type", "num", "str", "run_id", "value", "$set", "%", "_", "?", "$1", "a b", "\\",
    "[0]", '["a"]', "0", "-1", "null", "ａ", "é", "e\u0301", "--", "/*", "*/", "'); DROP TABLE runs; --",
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run per name, which holds that name only, and the same below `in`."""
    runs = {
        f"r{i:02}": {"config": {name: i + 1, "in": {name: i + 1}}, "summary_metrics": {name: str(i)}}
        for i, name in enumerate(HOSTILE)
    }
    return Store(tmp_path_factory.mktemp("hostile") / "m", runs)


@pytest.mark.parametrize("i", range(len(HOSTILE)), ids=lambda i: repr(HOSTILE[i])[:20])
def test_any_name_can_be_filtered(hostile: Store, i: int) -> None:
    quoted = json.dumps(HOSTILE[i], ensure_ascii=False)
    mine = [f"r{i:02}"]
    for query in (
        {f"config[{quoted}]": i + 1},
        {f'config["in"][{quoted}]': {"$exists": True}},
        {f"summary_metrics[{quoted}]": str(i)},
        {f"summary_metrics[{json.dumps(HOSTILE[i])}]": {"$ne": None}},
    ):
        assert hostile.ask(query) == mine, query
    if "" not in HOSTILE[i].split("."):
        assert hostile.ask({f"config.{HOSTILE[i]}": i + 1}) == mine
        if HOSTILE[i] != "value":  # W&B's wrapper: config.in.value is config.in
            assert hostile.ask({f"config.in.{HOSTILE[i]}": i + 1}) == mine
    else:
        with pytest.raises(FilterError, match=r'or config\["name"\] for any name'):
            to_sql({f"config.{HOSTILE[i]}": 1})


def test_commands_and_objects_ask_the_same_way(project: Store) -> None:
    root = str(project.reader.layout.root)
    for query in ({"tags": {"$ne": "v1"}}, {"config.lr": {"$gte": 0.01}}, {"$not": {"state": "finished"}}):
        listed = CliRunner().invoke(
            cli, ["runs", "--mirror", root, "--filter", json.dumps(query), "--format", "jsonl", "--columns", "run_id"]
        )
        assert listed.exit_code == 0, listed.stderr
        assert sorted(json.loads(line)["run_id"] for line in listed.stdout.splitlines()) == project.expected(query)
        found = mirror.Api(root).runs("team/proj", filters=query)
        assert sorted(run.id for run in found) == project.expected(query)


def test_what_is_no_sql_stays_none(project: Store) -> None:
    """Words of a filter end up in literals or parameters; nothing but the run tables is read, whatever they say."""
    attempts = [
        {"config.x": "1) or rid in (select rid from raw.runs)"},
        {'config["x\'] or 1=1 --"]': 1},
        {"state": {"$in": ["a', 'b') or (1=1", "\\'"]}},
        {"display_name": {"$regex": "'\\)\\ OR\\ 1=1"}},
        {"display_name": {"$contains": "' || (select string_agg(config_raw) from raw.runs) || '"}},
        {"tags": {"$all": ["'); attach '/tmp/x' as y; --"]}},
        {"config.x": {"$elemMatch": {"a') or 1=1 --": {"$not": {"$eq": "$1"}}}}},
        {"created_at": "2025"},
    ]
    for query in attempts:
        sql, values = to_sql(query, params=True)
        for text in (to_sql(query), sql):
            (statement,) = sqlglot.parse(f"select run_id from runs where {text}", dialect="duckdb")
            assert isinstance(statement, exp.Select)
            tables = {f"{t.db}.{t.name}".lstrip(".") for t in statement.find_all(exp.Table)}
            assert tables <= {"runs", "raw.config_live", "raw.summary_live"}
        assert project.ask(query) == project.expected(query), query
        found = project.db.execute(f"select run_id from runs where {sql} order by 1", values).fetchall()
        assert [row[0] for row in found] == project.expected(query)
