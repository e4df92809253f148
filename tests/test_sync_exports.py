"""`mirror sync` by Parquet history exports: the same cells as by rows, faster, and never worse than rows."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from liar import Answer, Request
from serving import Server, serving
from syncing import Copy, Proxy, log_run, operation_of, same

from mirror.records import Fetched, Run, RunKey
from mirror.store import Writer

pytestmark = pytest.mark.slow
ROWS = 12_000


def metrics(n: int, start: int = 0) -> list[dict[str, Any]]:
    """What an export can tell apart: numbers, booleans and texts, some keys missing; integral floats as the SDK
    writes them, as integers."""
    rnd = random.Random(start)
    rows = []
    for i in range(start, start + n):
        row: dict[str, Any] = {
            "_step": 3 * i,
            "_timestamp": 1.7e9 + i / 8 + 0.01,
            "_runtime": i // 8,
            "loss": rnd.random(),
        }
        row |= {"épöch/%": i // 10, "flag": i % 3 == 0, "text": f"tëxt {i % 5}\n\"'"}
        if i % 7 == 0:
            row["sparse"] = rnd.gauss(0, 1e10)
        if i % 11 == 0:
            row["big"] = 2**60 + i
        if i % 500 == 0:
            row["odd"] = [1e300, 5e-324, -1.5, 123456789012][i // 500 % 4]
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "m", "--history-exports", "now") as server:
        log_run(server, "plain", "r1", metrics(ROWS))
        exported(server, "plain")
        log_run(server, "nested", "r1", [row | {"d": {"a": 1}, "nil": None} for row in metrics(6000)])
        yield server


def exported(server: Server, project: str) -> None:
    """Wait until the run has its export."""
    query = """query Q($p: String!) { project(name: $p, entityName: "local") { run(name: "r1") {
        parquetHistory(liveKeys: ["_step"]) { parquetUrls } } } }"""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if server.graphql(query, p=project)["project"]["run"]["parquetHistory"]["parquetUrls"]:
            return
        time.sleep(0.1)
    raise AssertionError("no export")


def is_export(request: Request) -> bool:
    return request.method == "GET" and ".parquet" in request.path


def road(copy: Copy, project: str) -> tuple[Any, ...]:
    [found] = copy.sql(
        "select history_road, history_complete, history_rows, history_lossless from runs where project = ?", project
    )
    return found


def test_an_export_gives_the_cells_that_rows_give(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    export, rows = Copy(tmp_path / "export", proxy.url, server.key), Copy(tmp_path / "rows", proxy.url, server.key)
    export.sync("local/plain")
    assert road(export, "plain") == ("export", True, ROWS, True)
    assert not [r for r in proxy.requests if operation_of(r) == "RunRows" and "history(" in r.json["query"]]
    same(export.rows("plain", "r1"), metrics(ROWS))
    without(proxy)
    rows.sync("local/plain")
    assert road(rows, "plain")[0] == "rows"
    columns = "key, path_id, row, step, ts, kind, v, j"
    for table in ("history", "metric"):
        order = columns if table == "history" else "key, path_id, n, n_number, n_int, n_bool, n_string, last_v, min_v"
        query = f"select {order} from raw.{table}_live order by 1, 2, 3, 4"
        assert export.sql(query) == rows.sql(query)


def without(proxy: Proxy) -> None:
    """A server that makes no exports."""

    def none(request: Request, body: Any) -> Any:
        if operation_of(request) == "Exports":
            body["data"]["project"]["run"]["parquetHistory"] = {"parquetUrls": [], "liveData": []}
        return body

    proxy.after = none


def test_a_history_that_an_export_cannot_tell_goes_by_rows(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/nested")
    assert road(copy, "nested") == ("rows", True, 6000, True)
    same(copy.rows("nested", "r1"), [row | {"d": {"a": 1}, "nil": None} for row in metrics(6000)])


@pytest.mark.parametrize(
    "answer",
    [Answer(404, b""), Answer(200, b"PAR1 rubbish"), Answer(200, b""), "cut", "fewer"],
    ids=["gone", "rubbish", "empty", "cut", "fewer rows"],
)
def test_an_export_that_cannot_be_had_leaves_the_rows(
    proxy: Proxy, server: Server, tmp_path: Path, answer: Answer | str
) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)

    def broken(request: Request) -> Answer | None:
        if not is_export(request):
            return None
        if isinstance(answer, Answer):
            return answer
        whole = requests.get(server.url + request.path, timeout=300).content
        if answer == "cut":
            return Answer(200, whole[: len(whole) // 2] + whole[-2000:])
        return Answer(200, _fewer(whole))

    proxy.before = broken
    copy.sync("local/plain")
    found = road(copy, "plain")
    assert found[1:3] == (True, ROWS)
    assert found[0] == ("export, rows" if answer == "fewer" else "rows")
    same(copy.rows("plain", "r1"), metrics(ROWS))


def _fewer(whole: bytes) -> bytes:
    """The export without its last 100 rows: what it was before the run went on."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    out = pa.BufferOutputStream()
    pq.write_table(pq.read_table(io.BytesIO(whole)).slice(0, ROWS - 100), out)
    return bytes(out.getvalue().to_pybytes())


