"""The file_stream protocol: offsets, repeats, holes, bad lines, states, and what a `kill -9` of the server leaves."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from serving import Server, serving

from mirror.store import Reader

QUERY = """query($p: String!, $r: String!) { project(name: $p, entityName: "local") { run(name: $r) {
    state historyLineCount eventsLineCount logLineCount historyKeys summaryMetrics history(samples: 1000000)
    events(samples: 1000000) logLines(first: 100000) { edges { node { number line } } } } } }"""

SILENCE = 3.0
"""Seconds after which a run is taken for crashed."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("stream") / "mirror", "--crash-after", str(SILENCE)) as found:
        yield found


def held(server: Server, run: str, project: str = "p") -> dict[str, Any]:
    found: dict[str, Any] = server.graphql(QUERY, p=project, r=run)["project"]["run"]
    return found


def count(server: Server, run: str) -> int:
    """Its rows; 0 while there is no such run."""
    query = """query($r: String!) { project(name: "p", entityName: "local") { run(name: $r) { historyLineCount } } }"""
    found = (server.graphql(query, r=run)["project"] or {}).get("run")
    return int(found["historyLineCount"]) if found else 0


def lines(first: int, n: int, **more: Any) -> list[str]:
    return [json.dumps({"_step": i, "x": i / 3} | more) for i in range(first, first + n)]


def post(server: Server, run: str, offset: int, content: list[str], **more: Any) -> requests.Response:
    files = {"wandb-history.jsonl": {"offset": offset, "content": content}}
    return server.stream("p", run, files=files, **more)


def live_runs(server: Server) -> list[str]:
    """Names of the runs whose lines lie in the spool."""
    found = []
    for path in (server.root / "live").glob("*/run.jsonl"):
        with suppress(FileNotFoundError):  # drained this moment
            found.append(json.loads(path.read_text().splitlines()[-1])["key"]["run_id"])
    return found


