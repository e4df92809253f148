"""SQL over a mirror: what is let through, what is refused, how errors read, and that results are exact."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import asking
import costs
import duckdb
import pyarrow as pa
import pytest

import mirror
from mirror.errors import QueryError, StoreError
from mirror.query.sql import execute, sandbox
from mirror.store import Reader


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asking.fill(tmp_path_factory.mktemp("sql") / "m")


@pytest.fixture(scope="module")
def reader(root: Path) -> Reader:
    return Reader(root)


def ask(reader: Reader, query: str, params: Any = None) -> list[tuple[Any, ...]]:
    return execute(reader, query, params).fetchall()


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# -- what is let through ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("select 1", (1,)),
        ("select count(*) from runs where project = 'digits'", (3,)),
        ("from runs select run_id order by run_id limit 1", ("h0",)),
        ("with x as (select 2 as a) select a from x", (2,)),
        ("with recursive x as (select 1 as a union all select a + 1 from x where a < 5) select max(a) from x", (5,)),
        ("values (3)", (3,)),
        ("(select 4)", (4,)),
        ("select 1 union all select 1", (1,)),
        ("pivot (select project, state from runs where project = 'digits') on state using count(*)", ("digits", 1, 2)),
        ("select * from (pivot (select state from runs where project = 'digits') on state using count(*))", (1, 2)),
        ("unpivot (select 1 as a) on a", ("a", 1)),
        ("select name from (show tables) where name = 'runs'", ("runs",)),
        ("select count(*) from (describe runs) where column_name = 'run_id'", (1,)),
        ("select column_name from (summarize select 1 as a)", ("a",)),
        ("select * from range(3) order by 1 desc", (2,)),
        ("select unnest([7])", (7,)),
        ("select list_transform([1], lambda x: x + 1)", ([2],)),
        ("select json_extract(config, '/lr')::double from runs where run_id = 'run1'", (0.1,)),
        ("select 'select 1; drop table x' -- ; insert", ("select 1; drop table x",)),
        ('select 1 as "insert"; ', (1,)),
        ("select column_name from information_schema.columns where table_name = 'projects' limit 1", ("source",)),
        ("select count(*) > 0 from raw.history", (True,)),
        ("select n from (select 1 as n) as copy", (1,)),
    ],
)
def test_reading_is_let_through(reader: Reader, query: str, first: tuple[Any, ...]) -> None:
    assert ask(reader, query)[0] == first


@pytest.mark.parametrize(
    "query",
    [
        "explain select 1",
        "explain analyze from runs",
        "explain (format json) select 1",
        "explain (select 1)",
        "EXPLAIN ANALYZE /* c */ pivot runs on state using count(*)",
    ],
)
def test_explain(reader: Reader, query: str) -> None:
    assert "plan" in ask(reader, query)[0][0]


# -- what is refused ----------------------------------------------------------------------------------------

SEGMENT = "SEGMENT"
OTHER = "/etc/passwd"
ATTACKS = [
    f"copy (select 1) to '{SEGMENT}' (use_tmp_file false)",
    f"copy (select 1) to '{SEGMENT}' (use_tmp_file true)",
    "copy runs to '/tmp/mirror-test-out.csv'",
    f"copy runs from '{OTHER}'",
    f"with x as (copy (select 1) to '{SEGMENT}' (use_tmp_file false)) select * from x",
    f"with x as materialized (copy (select 1) to '{SEGMENT}' (use_tmp_file true)) select 1",
    f"select * from (with x as (copy (select 1) to '{SEGMENT}' (use_tmp_file false)) select * from x)",
    f"with a as (select 1), x as (COPY (select 1) to '{SEGMENT}' (use_tmp_file false)) from x",
    f"explain analyze with x as (copy (select 1) to '{SEGMENT}' (use_tmp_file false)) from x",
    f"explain analyze copy (select 1) to '{SEGMENT}' (use_tmp_file false)",
    f"explain (analyze, format json) copy (select 1) to '{SEGMENT}' (use_tmp_file false)",
    f"explain /* select */ analyze -- select\n copy (select 1) to '{SEGMENT}' (use_tmp_file false)",
    f"with x as (copy (select 1) to '{SEGMENT}' (use_tmp_file false)) pivot x on count using sum(count)",
    f"pivot (with x as (copy (select 1 as a) to '{SEGMENT}' (use_tmp_file false)) from x) on a using count(*)",
    "SERIALIZED",
    "select * from query('select 1')",
    f"select * from query('copy (select 1) to ''{SEGMENT}''')",
    "pivot (from query('select 1 as a')) on a using count(*)",
    "attach '/tmp/mirror-test.db' as x",
    "attach ':memory:' as x",
    "detach memory",
    "use raw",
    "pragma version",
    "pragma enable_profiling",
    "set threads = 1",
    "set global allowed_paths = ['/etc/passwd']",
    "set enable_external_access = true",
    "reset threads",
    "reset lock_configuration",
    "set variable x = 1",
    "install httpfs",
    "load httpfs",
    "update extensions",
    f"select * from read_text('{OTHER}')",
    f"select * from read_blob('{OTHER}')",
    f"select * from read_csv('{OTHER}')",
    f"select * from read_json('{OTHER}')",
    f"select * from read_parquet('{OTHER}')",
    f"select * from read_parquet('{SEGMENT}')",
    f"select * from parquet_metadata('{OTHER}')",
    f"select * from sniff_csv('{OTHER}')",
    f"select * from system.main.read_text('{OTHER}')",
    f'select * from "read_text"(\'{OTHER}\')',
    f"select (select content from read_text('{OTHER}'))",
    f"select 1 where exists (from read_text('{OTHER}'))",
    f"from runs, lateral (from read_text('{OTHER}'))",
    f"pivot (from \"read_text\"('{OTHER}')) on size using count(*)",
    f"summarize from read_text('{OTHER}')",
    "select * from glob('/etc/*')",
    f"from '{OTHER}'",
    "from '/etc/*.conf'",
    f"describe '{OTHER}'",
    "select * from secret_variable",
    "select * from arrow_scan(1, 2, 3)",
    "select * from pandas_scan(1)",
    "select * from duckdb_secrets()",
    "select * from checkpoint()",
    "select * from enable_logging(storage = 'file', storage_path = '/tmp/mirror-test-log')",
    "call enable_logging()",
    "call pragma_version()",
    "select getenv('HOME')",
    "select write_log('x')",
    "select nextval('s')",
    "pivot (select nextval('s') as a) on a using count(*)",
    "select 1; select 2",
    "select 1; drop view runs",
    "drop view runs",
    "create table x (a int)",
    "create temp table x (a int)",
    "create or replace view runs as select 1",
    "create macro f() as 1",
    "create table x as pivot runs on state using count(*)",
    "create secret s (type s3)",
    "insert into raw.live values (1)",
    "insert into raw.live select * from raw.live",
    "with x as (insert into raw.live select * from raw.live returning *) select * from x",
    "with x as (delete from raw.live returning *) select count(*) from x",
    "with x as (update raw.live set rid = 0 returning *) select count(*) from x",
    "with i as (select 1) insert into raw.live select * from raw.live",
    "delete from raw.live",
    "truncate raw.live",
    "update raw.live set rid = 0",
    "merge into raw.live using raw.live b on true when matched then delete",
    "alter table raw.live rename to x",
    "comment on view runs is 'x'",
    "export database '/tmp/mirror-test-export'",
    "import database '/tmp/mirror-test-export'",
    "checkpoint",
    "vacuum",
    "analyze",
    "begin",
    "commit",
    "rollback",
    "prepare p as select 1",
    "execute p",
    "deallocate p",
    "",
    "   -- nothing",
    ";",
    "not sql",
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_else_is_let_through(root: Path, reader: Reader, attack: str) -> None:
    secret_variable = pa.table({"x": [1]})  # noqa: F841 - Python's variables are no tables
    segment = next(f for f in reader.files if "/runs/" in f)
    Path(segment).chmod(0o644)  # as root or the owner of a careless copy would find it
    before = contents(root)
    query = attack.replace(SEGMENT, segment)
    if attack == "SERIALIZED":
        evil = f"with x as (copy (select 1) to '{segment}' (use_tmp_file false)) select * from x"
        found = duckdb.connect().execute("select json_serialize_sql(?)", [evil]).fetchone()
        assert found is not None
        query = f"select * from json_execute_serialized_sql('{found[0].replace(chr(39), chr(39) * 2)}')"
    with pytest.raises(QueryError) as caught:
        ask(reader, query)
    message = str(caught.value)
    assert "\n" not in message and 5 < len(message) <= 420, message
    assert "root:" not in message
    assert contents(root) == before
    assert not list(Path("/tmp").glob("mirror-test*"))
    assert ask(reader, "select count(*) from runs where project = 'digits'") == [(3,)], "and it goes on working"


def test_the_settings_hold_without_the_statement_check(root: Path, reader: Reader) -> None:
    """The second wall: what DuckDB itself refuses in the sandbox, should a statement ever get by the first."""
    db = sandbox(reader).cursor()
    db.rollback()
    for query in [
        f"select * from read_text('{OTHER}')",
        f"copy (select 1) to '{root}/x.csv'",
        "attach '/tmp/mirror-test.db'",
        "set threads = 1",
        "set lock_configuration = false",
        "load httpfs",
        f"select * from read_parquet('{root / 'snapshot.json'}')",
    ]:
        with pytest.raises(duckdb.Error):
            db.execute(query)
    db.execute("begin transaction read only")
    with pytest.raises(duckdb.Error, match="read-only"):
        db.execute("insert into raw.live select * from raw.live")


def test_table_functions_of_this_duckdb_are_known() -> None:
    """Names of table functions that write, run text or take addresses are not on the list of allowed ones."""
    from mirror.query import statement

    allowed = statement._TABLE_FUNCTIONS
    rows = duckdb.connect().execute(
        "select distinct function_name from duckdb_functions() where function_type = 'table'"
    )
    suspicious = re.compile(
        r"read|scan|query|exec|parquet|csv|blob|glob|file|checkpoint|log|profil|external|secret|sniff"
    )
    assert not [name for (name,) in rows.fetchall() if suspicious.search(name) and name in allowed]


@pytest.mark.parametrize(
    "query",
    [
        "select " + "+".join(["1"] * 900),
        "select " + "[" * 300 + "1" + "]" * 300,
        "select count(*) from " + "(select * from " * 500 + "runs" + ")" * 500,
        "select 1 where " + " or ".join(f"{i} = 1" for i in range(5000)),
    ],
    ids=["sum", "list", "subqueries", "or"],
)
def test_deep_statements_are_answered(reader: Reader, query: str) -> None:
    assert len(ask(reader, query)) == 1


@pytest.mark.parametrize("query", ["select " + "(" * 5000 + "1" + ")" * 5000, "select " + "+".join(["1"] * 3000)])
def test_too_deep_statements_are_refused(reader: Reader, query: str) -> None:
    with pytest.raises(QueryError, match="Max expression depth limit of 1000 exceeded; nest the query less"):
        ask(reader, query)


# -- messages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select * form runs", 'syntax error at or near "runs" (column 15)'),
        ("select 'é', * form runs", 'syntax error at or near "runs" (column 20)'),
        ("select 1,\n  2 three four\nfrom runs", 'syntax error at or near "four" (line 2, column 11)'),
        ("select (1", "syntax error at"),
        ("select 'abc", "unterminated"),
        ("from runz", "there is no table `runz` (column 6); did you mean `runs`?"),
        ("from historys", "there is no table `historys` (column 6); did you mean `history`?"),
        ("from raw.histori", "there is no table `histori` (column 6); did you mean `history`?"),
        ("from histori_wide", "there is no table `histori_wide` (column 6); did you mean `history_wide`?"),
        ("from zzzzzz", "there is no table `zzzzzz` (column 6); there are artifact_collections, "),
        ("select nam from runs", 'Referenced column "nam" not found in FROM clause (column 8); Candidate bindings: "n'),
        ("select sume(1)", "Scalar Function with name sume does not exist (column 8); Did you mean"),
        ("select cast('x' as integer)", "Could not convert string 'x' to INT32 (column 8)"),
        ("select * from runs where rid = $x", "Values were not provided for the following parameters: x"),
        ("select 1; select 2", "found 2 statements to run; write one SELECT"),
        ("", "found nothing to run; write one SELECT"),
        ("copy runs to 'x'", "refused COPY: only reading is allowed"),
        ("with x as (insert into raw.live select 1 returning *) from x", "refused INSERT inside WITH: only reading"),
        ("from read_text('/etc/passwd')", "refused read_text(): ask the mirror's tables and views"),
        ("from '/etc/passwd'", "there is no table `/etc/passwd`"),
        ("from '/etc/x.parquet'", 'Cannot access file "/etc/x.parquet"; queries read the mirror\'s own tables only'),
        ("select 'a\x1b[31m' form x y", "syntax error"),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_the_place_and_a_hint(reader: Reader, query: str, message: str) -> None:
    with pytest.raises(QueryError) as caught:
        ask(reader, query)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_middle_of_a_result_is_a_query_error(reader: Reader) -> None:
    result = execute(reader, "select case when i < 100000 then i else error('stop here') end from range(200000) t(i)")
    with pytest.raises(QueryError, match="stop here"):
        for _ in result:
            pass
    with pytest.raises(QueryError, match="stop here"):
        result.arrow()


def test_a_file_that_is_gone_is_an_error_of_the_store(tmp_path: Path) -> None:
    root = asking.fill(tmp_path / "m")
    reader = Reader(root)
    result = execute(reader, "select * from history")
    for path in (root / "data" / "history").rglob("*.parquet"):
        path.unlink()
    with pytest.raises(StoreError, match="mirror repair"):
        result.fetchall()


# -- results ------------------------------------------------------------------------------------------------


def test_parameters_are_bound(reader: Reader) -> None:
    evil = "x' or '1'='1"
    assert ask(reader, "select count(*) from runs where name = $name", {"name": evil}) == [(0,)]
    assert ask(reader, "select ? || '!'", [evil]) == [(evil + "!",)]
    with pytest.raises(QueryError):
        ask(reader, "select ?", [1, 2])


def test_values_are_exact(reader: Reader) -> None:
    row = ask(
        reader,
        "select 170141183460469231731687303715884105727::hugeint, 9007199254740993, 0.1::double, 'nan'::double,"
        " 1.50::decimal(10, 2), '2025-01-31 12:00:00.123456+02'::timestamptz, null, '', 'a\nb', [1, null], {'a': 1.5}",
    )[0]
    assert row[:3] == (170141183460469231731687303715884105727, 9007199254740993, 0.1)
    assert row[3] != row[3]
    assert row[4:] == (
        Decimal("1.50"), datetime(2025, 1, 31, 10, 0, 0, 123456, tzinfo=timezone.utc), None, "", "a\nb", [1, None],
        {"a": 1.5},
    )  # fmt: skip


def test_columns_and_types(reader: Reader) -> None:
    result = execute(reader, "select 1 as a, 'x' as \"b c\", now() as a, sum(1::bigint) as s")
    assert result.columns == ["a", "b c", "a", "s"]
    assert result.types == ["INTEGER", "VARCHAR", "TIMESTAMP WITH TIME ZONE", "HUGEINT"]
    assert result.fetchone() is not None
    assert execute(reader, "select 1 where false").fetchone() is None


def test_frames(reader: Reader) -> None:
    result = execute(
        reader,
        "select * from (values (1::bigint, 9007199254740993::bigint, 2::hugeint, 'a', true, 0.5),"
        " (2, null, 170141183460469231731687303715884105727::hugeint, null, null, 'nan'::double)) t(a, b, c, d, e, f)",
    )
    table = result.arrow()
    assert table["b"].to_pylist() == [9007199254740993, None]
    assert [int(v) for v in table["c"].to_pylist()] == [2, 2**127 - 1]
    frame = result.df()
    assert frame["a"].dtype == "int64" and frame["b"].dtype == "Int64"
    assert frame["b"][0] == 9007199254740993 and frame["b"].isna()[1]
    assert list(frame["c"]) == [2, 2**127 - 1]
    assert result.pl()["b"].to_list() == [9007199254740993, None]
    assert execute(reader, "select count(*) as n, sum(1) as s from runs").df().dtypes.astype(str).tolist() == [
        "int64",
        "int64",
    ]
    assert len(execute(reader, "select rid as a, rid as a from runs").df().columns) == 2


def test_every_form_gives_the_same(reader: Reader) -> None:
    result = execute(reader, "select run_id, step, value, ts from history where key = 'n' order by run_id, row")
    rows = result.fetchall()
    assert len(rows) == 150 and rows == list(result)
    assert [tuple(r.values()) for r in result.arrow().to_pylist()] == rows
    assert [tuple(r) for r in result.df().itertuples(index=False)] == rows
    assert result.pl().rows() == rows


def test_looking_at_a_result_is_short_and_harmless(reader: Reader) -> None:
    shown = repr(execute(reader, "select name from runs order by name"))
    assert "\x1b" not in shown and "\\x1b]0;x\\x07" in shown and "two\\nlines" in shown
    many = repr(execute(reader, "select i from range(1000000) t(i)"))
    assert len(many.splitlines()) == 2 + 20 + 1
    html = execute(reader, "select '<script>' as a")._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_connections_are_in_utc_whatever_the_machine_says(root: Path) -> None:
    query = "select ts from history order by 1 limit 1"
    done = subprocess.run(
        [sys.executable, "-c", f"import mirror; print(mirror.open({str(root)!r}).sql({query!r}).fetchone()[0])"],
        capture_output=True, text=True, env=os.environ | {"TZ": "America/New_York"}, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "2023-11-14 22:13:20+00:00"


def test_each_state_has_a_sandbox_of_its_own(tmp_path: Path) -> None:
    root = asking.fill(tmp_path / "m")
    m = mirror.open(root)
    before = m.sql("select count(*) from runs")
    n = before.fetchall()[0][0]
    asking.incomplete(root)
    assert m.sql("select count(*) from runs").fetchall() == [(n + 1,)]
    assert before.fetchall() == [(n,)], "a result stays with the state it was asked of"


def test_threads_can_ask_at_the_same_time(reader: Reader) -> None:
    found: list[Any] = []

    def work(n: int) -> None:
        for i in range(20):
            found.extend(ask(reader, "select ?::int, count(*) from history where key = 'n'", [20 * n + i]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(found) == [(i, 150) for i in range(80)]


_SPILL = """
import sys, resource
from mirror.store import Reader
from mirror.query import sql
reader = Reader(sys.argv[1])
database = reader.database
def small():
    db = database()
    db.execute("set global memory_limit = '150MB'; set global threads = 2")
    return db
