"""Results in every format: exact, streamed, whole or not at all, and harmless on a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import asking
import costs
import duckdb
import orjson
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirror.errors import MirrorError, UsageError
from mirror.query.export import FORMATS, format_of, replacing, unique, write
from mirror.query.sql import Result, execute
from mirror.query.text import aligned, cell, plain, safe
from mirror.store import Reader

EVERYTHING = """
select * from (values
  (1::bigint, 9007199254740993::bigint, 2::hugeint ** 90, 0.1::double, 1.50::decimal(10, 2), 'plain', true,
   '2025-01-31 12:00:00.123456+00'::timestamptz, '2025-01-31'::date, [1.5, 'nan'::double], {'a': 1, 'b': 'x'},
   '{"k": [1, 1.0]}'::json, '\\xAA'::blob),
  (-1, null, 170141183460469231731687303715884105727, 'nan'::double, null, 'a,"b"\ttab\nline\\', false, null, null,
   null, null, null, null),
  (9223372036854775807, 0, -5, '-inf'::double, 0.00, '', null, '2025-06-01 00:00:00+02'::timestamptz, '0001-01-01',
   [], {'a': null, 'b': ''}, 'null', ''::blob)
) t(i, n, huge, f, d, s, b, ts, day, list, struct, doc, bytes)
"""
EVERYTHING = EVERYTHING.replace("2::hugeint ** 90", "1237940039285380274899124224::hugeint")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asking.fill(tmp_path_factory.mktemp("export") / "m")


@pytest.fixture(scope="module")
def everything(root: Path) -> Result:
    return execute(Reader(root), EVERYTHING)


def written(result: Result, format: str) -> bytes:
    out = io.BytesIO()
    assert write(result, format, out, seekable=True) == len(result.fetchall())
    return out.getvalue()


def test_csv(everything: Result) -> None:
    text = written(everything, "csv").decode()
    assert text.splitlines()[0] == "i,n,huge,f,d,s,b,ts,day,list,struct,doc,bytes"
    first, second, third = list(csv.reader(io.StringIO(text)))[1:]
    assert first == [
        "1", "9007199254740993", "1237940039285380274899124224", "0.1", "1.50", "plain", "true",
        "2025-01-31T12:00:00.123456Z", "2025-01-31", '[1.5,"NaN"]', '{"a":1,"b":"x"}', '{"k": [1, 1.0]}', "aa",
    ]  # fmt: skip
    assert second[2:7] == ["170141183460469231731687303715884105727", "NaN", "", 'a,"b"\ttab\nline\\', "false"]
    assert third[3] == "-Infinity" and third[7] == "2025-05-31T22:00:00Z" and third[8] == "0001-01-01"
    # NULL and an empty string stay apart, for readers that look.
    assert ',0.00,"",,' in text and ',NaN,,"a,' in text


def test_csv_reads_back_in_duckdb(everything: Result, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(written(everything, "csv"))
    read = f"from read_csv('{tmp_path}/x.csv', columns = {{'i': 'BIGINT', 'n': 'BIGINT', 'huge': 'HUGEINT', 'f': 'DOUBLE', 'd': 'DECIMAL(10,2)', 's': 'VARCHAR', 'b': 'BOOLEAN', 'ts': 'TIMESTAMPTZ', 'day': 'DATE', 'list': 'VARCHAR', 'struct': 'VARCHAR', 'doc': 'VARCHAR', 'bytes': 'VARCHAR'}}, header = true, allow_quoted_nulls = false, escape = '\"', quote = '\"') select i, n, huge, lower(f::varchar), d, s, b, ts, day"  # noqa: E501
    there = duckdb.connect()
    there.execute("set TimeZone = 'UTC'")
    expected = [(*r[:3], plain(r[3]).replace("Infinity", "inf").lower(), *r[4:9]) for r in everything.fetchall()]
    assert [tuple(r) for r in there.execute(read).fetchall()] == expected


def test_csv_of_one_column_keeps_its_rows(root: Path) -> None:
    result = execute(Reader(root), "select * from (values ('a'), (null), ('b')) t(x)")
    assert written(result, "csv") == b'x\na\n""\nb\n'


def test_tsv(everything: Result) -> None:
    rows = [line.split("\t") for line in written(everything, "tsv").decode().split("\n")]
    assert rows[-1] == [""] and len(rows) == 5 and {len(r) for r in rows[:-1]} == {13}
    assert rows[2][1] == "\\N" and rows[2][5] == 'a,"b"\\ttab\\nline\\\\' and rows[3][5] == ""


@pytest.mark.parametrize("format", ["json", "jsonl"])
def test_json(everything: Result, format: str) -> None:
    text = written(everything, format).decode()
    found = json.loads(text, parse_float=Decimal) if format == "json" else [
        json.loads(line, parse_float=Decimal) for line in text.splitlines()
    ]  # fmt: skip
    assert found[0] == {
        "i": 1, "n": 9007199254740993, "huge": 1237940039285380274899124224, "f": Decimal("0.1"), "d": Decimal("1.50"),
        "s": "plain", "b": True, "ts": "2025-01-31T12:00:00.123456Z", "day": "2025-01-31",
        "list": [Decimal("1.5"), "NaN"],
        "struct": {"a": 1, "b": "x"}, "doc": {"k": [1, Decimal("1.0")]}, "bytes": "aa",
    }  # fmt: skip
    assert found[1]["huge"] == 2**127 - 1 and found[1]["f"] == "NaN" and found[1]["s"] == 'a,"b"\ttab\nline\\'
    assert found[2]["f"] == "-Infinity" and found[2]["doc"] is None and found[2]["list"] == []
    if format == "jsonl":
        assert all(orjson.loads(line) for line in text.splitlines())


def test_an_empty_result_is_still_a_file_of_its_format(root: Path) -> None:
    empty = execute(Reader(root), "select 1 as a where false")
    assert written(empty, "csv") == b"a\n"
    assert json.loads(written(empty, "json")) == []
    assert written(empty, "jsonl") == b""
    assert pq.read_table(io.BytesIO(written(empty, "parquet"))).schema.names == ["a"]


def test_parquet_and_arrow(everything: Result) -> None:
    expected = everything.fetchall()
    for table in (
        pq.read_table(io.BytesIO(written(everything, "parquet"))),
        pa.ipc.open_file(written(everything, "arrow")).read_all(),
    ):
        assert table.schema.field("ts").type == pa.timestamp("us", tz="UTC")
        rows = [tuple(r.values()) for r in table.to_pylist()]
        assert rows[1][:3] == expected[1][:3] and rows[1][3] != rows[1][3]
        assert [r[:3] + r[4:9] for r in rows] == [r[:3] + r[4:9] for r in expected]
    assert polars.read_ipc(io.BytesIO(written(everything, "arrow")))["n"].to_list() == [9007199254740993, None, 0]


def test_columns_of_the_same_name_are_told_apart(root: Path) -> None:
    result = execute(Reader(root), "select 1 as a, 2 as a, 3 as a_1")
    assert json.loads(written(result, "json")) == [{"a": 1, "a_1": 2, "a_1_1": 3}]
    assert pq.read_table(io.BytesIO(written(result, "parquet"))).schema.names == ["a", "a_1", "a_1_1"]
    assert unique(["x", "x", "x"]) == ["x", "x_1", "x_2"]


def test_formats_by_suffix() -> None:
    assert [format_of(Path(f"x.{s}")) for s in ("csv", "TSV", "ndjson", "feather", "pq")] == [
        "csv",
        "tsv",
        "jsonl",
        "arrow",
        "parquet",
    ]
    with pytest.raises(UsageError, match=r"cannot tell a format from `x.xlsx`: add --format csv\|"):
        format_of(Path("x.xlsx"))


def test_a_file_appears_whole_or_not_at_all(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.csv"
    target.write_text("what was there")
    breaking = execute(
        Reader(root), "select case when i < 50000 then i else error('broken') end from range(90000) t(i)"
    )
    with pytest.raises(MirrorError, match="broken"), replacing(target) as out:
        write(breaking, "csv", out)
    assert target.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [target]
    missing = r"cannot write `/nowhere/x.csv`: No such file or directory; choose another"
    with pytest.raises(MirrorError, match=missing), replacing(Path("/nowhere/x.csv")):
        pass
    with replacing(Path("/dev/null")) as out:
        out.write(b"x")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(MirrorError, match="cannot write `/dev/full`: No space left on device"),
        replacing(Path("/dev/full")) as out,
    ):
        out.write(b"x" * 100_000)


_BIG = """
import sys
from pathlib import Path
from mirror.query.export import replacing, write
from mirror.query.sql import execute
from mirror.store import Reader
from costs import peak_kb
result = execute(Reader(sys.argv[1]), f"select i, md5(i::varchar) as h, i / 7 as x from range({sys.argv[4]}) t(i)")
with replacing(Path(sys.argv[3])) as out:
    assert write(result, sys.argv[2], out, seekable=True) == int(sys.argv[4])