def wait_until_drained(server: Server, run: str, seconds: float = 300) -> dict[str, Any]:
    """Wait until the run is in segments, as another process sees it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if run not in live_runs(server):
            return held(server, run)
        time.sleep(0.05)
    raise AssertionError(f"{run} stays live")


def test_a_repeated_offset_never_doubles_a_row(server: Server) -> None:
    server.upsert("p", "repeat")
    rows = lines(0, 10)
    for offset, content in ((0, rows[:4]), (0, rows[:4]), (2, rows[2:6]), (0, rows), (9, rows[9:]), (3, rows[3:5])):
        assert post(server, "repeat", offset, content).json() == {}
    assert held(server, "repeat")["history"] == rows
    assert post(server, "repeat", 5, rows[5:], complete=True, exitcode=0).ok
    found = wait_until_drained(server, "repeat")
    assert [json.loads(t) for t in found["history"]] == [json.loads(t) for t in rows]
    # The last post arrives again after the run has ended: nothing is added, and the run stays as it is.
    assert post(server, "repeat", 5, rows[5:], complete=True, exitcode=0).ok
    found = wait_until_drained(server, "repeat")
    assert (found["historyLineCount"], found["state"]) == (10, "finished")


def test_a_hole_is_refused_and_nothing_is_kept_of_the_post(server: Server) -> None:
    server.upsert("p", "hole")
    assert post(server, "hole", 0, lines(0, 3)).ok
    refused = post(server, "hole", 5, lines(5, 1))
    assert refused.status_code == 409 and "lines 3 to 4" in refused.json()["errors"][0]["message"]
    assert held(server, "hole")["historyLineCount"] == 3
    assert post(server, "hole", 3, lines(3, 3)).ok
    assert held(server, "hole")["history"] == lines(0, 6)


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", "1", "null", '{"a":1}{"b":2}', '{"a":' * 5000, '{"a":1', "{'a':1}", '{"a" 1}', "\x00"]
)
def test_a_line_that_is_no_row_is_refused_by_number(server: Server, line: str) -> None:
    server.upsert("p", "bad")
    refused = post(server, "bad", 0, [*lines(0, 2), line])
    assert refused.status_code == 400, refused.text
    assert "line 2" in refused.json()["errors"][0]["message"]
    assert held(server, "bad")["historyLineCount"] == 0


@pytest.mark.parametrize(
    "body",
    [[], {"files": []}, {"files": {"wandb-history.jsonl": []}}, {"files": {"wandb-history.jsonl": {"content": "x"}}},
     {"files": {"wandb-history.jsonl": {"offset": -1, "content": []}}},
     {"files": {"wandb-history.jsonl": {"offset": "0", "content": []}}},
     {"files": {"wandb-history.jsonl": {"offset": 0, "content": [1]}}},
     {"files": {"wandb-summary.json": {"offset": 0, "content": ["nope"]}}}],
)  # fmt: skip
def test_bad_bodies_are_400(server: Server, body: Any) -> None:
    server.upsert("p", "body")
    refused = server.post("/files/local/p/body/file_stream", body)
    assert refused.status_code == 400 and refused.json()["errors"][0]["message"]


def test_a_run_must_exist(server: Server) -> None:
    refused = post(server, "nobody", 0, lines(0, 1))
    assert refused.status_code == 404 and "local/p/nobody" in refused.json()["errors"][0]["message"]


HOSTILE = [
    '{"_step":0,"nan":NaN,"inf":Infinity,"minf":-Infinity,"text":"NaN","list":[NaN,1]}',
    '{"_step":1,"big":9007199254740993,"huge":123456789012345678901234567890,"e":1e400,"neg":-0.0,"one":1.0}',
    '{"_step":2,"a":{"b":1},"a.b":2,"":3,"tab\\tkey":4,"\\ud83d\\ude00":5,"Case":6,"case":7,"empty":{},"none":null}',
    '{"_step":3,"half":"\\ud800","control":"\\u0000\\u0001"}',
    '{}',
    '{"x":1}',
    '{"_step":1000000000000,"x":2}',
    '{"_step":0,"again":true}',
    '{"_step":2.5,"odd":1}',
    '{"_step":"text","odd":2}',
    '{"_step":4,"_timestamp":1e300,"deep":' + '{"d":' * 70 + "1" + "}" * 70 + "}",
    '{ "_step" : 5 ,\n "spaced" : [ 1 , 2 ] }\n',
    '{"_step":6,"dup":1,"dup":2}',
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal JSON values, NaN included, ints and floats apart."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def test_hostile_rows_are_the_same_live_and_in_segments(server: Server) -> None:
    server.upsert("p", "hostile")
    assert post(server, "hostile", 0, HOSTILE).ok
    want = [json.loads(text) for text in HOSTILE]
    live = held(server, "hostile")
    assert all(same(json.loads(a), b) for a, b in zip(live["history"], want, strict=True))
    assert live["historyKeys"]["lastStep"] == 10**12
    assert post(server, "hostile", len(HOSTILE), [], complete=True, exitcode=0).ok
    drained = wait_until_drained(server, "hostile")
    for got, wanted in zip(drained["history"], want, strict=True):
        assert same(json.loads(got), wanted), (got, wanted)
    assert drained["historyKeys"] == live["historyKeys"]


def test_console_lines_are_rewritten_by_offset(server: Server) -> None:
    server.upsert("p", "console")

    def log(offset: int, *content: str) -> None:
        assert server.stream("p", "console", files={"output.log": {"offset": offset, "content": list(content)}}).ok

    log(0, "start", "10 %")
    log(1, "20 %")
    log(1, "100 %", '{"ts":"2026-11-21T20:04:07.5","level":"error","content":"oh \\u001b[31mno"}')
    log(3, "2026-11-21T20:04:08.000001 plain", "ERROR 2026-11-21T20:04:09 bad", '{"not": "a line"}')
    want = ["start", "100 %", "oh \x1b[31mno", "plain", "bad", '{"not": "a line"}']
    for found in (held(server, "console"), None):
        if found is None:
            assert server.stream("p", "console", complete=True, exitcode=0).ok
            found = wait_until_drained(server, "console")
        assert [e["node"]["line"] for e in found["logLines"]["edges"]] == want
        assert found["logLineCount"] == 6
    with Reader(server.root) as reader:
        query = "select line, level, ts::varchar from logs where run_id = 'console' and ts is not null order by line"
        assert reader.connect().execute(query).fetchall() == [
            (2, "error", "2026-11-21 20:04:07.5+00"),
            (3, None, "2026-11-21 20:04:08.000001+00"),
            (4, "error", "2026-11-21 20:04:09+00"),
        ]


def test_states_follow_the_exit_code(server: Server) -> None:
    for run, more, state in (
        ("ok", {"complete": True, "exitcode": 0}, "finished"),
        ("no", {"complete": True, "exitcode": 255}, "failed"),
        ("pre", {"preempting": True, "complete": True, "exitcode": 1}, "preempted"),
    ):
        server.upsert("p", run)
        assert server.stream("p", run, **more).ok
        assert wait_until_drained(server, run)["state"] == state


def test_a_run_that_falls_silent_crashes_and_one_that_beats_does_not(server: Server) -> None:
    server.upsert("p", "silent")
    server.upsert("p", "beating")
    server.upsert("p", "pending", state="pending")
    end = time.monotonic() + 300
    while held(server, "silent")["state"] == "running":
        assert time.monotonic() < end
        assert server.stream("p", "beating").ok
        time.sleep(0.2)
    assert held(server, "silent")["state"] == "crashed"
    for _ in range(20):
        began = time.monotonic()
        assert server.stream("p", "beating").ok
        state = held(server, "beating")["state"]
        if time.monotonic() - began < SILENCE:  # it was silent no longer than that
            break
    assert state == "running"
    assert held(server, "pending")["state"] == "pending"
    assert server.stream("p", "beating", complete=True, exitcode=0).ok


def test_a_stop_is_passed_on_to_the_client(server: Server) -> None:
    run = server.upsert("p", "stop")
    server.graphql("mutation($id: ID!) { stopRun(input: {id: $id}) { success } }", id=run["id"])
    assert server.stream("p", "stop").json() == {"stopped": True}
    assert server.stream("p", "stop", complete=True, exitcode=0).ok


def test_a_null_leaves_an_attribute_as_it_is(server: Server) -> None:
    server.upsert("p", "nulls", displayName="a", notes="b", tags=["c"], config='{"d":{"value":1}}', groupName="e")
    server.upsert("p", "nulls", displayName=None, notes="new", tags=None, config=None, groupName=None)
    query = (
        """{ project(name: "p", entityName: "local") { run(name: "nulls") { displayName notes tags config group } } }"""
    )
    assert server.graphql(query)["project"]["run"] == {
        "displayName": "a", "notes": "new", "tags": ["c"], "config": '{"d":{"value":1}}', "group": "e"
    }  # fmt: skip
    assert server.stream("p", "nulls", complete=True, exitcode=0).ok


@pytest.mark.parametrize("name", ["a/b", "", "..", "x" * 200, "a#b", "line\nbreak"])
def test_names_that_cannot_stand_in_a_path_are_refused(server: Server, name: str) -> None:
    query = "mutation($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }"
    for field in ("name", "modelName", "entityName"):
        if name == "" and field != "name":
            continue  # an empty project or entity is the default one, as on W&B
        given = {"name": "n", "modelName": "p", "entityName": "local"} | {field: name}
        answer = server.post("/graphql", {"query": query, "variables": {"i": given}}).json()
        assert "cannot be the name" in answer["errors"][0]["message"], answer


def test_a_run_made_by_many_at_once_is_made_once(server: Server) -> None:
    seen: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: seen.append(server.upsert("p", "race"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({s["id"] for s in seen}) == 1 and [s["inserted"] for s in seen].count(True) == 1
    assert server.stream("p", "race", complete=True, exitcode=0).ok


def test_many_rows_are_drained_while_the_run_goes_on(tmp_path: Path) -> None:
    """Past a threshold live lines become segments; rows before and after it are one history."""
    with serving(tmp_path / "mirror") as server:
        server.upsert("p", "long")
        text = "y" * 2000
        rows = lines(0, 12_000, text=text)
        for offset in range(0, 12_000, 2_000):
            assert post(server, "long", offset, rows[offset : offset + 2_000]).ok
        end = time.monotonic() + 300
        while not list((server.root / "data" / "history").rglob("*.parquet")):
            assert time.monotonic() < end
            time.sleep(0.1)
        more = lines(12_000, 50)
        assert post(server, "long", 12_000, more).ok
        found = held(server, "long")
        assert found["historyLineCount"] == 12_050 == len(found["history"])
        assert [json.loads(t)["_step"] for t in found["history"]] == list(range(12_050))
        assert found["historyKeys"]["keys"]["x"]["typeCounts"] == [{"type": "number", "count": 12_050}]
        assert post(server, "long", 12_050, [], complete=True, exitcode=0).ok
        found = wait_until_drained(server, "long")
        assert [json.loads(t)["_step"] for t in found["history"]] == list(range(12_050))


@pytest.mark.slow
def test_readers_never_see_a_run_halfway_while_runs_come_and_go(tmp_path: Path) -> None:
    """Runs log, end and are drained; whoever looks sees each with all rows acknowledged so far, whatever the moment."""
    with serving(tmp_path / "mirror") as server:
        acknowledged: dict[str, int] = {}
        stop = threading.Event()
        wrong, looks = list[Any](), list[int]()

        def log(worker: int) -> None:
            for n in range(10**6):
                if stop.is_set():
                    return
                name = f"w{worker}-{n}"
                server.upsert("p", name)
                acknowledged[name] = 0
                for i in range(3):
                    if not post(server, name, i * 7, lines(i * 7, 7)).ok:
                        wrong.append(("post", name))
                    acknowledged[name] = (i + 1) * 7
                server.stream("p", name, complete=True, exitcode=0)

        def read() -> None:
            query = """{ project(name: "p", entityName: "local") { runCount runs(first: 1000) { edges { node {
                name state historyLineCount history(minStep: 0, maxStep: 100, samples: 100) } } } } }"""
            while not stop.is_set():
                before = dict(acknowledged)
                found = server.graphql(query)["project"]
                nodes = {e["node"]["name"]: e["node"] for e in (found or {"runs": {"edges": []}})["runs"]["edges"]}
                for name, n in before.items():
                    run = nodes.get(name)
                    if run is None or len(run["history"]) < n or run["historyLineCount"] < n:
                        wrong.append((name, n, run))
                    elif [json.loads(t)["_step"] for t in run["history"]] != list(range(len(run["history"]))):
                        wrong.append((name, "order", run))
                looks.append(len(before))

        threads = [threading.Thread(target=log, args=(n,)) for n in range(3)]
        threads += [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 300
        while (len(acknowledged) < 40 or len(looks) < 40) and not wrong and time.monotonic() < end:
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong[:3] == [] and len(acknowledged) >= 40 and len(looks) >= 40


# -- kill -9 of the server ----------------------------------------------------------------------------------


def stream_until_told(server: Server, run: str, stop: threading.Event, acknowledged: dict[str, list[str]]) -> None:
    """A client as the SDK is one: it posts rows in pieces, and repeats a piece until it is acknowledged."""
    rng = random.Random(run)
    mine = acknowledged[run] = []
    while not stop.is_set():
        n = rng.randrange(1, 40)
        piece = [json.dumps({"_step": len(mine) + i, "me": run, "x": rng.random()}) for i in range(n)]
        while True:
            try:
                if post(server, run, len(mine), piece).ok:
                    mine += piece
                    break
            except requests.RequestException:
                pass
            if stop.is_set():
                return
            time.sleep(0.05)


@pytest.mark.slow
def test_acknowledged_rows_survive_kill_9_of_the_server_and_come_once(tmp_path: Path) -> None:
    server = Server(tmp_path / "mirror")
    server.start()
    runs = [f"k{n}" for n in range(4)]
    for run in runs:
        server.upsert("p", run, config=json.dumps({"run": {"value": run}}))
    stop, acknowledged = threading.Event(), {}  # type: ignore[var-annotated]
    threads = [threading.Thread(target=stream_until_told, args=(server, r, stop, acknowledged)) for r in runs]
    for thread in threads:
        thread.start()
    rng = random.Random(7)
    try:
        for _ in range(8):
            time.sleep(rng.uniform(0.2, 1.0))
            server.kill()
            server.start()
            # Runs that come and go beside: their drains are what a kill may hit.
            name = f"short{rng.randrange(10**9)}"
            server.upsert("p", name)
            assert post(server, name, 0, lines(0, 5), complete=True, exitcode=0).ok
            acknowledged[name] = lines(0, 5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    try:
        for run, sent in acknowledged.items():
            found = held(server, run)
            # A piece whose acknowledgement was lost may be there too, but then as the next rows.
            got = [json.loads(t) for t in found["history"]]
            assert got[: len(sent)] == [json.loads(t) for t in sent], run
            assert [r["_step"] for r in got] == list(range(len(got)))
            assert server.stream("p", run, complete=True, exitcode=0).ok
            again = [json.loads(t) for t in wait_until_drained(server, run)["history"]]
            assert again == got
    finally:
        server.stop()


@pytest.mark.slow
def test_a_killed_server_does_not_end_an_sdk_run(tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    script = (
        "import itertools, os, sys, time, wandb\n"
        "s = wandb.Settings(x_file_stream_retry_wait_min_seconds=0.1, x_file_stream_retry_wait_max_seconds=0.5,\n"
        "                   x_file_stream_transmit_interval=0.2)\n"
        "run = wandb.init(project='p', id='sdk', settings=s)\n"
        "for i in itertools.count():\n    run.log({'x': i})\n    time.sleep(0.02)\n"
        "    if os.path.exists(sys.argv[1]): break\n"
        "run.finish()\nopen(sys.argv[1], 'w').write(str(i + 1))"
    )
    server = Server(tmp_path / "mirror", "--crash-after", "60")
    server.start()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(enough)], env=os.environ | server.env, cwd=server.env["WANDB_DIR"]
        )

        end = time.monotonic() + 300
        while not count(server, "sdk"):  # the SDK sends every 15 s
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        for n in range(3):
            server.kill()
            time.sleep(0.3)
            server.start()
            if n == 0:
                assert process.poll() is None
                enough.touch()  # the others may hit its last requests
        assert process.wait(180) == 0
        found = wait_until_drained(server, "sdk")
        assert found["state"] == "finished"
        assert [json.loads(t)["x"] for t in found["history"]] == list(range(int(enough.read_text())))
    finally:
        server.stop()


def test_what_a_crash_leaves_half_written_is_mended(tmp_path: Path) -> None:
    with serving(tmp_path / "mirror") as server:
        server.upsert("p", "torn", notes="before")
        assert post(server, "torn", 0, lines(0, 3)).ok
        for percent in range(5):
            log = {"output.log": {"offset": 1, "content": [f"{percent} %"]}}
            assert server.stream("p", "torn", files=log).ok
        before = held(server, "torn")
        server.kill()
        (folder,) = (p for p in (server.root / "live").iterdir() if p.name.isdigit())
        for path in folder.iterdir():
            with path.open("ab") as file:
                file.write(path.read_bytes().splitlines(keepends=True)[-1][:-2])
        gone = folder.with_suffix(".gone")  # the folder of a run that had just been drained
        gone.mkdir()
        (gone / "run.jsonl").write_bytes((folder / "run.jsonl").read_bytes())
        server.start()
        assert held(server, "torn") == before and not gone.exists()
        assert (before["logLineCount"], before["historyLineCount"]) == (2, 3)
        server.upsert("p", "torn", notes="after")
        assert post(server, "torn", 3, lines(3, 2)).ok
        server.kill()
        server.start()
        found = held(server, "torn")
        assert found["history"] == lines(0, 5)
        assert post(server, "torn", 5, [], complete=True, exitcode=0).ok
        assert [json.loads(t)["_step"] for t in wait_until_drained(server, "torn")["history"]] == list(range(5))


def test_a_full_disk_takes_nothing_half_and_loses_nothing(tmp_path: Path) -> None:
    """Files larger than a limit cannot be written for a while, which the system tells as it tells a full disk."""
    with serving(tmp_path / "mirror", "--crash-after", "8") as server:
        assert server.process
        server.upsert("p", "full")
        rows = [row for i in range(4_000) for row in lines(i, 1, text=os.urandom(200).hex())]
        assert post(server, "full", 0, rows[:100]).ok
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (400_000, unlimited[1]))
        refused = post(server, "full", 100, rows[100:])
        assert refused.status_code == 507 and "disk is full" in refused.json()["errors"][0]["message"]
        assert held(server, "full")["historyLineCount"] == 100
        assert post(server, "full", 100, rows[100:200]).ok  # what fits is taken
        put = requests.put(
            f"{server.url}/upload/local/p/full/f", data=b"x" * 500_000, auth=("api", server.key), timeout=300
        )
        assert put.status_code == 507
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert post(server, "full", 100, rows[100:]).ok
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (300_000, unlimited[1]))
        assert post(server, "full", 4_000, [], complete=True, exitcode=0).ok
        time.sleep(3)
        assert live_runs(server) == ["full"]  # it cannot become segments yet
        assert held(server, "full")["history"] == rows
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        found = wait_until_drained(server, "full")
        assert [json.loads(t) for t in found["history"]] == [json.loads(t) for t in rows]
        assert found["state"] == "finished"


def test_a_server_that_had_no_room_at_all_takes_things_again_once_it_has(tmp_path: Path) -> None:
    """Nothing can be written for a while, also not what is tidied up after a failure."""
    query = "mutation U($i: UpsertViewInput!) { upsertView(input: $i) { view { id } } }"

    def report(name: str) -> str:
        given = {"entityName": "local", "projectName": "p", "name": name, "type": "runs", "spec": '{"a": "b"}'}
        return server.post("/graphql", {"query": query, "variables": {"i": given}}).text

    with serving(tmp_path / "mirror") as server:
        assert server.process
        server.upsert("p", "r")
        assert "errors" not in report("before")
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (8_000, unlimited[1]))
        for n in range(3):
            refused = report(f"no room {n}")
            assert "errors" in refused and "damaged" not in refused and "disk" in refused
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert "errors" not in report("after")


def test_heartbeats_are_judged_after_a_restart_too(tmp_path: Path) -> None:
    with serving(tmp_path / "mirror", "--crash-after", "2") as server:
        server.upsert("p", "orphan")
        assert post(server, "orphan", 0, lines(0, 3)).ok
        server.kill()
        began = time.monotonic()
        server.start()
        state = held(server, "orphan")["state"]
        assert state == "running" or time.monotonic() - began > 2  # its client may come back
        end = time.monotonic() + 300
        while held(server, "orphan")["state"] != "crashed" and time.monotonic() < end:
            time.sleep(0.1)
        found = wait_until_drained(server, "orphan")
        assert found["state"] == "crashed" and found["history"] and len(found["history"]) == 3
