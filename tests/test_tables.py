"""W&B tables as Parquet: every value and type as it was logged, in flat memory, and a reason where it is no table."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from costs import environ
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mirror
from mirror.errors import QueryError
from mirror.query.sql import execute
from mirror.records import FileEntry, Run, RunKey
from mirror.store import Reader, tablefiles
from mirror.store.blobs import incoming, table_path
from mirror.store.layout import Layout
from mirror.store.tablefiles import TableFile, convert


def made(root: Path, text: str | bytes) -> tuple[TableFile, Path]:
    """A table out of its JSON, and the place of its Parquet file."""
    layout = Layout(root)
    with incoming(layout.blobs) as place:
        place.write(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        blob = place.keep()
    return convert(layout, blob.sha256), table_path(layout.tables, blob.sha256)


def rows(path: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    found = duckdb.sql(f"select * from read_parquet('{path}')")
    return [str(t) for t in found.types], found.fetchall()


CASES: list[tuple[list[Any], str, list[Any]]] = [
    ([1, None, -(2**63)], "BIGINT", [1, None, -(2**63)]),
    ([1, 2**63], "DECIMAL(38,0)", [Decimal(1), Decimal(2**63)]),
    ([1, 10**40], "VARCHAR", ["1", str(10**40)]),
    ([1, 2.5, 1e300], "DOUBLE", [1.0, 2.5, 1e300]),
    ([2**53 + 1, 0.5], "VARCHAR", [str(2**53 + 1), "0.5"]),
    ([True, None, False], "BOOLEAN", [True, None, False]),
    ([True, 1], "VARCHAR", ["true", "1"]),
    (["a", "NaN", "", 'q"\n\0'], "VARCHAR", ["a", "NaN", "", 'q"\n\0']),
    (["1", 1, None, [1, {"b": None}]], "VARCHAR", ['"1"', "1", None, '[1, {"b": null}]']),
    ([None, None], "VARCHAR", [None, None]),
    (["\ud800", "x"], "VARCHAR", ['"\\ud800"', '"x"']),
    ([{"_type": "image-file", "path": "é"}], "VARCHAR", ['{"_type": "image-file", "path": "é"}']),
]


@pytest.mark.parametrize(("values", "kind", "expected"), CASES)
def test_a_column_has_the_type_of_its_values(tmp_path: Path, values: list[Any], kind: str, expected: list[Any]) -> None:
    found, path = made(tmp_path, json.dumps({"columns": ["c"], "data": [[v] for v in values]}))
    assert found.row_count == len(values) and found.fields is not None
    types, got = rows(path)
    assert types == [kind] == [found.fields[0]["type"]] and [v for (v,) in got] == expected
    as_json = kind == "VARCHAR" and any(e != v for e, v in zip(expected, values, strict=True))
    assert (found.fields[0].get("exact") == "json") == as_json


def test_numbers_that_are_none_keep_being_floats(tmp_path: Path) -> None:
    _, path = made(tmp_path, '{"data": [[NaN, 1], [Infinity, -Infinity], [null, 2]], "columns": ["a", "b"]}')
    types, got = rows(path)
    assert types == ["DOUBLE", "DOUBLE"] and math.isnan(got[0][0])
    assert got[1:] == [(math.inf, -math.inf), (None, 2.0)] and got[0][1] == 1


def test_names_of_columns_are_told_apart(tmp_path: Path) -> None:
    names = ["loss", "Loss", "loss", "", "loss_1", 7, 'a"b', "ä", "x" * 300, "\ud800"]
    found, path = made(tmp_path, json.dumps({"columns": names, "data": [list(range(len(names)))]}))
    assert found.fields is not None
    assert [f["name"] for f in found.fields] == [*names[:5], "7", *names[6:9], "\\ud800"]
    columns = duckdb.sql(f"select * from read_parquet('{path}')").columns
    assert columns == [f["column"] for f in found.fields] and len({c.lower() for c in columns}) == len(names)
    assert columns[:5] == ["loss", "Loss_2", "loss_3", "column_3", "loss_1"]
    assert rows(path)[1] == [tuple(range(len(names)))]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"columns": ["a"], "data": [[1], [1, 2]]}', "not all of the same length"),
        ('{"columns": ["a", "b"], "data": [[1]]}', "names 2 columns, its rows have 1"),
        ('{"columns": ["a"], "data": [1]}', "a row that is no list"),
        ('{"data": [[1]]}', "no list of `columns`"),
        ('{"columns": [], "data": []}', "no columns"),
        ('{"columns": ["a"], "data": [[1', "no JSON"),
        ('{"columns": ["a"], "data": [[1] [2]]}', "no JSON of a table"),
        ("[]", "no JSON of a table"),
        ("", "no JSON of a table"),
        (b'{"columns": ["\xff"], "data": []}', "no UTF-8"),
        ('{"columns": ["a"], "data": [' + "[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_table_says_why(tmp_path: Path, text: str | bytes, why: str) -> None:
    found, path = made(tmp_path, text)
    assert found.row_count is None and found.fields is None and why in (found.note or "")
    assert not path.exists() and not list(tmp_path.rglob("*.tmp"))


def test_a_table_without_rows_has_columns(tmp_path: Path) -> None:
    found, path = made(tmp_path, '{"columns": ["a", "b"], "data": [ ], "nrows": 0}')
    assert found.row_count == 0 and rows(path) == (["VARCHAR", "VARCHAR"], [])


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
cells = st.recursive(values, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.lists(st.tuples(cells, cells, values), max_size=8), chunk=st.integers(1, 40), spaced=st.booleans())
def test_every_cell_comes_back_wherever_the_text_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: list[Any], chunk: int, spaced: bool
) -> None:
    monkeypatch.setattr(tablefiles, "_CHUNK", chunk)
    monkeypatch.setattr(tablefiles, "_BATCH_ROWS", 3)
    text = json.dumps({"x": [1], "data": data, "columns": ["a", "b", "c"], "nrows": 12}, indent=1 if spaced else None)
    found, path = made(tmp_path, text)
    assert found.row_count == len(data) and found.fields is not None
    got = rows(path)[1]
    for expected, row in zip(data, got, strict=True):
        for field, value, cell in zip(found.fields, expected, row, strict=True):
            read = json.loads(cell) if "exact" in field and cell is not None else cell
            assert read == value and (value is None or "exact" not in field or type(read) is type(value))


PEAK = """
import sys
from pathlib import Path
from mirror.store.layout import Layout
from mirror.store.tablefiles import convert
from costs import peak_kb
before = peak_kb()
print(convert(Layout(sys.argv[1]), sys.argv[2]).row_count, peak_kb() - before)
"""


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    layout, peaks = Layout(tmp_path), []
    for n in (240_000, 480_000):  # more than a row group, and twice that
        with incoming(layout.blobs) as place:
            place.write(b'{"columns": ["i", "v", "text", "box"], "data": [[0, 0.5, "", null]')
            for start in range(1, n, 1000):
                rest = [[i, i / 7, f"text {i}", {"x": i}] for i in range(start, min(start + 1000, n))]
                place.write(b"," + json.dumps(rest).encode()[1:-1])
            place.write(b"]}")
            sha256 = place.keep().sha256
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path), sha256],
            env=environ(),
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        count, peak = map(int, done.stdout.split())
        assert count == n
        peaks.append(peak)
        last = duckdb.sql(f"select * from read_parquet('{table_path(layout.tables, sha256)}') where i = {n - 1}")
        assert last.fetchall() == [(n - 1, (n - 1) / 7, f"text {n - 1}", json.dumps({"x": n - 1}))]
    assert peaks[1] < peaks[0] + 40_000, peaks  # kB; the larger file has 13 MB more of JSON, 80 MB as objects


def test_the_folder_of_tables_opens_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with mirror.open(root, write=True) as m:
        m.put_runs([Run(RunKey("local", "1", "e", "p", "r"))])
    found, path = made(root, '{"columns": ["a"], "data": [[1]]}')
    (tmp_path / "secret.csv").write_text("a\n1\n")
    (root / "near.csv").write_text("a\n1\n")
    with Reader(root) as reader:
        assert execute(reader, f'select * from "table:{path.stem}"').fetchall() == [(1,)]
        for name in ("tables/../near.csv", "tables/../../secret.csv", f"tables/{path.parent.name}/../../near.csv"):
            with pytest.raises(QueryError, match=r"Cannot access|no table"):
                execute(reader, f"select * from '{root}/{name}'").fetchall()
        for write in ("copy (select 1) to '{}'", "with x as (copy (select 1) to '{}') select 1"):
            with pytest.raises(QueryError, match="refused COPY"):
                execute(reader, write.format(path))
    assert found.row_count == 1 and rows(path)[1] == [(1,)]


def test_names_that_differ_in_case_only_are_refused_together(tmp_path: Path) -> None:
    for run_id in ("r", "R"):
        key = RunKey("local", run_id, "e", "p", run_id)
        with mirror.open(tmp_path / "m", write=True) as m:
            m.put_runs([Run(key)])
            blob = made(tmp_path / "m", json.dumps({"columns": ["a"], "data": [[run_id]]}))[1].stem
            m.put_files(key, [FileEntry("t.table.json", sha256=blob)])
            m.put_history(key, [{"_step": 0, "t": {"_type": "table-file", "path": "t.table.json"}}])
    with Reader(tmp_path / "m") as reader:
        assert execute(reader, 'select a from "table:e/p/r:t"').fetchall() == [("r",)]
        with pytest.raises(QueryError, match="differ in case only"):
            execute(reader, 'select a from "table:e/p/R:t"')


def test_a_file_is_made_once(tmp_path: Path) -> None:
    text = '{"columns": ["a"], "data": [[1]]}'
    found, path = made(tmp_path, text)
    stamp = path.stat().st_mtime_ns
    again, same = made(tmp_path, text)
    assert again == found and same == path and path.stat().st_mtime_ns == stamp
    assert path.stem == hashlib.sha256(text.encode()).hexdigest()