print(peak_kb() / 1024)
"""


@pytest.mark.parametrize("format", FORMATS)
def test_big_results_are_written_with_flat_memory(root: Path, tmp_path: Path, format: str) -> None:
    used = []
    for rows in ("200000", "600000"):  # more than a row group, and three times that
        command = [sys.executable, "-c", _BIG, str(root), format, str(tmp_path / f"x.{format}"), rows]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=costs.environ())
        used.append(float(done.stdout))
    assert used[1] < used[0] + 40, used


def test_plain_text_of_values() -> None:
    assert [plain(v) for v in (0.1, 1e22, 5e-324, -0.0, float("inf"), 1, True, Decimal("1E+3"))] == [
        "0.1", "1e+22", "5e-324", "-0.0", "Infinity", "1", "true", "1000",
    ]  # fmt: skip
    assert plain(datetime(2025, 1, 1, tzinfo=timezone.utc)) == "2025-01-01T00:00:00Z"
    assert plain(datetime(2025, 1, 1)) == "2025-01-01T00:00:00"
    assert plain({"a": [1, float("nan")]}) == '{"a":[1,"NaN"]}'
    assert cell(None) == ""


# -- on a terminal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", asking.HOSTILE)
def test_safe_leaves_nothing_that_acts(text: str) -> None:
    shown = safe(text)
    assert shown.isprintable() and "\n" not in shown


def test_safe_leaves_plain_text_alone() -> None:
    for text in ("plain", "ünïcødé 漢字", "👩‍🔬 emoji", "[/red]", "a  b"):
        assert safe(text) == text


def test_aligned_columns() -> None:
    lines = list(aligned(["name", "n"], ["VARCHAR", "BIGINT"], [("漢字", 5), ("a\nb", 12345), (None, None)]))
    assert lines == ["name      n", "----  -----", "漢字      5", "a\\nb  12345", ""]


def test_aligned_columns_stream() -> None:
    def rows() -> Iterator[tuple[Any, ...]]:
        for i in range(10):
            yield (f"{'x' * i}",)
        raise AssertionError("read further than asked")

    lines = aligned(["a"], ["VARCHAR"], rows(), look_ahead=5)
    assert [next(lines) for _ in range(8)][2:] == ["", "x", "xx", "xxx", "xxxx", "xxxxx"]


def on_terminal(command: list[str], columns: int = 80, env: dict[str, str] | None = None) -> str:
    """What a command writes to a real pseudo terminal."""
    main, child = pty.openpty()
    full = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"} | (env or {})
    process = subprocess.Popen(command, stdout=child, stdin=child, stderr=child, env=full, close_fds=True)
    os.close(child)
    chunks = []
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    process.wait(300)
    os.close(main)
    return b"".join(chunks).decode()


@pytest.mark.parametrize("format", ["table", "csv", "tsv", "json", "jsonl"])
@pytest.mark.parametrize("columns", [30, 120])
def test_nothing_from_outside_acts_on_a_terminal(root: Path, format: str, columns: int) -> None:
    query = "select name, notes, config from runs where project = 'hostile' order by run_id"
    command = [sys.executable, "-m", "mirror", "sql", query, "--mirror", str(root), "--format", format]
    shown = on_terminal(command, columns)
    styles = ["\x1b[0m", "\x1b[1m", "\x1b[2m"]  # the table's own
    for style in styles:
        shown = shown.replace(style, "")
    assert "\x1b" not in shown and "\x07" not in shown and "\x9b" not in shown and "‮" not in shown
    squeezed = "".join(shown.split())
    assert "[/red]" in squeezed and "[bold]x[/bold]" in squeezed
    assert "x1b]0;x" in squeezed or "u001b]0;x" in squeezed


def test_a_table_on_a_terminal_shows_the_first_thousand_rows(root: Path) -> None:
    command = [sys.executable, "-m", "mirror", "sql", "select i from range(2500) t(i)", "--mirror", str(root)]
    shown = on_terminal(command)
    assert "... and 1,500 more rows; --format csv or -o FILE gives all of them" in shown
    assert " 999" in shown and " 1000" not in shown
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2502, "and all of them where nobody looks"


def test_binary_formats_stay_off_the_terminal(root: Path) -> None:
    command = [sys.executable, "-m", "mirror", "sql", "select 1", "--mirror", str(root), "--format", "parquet"]
    assert "Error: parquet is binary" in on_terminal(command)
    done = subprocess.run(command, capture_output=True, check=True)
    assert pq.read_table(io.BytesIO(done.stdout)).to_pylist() == [{"1": 1}]


def test_wide_tables_are_shown_row_by_row(root: Path) -> None:
    command = [sys.executable, "-m", "mirror", "sql", "select * from runs limit 1", "--mirror", str(root)]
    shown = on_terminal(command, 100)
    assert "- row 1" in shown and "run_id" in shown


def test_numbers_are_never_cut(root: Path) -> None:
    query = "select 0.12345678901234568e0 as x, repeat('long ', 60) as s, 123456789012345678 as n"
    command = [sys.executable, "-m", "mirror", "sql", query, "--mirror", str(root)]
    shown = on_terminal(command, 80)
    assert "0.12345678901234568" in shown and "123456789012345678" in shown
