"""`mirror serve --history-exports`: the files themselves, who gets them and when, and what the SDK reads in them."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from serving import Server, client, serving

EXPORTS = (
    'query($r: String!, $k: [String!]!) { project(name: "p", entityName: "local") { run(name: $r) '
    "{ state parquetHistory(liveKeys: $k) { parquetUrls liveData } } } }"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("exports") / "mirror", "--history-exports", "now") as found:
        yield found


def log(server: Server, run: str, rows: list[Any], *, offset: int = 0, finish: bool = True) -> None:
    server.upsert("p", run)
    for start in range(0, len(rows), 20_000):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows[start : start + 20_000]]
        answer = server.stream("p", run, files={"wandb-history.jsonl": {"offset": offset + start, "content": lines}})
        assert answer.ok, answer.text
    if finish:
        assert server.stream("p", run, complete=True, exitcode=0).ok


def asked(server: Server, run: str, keys: tuple[str, ...] = ("_step",)) -> tuple[list[str], list[Any]]:
    found = server.graphql(EXPORTS, r=run, k=list(keys))["project"]["run"]["parquetHistory"]
    return found["parquetUrls"], found["liveData"]


def exported(server: Server, run: str, seconds: float = 300) -> list[str]:
    """The links, once the run's lines are in segments."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        links, live = asked(server, run)
        if links and not live:
            return links
        time.sleep(0.05)
    raise AssertionError("no export came")


def fetched(link: str, **headers: str) -> pq.ParquetFile:
    """As W&B's readers fetch it: without a key."""
    answer = requests.get(link, headers=headers, timeout=300)
    assert answer.status_code == 200, answer.text
    return pq.ParquetFile(io.BytesIO(answer.content))


def folders(server: Server) -> list[Path]:
    return sorted((server.root / "exports").glob("*/*"))


# The files


def test_the_shape_of_a_file(server: Server) -> None:
    picture = {"_type": "image-file", "path": "media/x.png", "size": 7}
    rows = [
        {"_step": 0, "_timestamp": 1.7e9, "loss": 0.5, "n": 1, "ok": True, "word": "é", "a": {"b": {"c": 1.5}}},
        {"_step": 1, "_timestamp": 1.7e9 + 1, "loss": 2, "mixed": 1.5, "list": [1, 2.5], "picture": picture},
        {"_step": 2, "mixed": "x", "list": [3], "picture": picture | {"caption": "c"}, "odd": [1, "x"], "none": None},
        {
            "_step": 5,
            "mixed": True,
            "odd": {"_type": "t"},
            "h": {"_type": "histogram", "values": [1], "bins": [0.5, 1]},
        },
        '{"_step": 6, "loss": NaN, "mixed": [1], "n": 9007199254740993}',
    ]
    log(server, "shape", rows)
    [link] = exported(server, "shape")
    file = fetched(link)
    group = file.metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert {c.compression for c in columns} == {"SNAPPY"}
    assert all(c.has_dictionary_page for c in columns if c.physical_type in ("DOUBLE", "INT64", "BYTE_ARRAY"))
    types = {field.name: field.type for field in file.schema_arrow}
    number = pa.float64()
    assert types == {
        "_step": pa.int64(),
        "_timestamp": number,
        "loss": number,
        "n": pa.int64(),
        "ok": pa.bool_(),
        "word": pa.string(),
        "a.b.c": number,
        "mixed": pa.struct(
            [
                ("_type_bool", pa.bool_()),
                ("_type_list", pa.list_(pa.field("element", pa.int64()))),
                ("_type_number", number),
                ("_type_string", pa.string()),
            ]
        ),
        "list": pa.list_(pa.field("element", number)),
        "picture": pa.struct(
            [("_type", pa.string()), ("path", pa.string()), ("size", pa.int64()), ("caption", pa.string())]
        ),
        "odd": pa.struct([("_type_list", pa.string()), ("_type_map", pa.struct([("_type", pa.string())]))]),
        "none": number,
        "h": pa.struct(
            [
                ("_type", pa.string()),
                ("values", pa.list_(pa.field("element", pa.int64()))),
                ("bins", pa.list_(pa.field("element", number))),
            ]
        ),
    }
    held = file.read().to_pylist()
    assert [row["_step"] for row in held] == [0, 1, 2, 5, 6]
    assert [row["loss"] for row in held[:4]] == [0.5, 2.0, None, None] and held[4]["loss"] != held[4]["loss"]
    assert [row["n"] for row in held] == [1, None, None, None, 2**53 + 1]
    assert [row["a.b.c"] for row in held] == [1.5, None, None, None, None]
    nothing = {"_type_bool": None, "_type_list": None, "_type_number": None, "_type_string": None}
    assert [row["mixed"] for row in held] == [
        None,
        nothing | {"_type_number": 1.5},
        nothing | {"_type_string": "x"},
        nothing | {"_type_bool": True},
        nothing | {"_type_list": [1]},
    ]
    assert [row["list"] for row in held] == [None, [1.0, 2.5], [3.0], None, None]
    assert held[1]["picture"] == picture | {"caption": None} and held[2]["picture"]["caption"] == "c"
    assert json.loads(held[2]["odd"]["_type_list"]) == [1, "x"] and held[3]["odd"]["_type_map"] == {"_type": "t"}


