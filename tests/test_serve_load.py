"""Many clients at once, large bodies, slow clients, clients that die: what is acknowledged is kept, once."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from loading import PROJECT, background, dawdlers, lines, log, posts
from serving import Server, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mirror.server.access import limits, patience

ROWS = """query($r: String!) { project(name: "load", entityName: "local") { run(name: $r)
  { state historyLineCount history(minStep: 0, maxStep: 100000, samples: 100000) } } }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("load") / "mirror") as found:
        yield found


def held(server: Server, run: str) -> dict[str, Any]:
    found: dict[str, Any] = server.graphql(ROWS, r=run)["project"]["run"]
    return found


@pytest.mark.slow
def test_fifty_runs_log_beside_readers_and_slow_clients(server: Server) -> None:
    names = [f"run{n:02d}" for n in range(50)]
    content = {name: lines(300, 10, seed=n) for n, name in enumerate(names)}
    for name in [*names, "slow"]:
        server.upsert(PROJECT, name)

    def read() -> None:
        for name in (names[0], names[-1]):
            got = held(server, name)
            assert len(got["history"]) >= 0 and got["state"] == "running"

    with dawdlers(server, 100, "slow"), background(read, 4) as looks:
        log(server, {name: posts(rows, 25) for name, rows in content.items()})
    assert looks
    for name, rows in content.items():
        assert server.stream(PROJECT, name, complete=True, exitcode=0).ok
        assert [json.loads(row) for row in held(server, name)["history"]] == [json.loads(row) for row in rows]


def test_bodies_of_ten_megabytes(server: Server) -> None:
    server.upsert(PROJECT, "large")
    rows = [json.dumps({"_step": i, "text": chr(97 + i % 26) * 100_000}) for i in range(208)]
    bodies = posts(rows, 104)
    assert all(9 << 20 < len(body) < 11 << 20 for body in bodies)
    log(server, {"large": bodies})
    log(server, {"large": bodies})  # sent again, as after an answer that was lost
    assert held(server, "large")["history"] == rows


def test_a_line_of_ten_megabytes(server: Server) -> None:
    server.upsert(PROJECT, "longline")
    row = json.dumps({"_step": 0, "text": "é" * ((10 << 20) // 12)}, ensure_ascii=True)
    assert server.stream(PROJECT, "longline", files={"wandb-history.jsonl": {"offset": 0, "content": [row]}}).ok
    assert json.loads(held(server, "longline")["history"][0]) == json.loads(row)


def test_a_client_that_dies_in_the_middle_of_a_body_leaves_nothing(server: Server) -> None:
    server.upsert(PROJECT, "dying")
    [body] = posts(lines(1000, 10), 1000)
    auth = requests.Request("GET", server.url, auth=("api", server.key)).prepare().headers["Authorization"]
    paths = [f"/files/local/{PROJECT}/dying/file_stream", f"/upload/local/{PROJECT}/dying/f.bin"]
    for method, path in zip(("POST", "PUT"), paths, strict=True):
        for sent in (0, 1, len(body) // 2, len(body) - 1):
            with socket.create_connection(("127.0.0.1", server.port)) as s:
                head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {auth}\r\n"
                s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:sent])
    end = time.monotonic() + 300  # until the server has noticed
    while list((server.root / "blobs").rglob("*.tmp")) and time.monotonic() < end:
        time.sleep(0.02)
    assert held(server, "dying")["historyLineCount"] == 0
    query = '{ project(name: "load", entityName: "local") { run(name: "dying") { fileCount } } }'
    assert server.graphql(query)["project"]["run"]["fileCount"] == 0
    assert not list((server.root / "blobs").rglob("*.tmp"))
    log(server, {"dying": [body]})
    assert held(server, "dying")["historyLineCount"] == 1000


# Patience

SOON = 2.0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that reads bodies as ours does, and soon loses patience; but not while the tests' own
    process has to wait for its turn between two lines."""
    monkeypatch.setattr(patience, "HEADER_SECONDS", SOON)
    monkeypatch.setattr(limits, "BODY_SECONDS", SOON)
    monkeypatch.setattr(patience.Protocol, "room", 10)

    async def take(request: Request) -> Response:
        try:
            return PlainTextResponse(str(len(await limits.read_body(request, 1000))))
        except limits.Refused as refused:
            return PlainTextResponse(refused.message, refused.status)

    app = Starlette(routes=[Route("/", take, methods=["POST"])])
    config = uvicorn.Config(app, port=0, http=patience.Protocol, log_level="error", timeout_keep_alive=20)
    found = uvicorn.Server(config)
    thread = threading.Thread(target=found.run)
    thread.start()
    while not found.started:
        time.sleep(0.01)
    yield found.servers[0].sockets[0].getsockname()[1]
    found.should_exit = True
    thread.join(300)


def said(s: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    s.settimeout(300)
    found = b""
    try:
        while part := s.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"


def test_headers_that_never_end_are_not_waited_for(impatient: int) -> None:
    began = time.monotonic()
    with ExitStack() as stack:
        waiting = []
        for whole, start in ((b"", b""), (b"", b"POST / HTTP/1.1\r\nHost: loc"), (POST + b"abc", b"POST / HT")):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", impatient)))
            if whole:
                s.sendall(whole)
                assert s.recv(65536).startswith(b"HTTP/1.1 200")
            s.sendall(start)
            waiting.append(s)
        for s in waiting:
            assert b"HTTP" not in said(s)
            assert time.monotonic() - began > SOON / 2


def test_a_connection_is_kept_while_it_is_used(impatient: int) -> None:
    with requests.Session() as session:
        for _ in range(4):
            assert session.post(f"http://127.0.0.1:{impatient}/", data=b"abc", timeout=300).text == "3"
            time.sleep(SOON / 3)


def test_a_body_that_never_ends_is_not_waited_for(impatient: int) -> None:
    with socket.create_connection(("127.0.0.1", impatient)) as s:
        s.sendall(POST + b"a")
        s.settimeout(300)
        assert s.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_connections_beyond_what_there_is_room_for_are_closed(impatient: int, tmp_path: Path) -> None:
    many = [socket.create_connection(("127.0.0.1", impatient)) for _ in range(14)]
    try:
        for s in many[10:]:
            assert said(s) == b""
        many[0].sendall(POST + b"abc")
        many[0].settimeout(300)
        assert many[0].recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        for s in many:
            s.close()


def test_there_is_room_for_many_connections() -> None:
    assert patience.room() >= 100