reader.database = small
hashes = "select md5(i::varchar) as h, row_number() over (order by md5(i::varchar)) as n from range(5000000) t(i)"
query = f"select count(*), max(h) from ({hashes})"
print(sql.execute(reader, query).fetchall()[0])
spill = sql.execute(reader, "select current_setting('temp_directory')").fetchall()[0][0]
import os, stat
print(oct(stat.S_IMODE(os.stat(spill).st_mode)), spill)
"""


def test_what_does_not_fit_into_memory_goes_to_a_private_folder(root: Path, tmp_path: Path) -> None:
    """A sort of 5 million hashes in 150 MB."""
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _SPILL, str(root)], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    answer, folder = done.stdout.splitlines()
    assert answer == "(5000000, 'fffffe98d0963d27015c198262d97221')"
    assert folder.startswith("0o700 ") and str(tmp_path) in folder
    assert list(tmp_path.iterdir()) == [], "and nothing of it stays"


_STREAM = """
import sys
from mirror.query.sql import execute
from mirror.store import Reader
from costs import peak_kb
result = execute(Reader(sys.argv[1]), "select i, md5(i::varchar) as h, i / 7 as x from range({n}) t(i)")
n = sum(1 for _ in result) if sys.argv[2] == "rows" else sum(b.num_rows for b in result.batches())
print(n, peak_kb())
"""


@pytest.mark.parametrize("how", ["rows", "batches"])
def test_results_stream_with_flat_memory(root: Path, how: str) -> None:
    used = {}
    for n in (100_000, 3_000_000):
        done = subprocess.run(
            [sys.executable, "-c", _STREAM.replace("{n}", str(n)), str(root), how],
            env=costs.environ(),
            capture_output=True,
            text=True,
            check=True,
        )
        rows, kilobytes = map(int, done.stdout.split())
        assert rows == n
        used[n] = kilobytes / 1024
    assert used[3_000_000] < used[100_000] + 60, used