def test_a_run_resumed_after_its_export_loses_nothing(server: Server, tmp_path: Path) -> None:
    """Also one that starts again at step 0, with rows equal to those that are exported."""
    first = metrics(6000)
    log_run(server, "resumed", "r1", first)
    exported(server, "resumed")
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/resumed")
    assert road(copy, "resumed")[0] == "export"
    again = [*metrics(50, 6000), *first[:200]]
    log_run(server, "resumed", "r1", again, offset=6000)
    copy.sync("local/resumed")
    fresh = Copy(tmp_path / "fresh", server.url, server.key)
    fresh.sync("local/resumed")
    logged = sorted([*first, *again], key=lambda row: row["_step"])
    for one in (copy, fresh):
        assert road(one, "resumed")[1:3] == (True, 6250)
        held, expected = ([json.dumps(r, sort_keys=True) for r in rows] for rows in (one.rows("resumed", "r1"), logged))
        assert sorted(held) == sorted(expected)


def test_cells_of_a_real_export() -> None:
    """Shapes W&B writes: steps as DOUBLE, columns without a name of their own, several row groups."""
    import pyarrow as pa

    from mirror.store.cells import rows_as_dicts
    from mirror.store.exports import cells_of

    union = pa.struct([("_type_number", pa.float64()), ("_type_string", pa.string())])
    batch = pa.record_batch(
        {
            "_step": pa.array([0.0, 1.0, 2.0]),
            "Unnamed: 0": pa.array([1, None, 3], pa.int64()),
            "mixed": pa.array([{"_type_number": 2.0}, {"_type_string": "x"}, None], union),
            "list": pa.array([[1.0, 2.5], None, []], pa.list_(pa.float64())),
            "media": pa.array([None, {"_type": "image-file", "width": 3.0, "path": None}, None]),
            "nan": pa.array([float("nan"), float("inf"), None]),
        }
    )
    cells = cells_of(batch)
    rows = list(rows_as_dicts(cells.table))
    expected = {"_step": 0, "Unnamed: 0": 1, "mixed": 2, "list": [1, 2.5], "nan": float("nan")}
    assert json.dumps(rows[0], sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert rows[1] == {"_step": 1, "mixed": "x", "media": {"_type": "image-file", "width": 3}, "nan": float("inf")}
    assert rows[2] == {"_step": 2, "Unnamed: 0": 3, "list": []}
    assert (cells.rows, cells.first_step, cells.last_step) == (3, 0, 2)


def test_cells_of_an_export_can_be_written(tmp_path: Path) -> None:
    import pyarrow as pa

    from mirror.store.exports import cells_of

    key = RunKey("s", "id", "e", "p", "r")
    with Writer(tmp_path / "m") as w:
        w.put_run(Run(key))
        w.append(key, "history", cells_of(pa.record_batch({"_step": [0, 1], "a.b": [1.5, None]})))
        w.publish(key, "history", Fetched("history", "export", got=2, total=2))
    copy = Copy(tmp_path / "m", "", "")
    assert copy.rows("p", "r") == [{"_step": 0, "a": {"b": 1.5}}, {"_step": 1}]