def test_a_run_without_rows_is_a_file_without_columns(server: Server) -> None:
    log(server, "norows", [])
    [link] = exported(server, "norows")
    metadata = fetched(link).metadata
    assert (metadata.num_columns, metadata.num_rows) == (0, 0)
    assert metadata.metadata[b"wandb-compacted"] == b"true"


def test_rows_lie_in_order_of_steps(server: Server) -> None:
    """As readers that stop behind a range expect it; rows of one step stay in logged order."""
    steps = [0, 1, 2, 0, 1, 2, 7, 1]
    log(server, "backwards", [{"_step": step, "n": n} for n, step in enumerate(steps)])
    [link] = exported(server, "backwards")
    held = fetched(link).read().to_pylist()
    assert [(row["_step"], row["n"]) for row in held] == sorted((step, n) for n, step in enumerate(steps))


@pytest.mark.slow
def test_a_large_run_has_several_files_and_takes_no_memory(server: Server) -> None:
    rows = 410_000
    log(server, "large", [f'{{"_step":{i},"_timestamp":{1.7e9 + i},"x":{i / 7},"l":[{i}]}}' for i in range(rows)])
    server.stop()  # what the run cost while it was logged is not looked at here
    server.start()
    shutil.rmtree(server.root / "exports", ignore_errors=True)
    log(server, "small", [{"_step": 0, "l": [1]}])
    exported(server, "small")
    assert server.process
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    links = exported(server, "large", 120)
    assert process.memory_info().rss - before < 120e6
    assert len(links) == 3
    held = pa.concat_tables(fetched(link).read() for link in links)
    held = held.sort_by("_step")
    assert held["_step"].to_pylist() == list(range(rows))
    assert held["x"].to_pylist() == [i / 7 for i in range(rows)]
    assert held["l"].to_pylist()[::1000] == [[i] for i in range(0, rows, 1000)]
    assert len({tuple(link.split("?")[0] for link in asked(server, "large")[0]) for _ in range(30)}) > 1


# Who gets them


def test_links_are_signed_and_good_for_ranges(server: Server) -> None:
    log(server, "signed", [{"_step": i, "x": i / 3} for i in range(100)])
    [link] = exported(server, "signed")
    whole = requests.get(link, timeout=300)
    assert whole.status_code == 200 and whole.content[:4] == whole.content[-4:] == b"PAR1"
    size = len(whole.content)
    first = requests.get(link, headers={"Range": "bytes=0-0"}, timeout=300)
    assert (first.status_code, first.content, first.headers["content-range"]) == (206, b"P", f"bytes 0-0/{size}")
    tail = requests.get(link, headers={"Range": f"bytes={size - 8}-{size - 1}"}, timeout=300)
    assert (tail.status_code, tail.content) == (206, whole.content[-8:])
    head = requests.head(link, timeout=300)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")
    with_a_key = requests.get(link, auth=("api", server.key), timeout=300)  # as the SDK sends it along
    assert with_a_key.content == whole.content

    bare, query = link.split("?")
    assert requests.get(bare, timeout=300).status_code == 403
    assert requests.get(bare, auth=("api", server.key), timeout=300).status_code == 403
    assert requests.get(link[:-1] + ("0" if link[-1] != "0" else "1"), timeout=300).status_code == 403
    late = query.replace("expires=", "expires=9")
    assert requests.get(f"{bare}?{late}", timeout=300).status_code == 403
    other = bare.replace("/0.parquet", "/1.parquet")
    assert requests.get(f"{other}?{query}", timeout=300).status_code == 403
    assert requests.put(link, data=b"x", timeout=300).status_code in (404, 405)


def test_an_export_that_was_deleted_is_made_again(server: Server) -> None:
    log(server, "again", [{"_step": i, "x": i / 3} for i in range(50)])
    [link] = exported(server, "again")
    rows = fetched(link).read()
    for folder in folders(server):
        shutil.rmtree(folder)
    assert fetched(link).read() == rows


