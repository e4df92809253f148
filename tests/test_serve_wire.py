"""`mirror serve` on the wire: keys, hosts, errors, limits, introspection. No SDK here, plain HTTP."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from ports import free_port
from serving import SERVE, Server, serving
from syncing import Copy

VIEWER = "query Viewer { viewer { id entity username email flags admin teams { edges { node { name } } } } }"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("wire") / "mirror") as found:
        yield found


def ask(server: Server, query: str, key: str | None = None, **headers: str) -> requests.Response:
    auth = None if key == "" else ("api", key or server.key)
    body = {"query": query, "variables": None, "operationName": None}
    return requests.post(f"{server.url}/graphql", json=body, auth=auth, headers=headers, timeout=300)


# -- keys ---------------------------------------------------------------------------------------------------


def test_a_good_key_sees_the_viewer(server: Server) -> None:
    viewer = ask(server, VIEWER).json()["data"]["viewer"]
    assert viewer["entity"] == "local"
    assert json.loads(viewer["flags"]) == {}
    assert "local" in [t["node"]["name"] for t in viewer["teams"]["edges"]]


@pytest.mark.parametrize("key", ["", "x" * 40, "short"])
def test_a_bad_key_gets_a_null_viewer_and_nothing_else(server: Server, key: str) -> None:
    seen = ask(server, VIEWER, key)
    assert (seen.status_code, seen.json()) == (200, {"data": {"viewer": None}})
    other = ask(server, '{ project(name: "p", entityName: "local") { id } }', key)
    assert other.status_code == 401
    assert other.json() == {"errors": [{"message": "user is not logged in"}]}
    # A viewer beside something else does not open the door.
    assert ask(server, "{ viewer { id } serverInfo { features { name } } }", key).status_code == 401
    assert ask(server, 'mutation { deleteRun(input: {id: "x"}) { success } }', key).status_code == 401
    posted = requests.post(f"{server.url}/files/local/p/r/file_stream", json={}, auth=("api", key), timeout=300)
    assert posted.status_code == 401
    assert requests.get(f"{server.url}/files/local/p/r/f.txt", auth=("api", key), timeout=300).status_code == 401
    assert requests.put(f"{server.url}/upload/local/p/r/f.txt", data=b"x", timeout=300).status_code == 401


def test_only_the_user_api_may_present_the_key(server: Server) -> None:
    for user in ("", "root"):
        token = base64.b64encode(f"{user}:{server.key}".encode()).decode()
        found = ask(server, "{ serverInfo { features { name } } }", "", Authorization=f"Basic {token}")
        assert found.status_code == 401


def test_a_key_is_made_at_the_first_start_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    root, port = tmp_path / "mirror", free_port()
    env = {k: v for k, v in os.environ.items() if k != "MIRROR_API_KEY"}

    def start() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [*SERVE, "--mirror", str(root), "--port", str(port)], stdout=subprocess.PIPE, text=True, env=env
        )
        assert process.stdout
        said = "".join(process.stdout.readline() for _ in range(3))
        end = time.monotonic() + 300
        while time.monotonic() < end:
            try:
                requests.get(f"http://127.0.0.1:{port}/ready", timeout=1)
                break
            except requests.ConnectionError:
                time.sleep(0.05)
        return process, said

    process, said = start()
    found = re.search(r"WANDB_API_KEY=(\S{40,})$", said, re.MULTILINE)
    assert found, said
    key = found[1]
    query = {"query": VIEWER}
    url = f"http://127.0.0.1:{port}/graphql"
    assert requests.post(url, json=query, auth=("api", key), timeout=300).json()["data"]["viewer"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0
    for path in root.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path
    assert (root / "serve-key.json").stat().st_mode & 0o777 == 0o600
    process, said = start()
    try:
        assert key not in said
        assert requests.post(url, json=query, auth=("api", key), timeout=300).json()["data"]["viewer"]
        assert requests.post(url, json=query, auth=("api", key + "x"), timeout=300).json()["data"]["viewer"] is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


def test_a_key_file_comes_first_and_a_short_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k" * 44 + "\n")
    with serving(tmp_path / "mirror", "--api-key-file", str(file)) as server:  # MIRROR_API_KEY is set too
        assert ask(server, VIEWER, "k" * 44).json()["data"]["viewer"]
        assert ask(server, VIEWER, server.key).json()["data"]["viewer"] is None
    file.write_text("too short")
    command = [*SERVE, "--mirror", str(tmp_path / "mirror"), "--port", "0", "--api-key-file", str(file)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert "40" in refused.stderr and "too short" not in refused.stderr and "Traceback" not in refused.stderr


# -- hosts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", ""])
def test_a_strangers_host_name_is_not_answered(server: Server, host: str) -> None:
    assert ask(server, VIEWER, Host=host).status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "[::1]:80"])
def test_this_machines_names_are_answered(server: Server, host: str) -> None:
    assert ask(server, VIEWER, Host=host).status_code == 200


# -- errors and limits --------------------------------------------------------------------------------------


def test_unknown_fields_are_named_as_the_sdk_expects(server: Server) -> None:
    found = ask(server, "{ serverInfo { featuresX { name } } }")
    assert found.status_code == 400
    assert found.json()["errors"][0]["message"] == 'Cannot query field "featuresX" on type "ServerInfo".'
    found = ask(server, '{ project(name: "p") { sweeps(filtersX: "{}") { totalCount } } }')
    assert found.status_code == 400
    assert found.json()["errors"][0]["message"] == 'Unknown argument "filtersX" on field "Project.sweeps".'


def test_single_types_can_be_looked_at(server: Server) -> None:
    query = '{ __type(name: "%s") { name fields { name } inputFields { name } } }'
    run = ask(server, query % "Run").json()["data"]["__type"]
    assert {"historyLineCount", "historyKeys", "parquetHistory"} <= {f["name"] for f in run["fields"]}
    bucket = ask(server, query % "UpsertBucketInput").json()["data"]["__type"]
    assert {"summaryMetrics", "config", "groupName"} <= {f["name"] for f in bucket["inputFields"]}
    assert ask(server, query % "Nothing").json()["data"]["__type"] is None


def test_what_is_missing_is_null_and_no_error(server: Server) -> None:
    found = ask(server, '{ project(name: "no", entityName: "body") { id } }')
    assert found.json() == {"data": {"project": None}}
    server.upsert("here", "one")
    found = ask(server, '{ project(name: "here", entityName: "local") { run(name: "two") { id } } }')
    assert found.json() == {"data": {"project": {"run": None}}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "no JSON"),
        (b"[]", "must be an object"),
        (b'{"query": 1}', "must be an object"),
        (b'{"query": "{"}', "Syntax Error"),
        (b'{"query": "query A { viewer { id } } query B { viewer { id } }"}', "operation"),
        (b'{"query": "query A { viewer { id } }", "operationName": "C"}', "`C`"),
    ],
)
def test_bad_graphql_is_400_with_a_message(server: Server, body: bytes, message: str) -> None:
    found = requests.post(f"{server.url}/graphql", data=body, auth=("api", server.key), timeout=300)
    assert found.status_code == 400
    assert message in found.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    "query",
    [
        "{ viewer { teams { edges { node { projects { edges { node "
        + "{ runs { edges { node { project " * 3
        + "{ id }"
        + " } } } }" * 3
        + " } } } } } } }",
        "{ viewer {" + " id" * 60 + " } }",
        "{" + " viewer { id }" * 60 + "}",
        "{ viewer { ...A } } fragment A on User { ...B } fragment B on User { ...A }",
        "{"
        + " ".join(f"a{i}: viewer {{ ...F }}" for i in range(600))
        + "} fragment F on User { teams { edges { "
        + " ".join(f"b{i}: node {{ id name }}" for i in range(40))
        + " } } }",
        "{" * 3000,
    ],
    ids=["deep", "same field", "same root field", "fragment cycle", "many fields", "unclosed"],
)
def test_hostile_documents_are_refused_quickly(server: Server, query: str) -> None:
    assert server.process
    process = psutil.Process(server.process.pid)
    before = process.cpu_times()
    found = ask(server, query)
    assert found.status_code == 400, found.text[:200]
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 10
    assert ask(server, VIEWER).status_code == 200


def test_a_gzip_bomb_is_refused(server: Server) -> None:
    bomb = gzip.compress(b" " * (80 << 20))
    assert len(bomb) < 100_000
    server.upsert("bomb", "r")
    found = requests.post(
        f"{server.url}/files/local/bomb/r/file_stream",
        data=bomb,
        headers={"Content-Encoding": "gzip"},
        auth=("api", server.key),
        timeout=300,
    )
    assert found.status_code == 413


def test_a_large_body_is_refused(server: Server) -> None:
    body = b'{"query": "' + b" " * (17 << 20) + b'"}'
    try:
        found = requests.post(f"{server.url}/graphql", data=body, auth=("api", server.key), timeout=300)
    except requests.ConnectionError:
        return  # refused before all of it was sent
    assert found.status_code == 413


def test_gzip_is_understood(server: Server) -> None:
    server.upsert("zip", "r")
    row = '{"_step":0,"x":1}'
    body = gzip.compress(json.dumps({"files": {"wandb-history.jsonl": {"offset": 0, "content": [row]}}}).encode())
    found = requests.post(
        f"{server.url}/files/local/zip/r/file_stream",
        data=body,
        headers={"Content-Encoding": "gzip"},
        auth=("api", server.key),
        timeout=300,
    )
    assert found.status_code == 200
    query = '{ project(name: "zip", entityName: "local") { run(name: "r") { history(samples: 9) } } }'
    assert server.graphql(query)["project"]["run"]["history"] == [row]


def test_every_answer_names_the_store(server: Server) -> None:
    store_id = json.loads((server.root / "snapshot.json").read_text())["store_id"]
    for answer in (ask(server, VIEWER), ask(server, VIEWER, ""), requests.get(f"{server.url}/ready", timeout=300)):
        assert answer.headers["Mirror-Store"] == store_id


def test_a_mirror_is_not_synced_from_its_own_server(server: Server) -> None:
    server.upsert("self", "r")
    done = Copy(server.root, server.url, server.key).sync("local/self", ok=False)
    assert "itself" in done.stderr


def test_unknown_paths_answer_in_json(server: Server) -> None:
    for path in ("/nothing", "/graphql", "/files/a/b/c/file_stream"):
        found = requests.get(f"{server.url}{path}", timeout=300)
        assert found.status_code in (401, 404, 405)
        assert found.json()["errors"][0]["message"]


def test_it_listens_on_loopback_only_unless_told_otherwise(server: Server) -> None:
    listening = Path("/proc/net/tcp").read_text() if Path("/proc/net/tcp").exists() else ""
    if not listening:
        pytest.skip("no /proc here")
    local = [line.split()[1] for line in listening.splitlines()[1:] if line.split()[3] == "0A"]
    mine = [address for address in local if int(address.split(":")[1], 16) == server.port]
    assert mine == [f"0100007F:{server.port:04X}"]


def test_a_port_in_use_is_one_line(server: Server, tmp_path: Path) -> None:
    command = [*SERVE, "--mirror", str(tmp_path / "m"), "--port", str(server.port)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert str(server.port) in refused.stderr and "Traceback" not in refused.stderr


def test_a_second_server_on_the_same_root_is_refused(server: Server) -> None:
    command = [*SERVE, "--mirror", str(server.root), "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert "--read-only" in refused.stderr and "Traceback" not in refused.stderr


def test_a_folder_with_other_files_is_no_mirror(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    command = [*SERVE, "--mirror", str(tmp_path), "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1
    assert "not a mirror" in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


# -- read-only ----------------------------------------------------------------------------------------------


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns, p.stat().st_mode)
        for p in folder.rglob("*")
    }


def test_read_only_answers_and_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "mirror"
    with serving(root) as server:
        server.upsert("p", "done", config='{"lr": {"value": 1}}')
        rows = [json.dumps({"_step": i, "x": i}) for i in range(10)]
        files = {"wandb-history.jsonl": {"offset": 0, "content": rows}}
        server.stream("p", "done", files=files, complete=True, exitcode=0)
        server.upsert("p", "going")
        server.stream("p", "going", files={"wandb-history.jsonl": {"offset": 0, "content": rows[:3]}})
    before = state_of(root)
    with serving(root, "--read-only") as server:
        query = """{ project(name: "p", entityName: "local") { readOnly
            runs { edges { node { name state historyLineCount historyKeys history(samples: 99) } } } } }"""
        found = server.graphql(query)["project"]
        assert found["readOnly"] is True
        nodes = {e["node"]["name"]: e["node"] for e in found["runs"]["edges"]}
        assert [len(nodes[n]["history"]) for n in ("done", "going")] == [10, 3]
        assert nodes["going"]["historyLineCount"] == 3 and nodes["going"]["historyKeys"]["lastStep"] == 2
        refused = ask(server, 'mutation { upsertBucket(input: {name: "x", modelName: "p"}) { inserted } }')
        assert refused.status_code == 403 and "read-only" in refused.json()["errors"][0]["message"]
        posted = server.stream("p", "going", files={})
        assert posted.status_code == 403 and "read-only" in posted.json()["errors"][0]["message"]
        put = requests.put(f"{server.url}/upload/local/p/done/a.txt", data=b"x", auth=("api", server.key), timeout=300)
        assert put.status_code == 403
    assert state_of(root) == before


def test_read_only_beside_a_server_that_takes_runs_in(tmp_path: Path) -> None:
    query = """{ project(name: "p", entityName: "local") {
        run(name: "r") { state historyLineCount history(samples: 99) } } }"""
    with serving(tmp_path / "mirror") as writing, serving(tmp_path / "mirror", "--read-only") as reading:
        writing.upsert("p", "r")
        seen: list[Any] = []
        for i in range(5):
            row = json.dumps({"_step": i})
            writing.stream("p", "r", files={"wandb-history.jsonl": {"offset": i, "content": [row]}})
            seen.append(reading.graphql(query)["project"]["run"])
        assert [s["historyLineCount"] for s in seen] == [1, 2, 3, 4, 5]
        assert [len(s["history"]) for s in seen] == [1, 2, 3, 4, 5]
        writing.stream("p", "r", complete=True, exitcode=0)
        end = time.monotonic() + 300
        while (found := reading.graphql(query)["project"]["run"])["state"] != "finished" and time.monotonic() < end:
            time.sleep(0.05)
        assert found["state"] == "finished" and len(found["history"]) == 5