def test_a_deleted_run_has_no_export(server: Server) -> None:
    log(server, "gone", [{"_step": 0, "x": 1}])
    [link] = exported(server, "gone")
    found = server.graphql('{ project(name: "p", entityName: "local") { run(name: "gone") { id } } }')
    delete = "mutation($i: DeleteRunInput!) { deleteRun(input: $i) { success } }"
    server.graphql(delete, i={"id": found["project"]["run"]["id"]})
    assert requests.get(link, timeout=300).status_code == 404
    held = [folder for folder in folders(server) if f"/exports/{folder.parent.name}/{folder.name}/" in link]
    assert len(held) == 1
    log(server, "next", [{"_step": 0}])
    exported(server, "next")
    assert not held[0].exists()  # it went with the next export


def test_they_come_when_they_are_due(tmp_path: Path) -> None:
    with serving(tmp_path / "mirror", "--history-exports", "after 3") as server:
        began = time.monotonic()
        log(server, "run", [{"_step": 0, "x": 1}])
        found = asked(server, "run")
        assert found == ([], []) or time.monotonic() - began > 3
        assert len(exported(server, "run")) == 1
        assert time.monotonic() - began > 2.9
        server.stop()
        server.options = ()
        server.start()
        assert asked(server, "run") == ([], [])  # off unless asked for


# What the SDK reads

READ = """
import json, sys, pathlib
import pyarrow.parquet as pq
import wandb
run = wandb.Api(timeout=300).run("local/p/" + sys.argv[1])
target = pathlib.Path(sys.argv[2])
def rows(scan):
    return [row for row in scan]
found = {"scan": rows(run.scan_history(use_cache=False)), "beta": rows(run.beta_scan_history(use_cache=False)),
         "keys": rows(run.scan_history(keys=["_step", "x"], use_cache=False)),
         "part": rows(run.scan_history(min_step=2, max_step=6, page_size=2, use_cache=False))}
try:
    done = run.download_history_exports(target)
    found["download"] = [row for path in done.paths for row in pq.read_table(path).to_pylist()]
    found["live"] = done.contains_live_data
except Exception as error:
    found["download"] = type(error).__name__
    done = run.download_history_exports(target, require_complete_history=False)
    found["parts"] = [row for path in done.paths for row in pq.read_table(path).to_pylist()]
    found["live"] = done.contains_live_data
print(json.dumps(found))
"""


def read(server: Server, run: str, place: Path) -> dict[str, Any]:
    found: dict[str, Any] = client(server, READ, run, str(place))
    return found


def test_the_sdk_reads_an_ended_run_and_one_that_went_on(server: Server, tmp_path: Path) -> None:
    rows = [{"_step": i, "x": i / 4} for i in range(8)]
    log(server, "sdk", rows[:5])
    exported(server, "sdk")
    found = read(server, "sdk", tmp_path / "ended")
    for road in ("scan", "beta", "keys", "download"):
        assert found[road] == rows[:5], road
    assert (found["part"], found["live"]) == (rows[2:5], False)

    # It goes on: five rows are in the export, three are live, and every reader finds each of them once.
    log(server, "sdk", rows[5:], offset=5, finish=False)
    links, live = asked(server, "sdk", ("_step", "x", "never"))
    assert len(links) == 1 and live == rows[5:]
    found = read(server, "sdk", tmp_path / "live")
    for road in ("scan", "beta", "keys"):
        assert found[road] == rows, road
    assert found["part"] == rows[2:6]
    assert (found["download"], found["parts"], found["live"]) == ("IncompleteRunHistoryError", rows[:5], True)
    query = '{ project(name: "p", entityName: "local") { run(name: "sdk") { history(minStep: 0, maxStep: 9) } } }'
    assert len(server.graphql(query)["project"]["run"]["history"]) == 8  # who reads no exports gets all rows

    assert server.stream("p", "sdk", complete=True, exitcode=0).ok
    exported(server, "sdk")
    found = read(server, "sdk", tmp_path / "ended again")
    for road in ("scan", "beta", "keys", "download"):
        assert found[road] == rows, road


def test_the_sdk_reads_a_run_that_never_ended(server: Server, tmp_path: Path) -> None:
    rows = [{"_step": i, "x": i / 4} for i in range(3)]
    log(server, "running", rows, finish=False)
    assert asked(server, "running") == ([], [])
    found = read(server, "running", tmp_path / "running")
    for road in ("scan", "beta", "keys"):
        assert found[road] == rows, road
    assert found["download"] == []
