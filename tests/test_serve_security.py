"""What a hostile client can try over HTTP: keys, others' runs, paths, bodies, documents, hosts, headers, ranges."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from serving import Server, serving

SECRET = "nobody may read this 5up3r53cr3t"
VIEWER = {"query": "{ viewer { id } }"}
RUN = '{ project(name: "p", entityName: "%s") { run(name: "r") { %s } } }'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("security")
    (place / "secret.txt").write_text(SECRET)
    with serving(place / "mirror", "--history-exports", "now") as found:
        for entity in ("local", "alice"):
            found.upsert("p", "r", entity, config='{"a": {"value": 1}}')
            row = f'{{"_step":0,"x":"{SECRET if entity == "alice" else "plain"}"}}'
            assert found.stream("p", "r", entity, files={"wandb-history.jsonl": {"offset": 0, "content": [row]}}).ok
            url = f"{found.url}/upload/{entity}/p/r/notes.txt"
            assert requests.put(url, data=SECRET.encode(), auth=("api", found.key), timeout=300).ok
            assert found.stream("p", "r", entity, complete=True, exitcode=0).ok
        yield found


@pytest.fixture(scope="module")
def bob(server: Server) -> str:
    """The key of a user who sees neither of the runs."""
    command = "import sys; sys.argv[0] = 'mirror'; from mirror.cli import main; main()"
    args = [sys.executable, "-c", command, "serve", "user", "add", "bob", "--mirror", str(server.root)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.search(r"\b[a-z0-9]{40,}\b", done.stdout)
    assert found, done.stdout
    return found[0]


def raw(server: Server, data: bytes, seconds: float = 300) -> tuple[int, bytes]:
    """Send bytes as they are; status and everything that came back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as s:
        found = b""
        try:
            s.sendall(data)
            while part := s.recv(65536):
                found += part
        except (ConnectionResetError, BrokenPipeError):  # refused before all of it was sent
            pass
        except TimeoutError:  # still waiting for more
            found = found or b"HTTP/1.1 000 "
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", found)
    return int(status[1]) if status else 0, found


def spent(server: Server) -> float:
    """Seconds of processor time: what the clock says depends on what else the machine does."""
    assert server.process
    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)


def authorization(key: str) -> str:
    prepared = requests.Request("GET", "http://localhost", auth=("api", key)).prepare()
    return str(prepared.headers["Authorization"])


def request(server: Server, method: str, target: str, *headers: str, body: bytes = b"", key: str = "") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Connection: close", f"Authorization: {authorization(key or server.key)}"]
    if not any(h.lower().startswith("host:") for h in headers):
        lines.append("Host: localhost")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


@pytest.fixture(autouse=True)
def quiet(server: Server) -> Iterator[None]:
    """No test makes the server print a traceback."""
    before = server.log.stat().st_size
    yield
    assert "Traceback" not in server.log.read_text()[before:]


def healthy(server: Server) -> None:
    answer = requests.post(f"{server.url}/graphql", json=VIEWER, auth=("api", server.key), timeout=300)
    assert answer.json()["data"]["viewer"]


# Keys


def doors(server: Server) -> list[tuple[str, str, Any]]:
    """Everything that needs a key: method, URL, body."""
    mutation = 'mutation { upsertBucket(input: {modelName: "p", entityName: "alice", name: "r"}) { inserted } }'
    [link] = links(server, server.key, "alice")
    return [
        ("POST", f"{server.url}/graphql", {"query": RUN % ("alice", "historyLineCount")}),
        ("POST", f"{server.url}/graphql", {"query": mutation}),
        ("POST", f"{server.url}/graphql", {"query": '{ __type(name: "Run") { name } }'}),
        ("POST", f"{server.url}/files/alice/p/r/file_stream", {"complete": True, "exitcode": 1}),
        ("GET", f"{server.url}/files/alice/p/r/notes.txt", None),
        ("HEAD", f"{server.url}/files/alice/p/r/notes.txt", None),
        ("PUT", f"{server.url}/upload/alice/p/r/notes.txt", "changed"),
        ("GET", link.split("?")[0], None),
        ("GET", link.replace("signature=", "signature=0"), None),
    ]


def links(server: Server, key: str, entity: str) -> list[str]:
    query = {"query": RUN % (entity, 'parquetHistory(liveKeys: ["_step"]) { parquetUrls }')}
    for _ in range(3000):
        found = requests.post(f"{server.url}/graphql", json=query, auth=("api", key), timeout=300).json()
        run = (found["data"]["project"] or {}).get("run")
        urls: list[str] = run["parquetHistory"]["parquetUrls"] if run else []
        if urls or not run:
            return urls
        time.sleep(0.05)
    raise AssertionError("no export")


@pytest.mark.parametrize("key", [None, "", "x" * 40, "wrong", "k" * 10_000, "\x00" * 40])
def test_nothing_opens_without_the_key(server: Server, key: str | None) -> None:
    for method, url, body in doors(server):
        data = {"json": body} if isinstance(body, dict) else {"data": body}
        auth = None if key is None else ("api", key)
        answer = requests.request(method, url, auth=auth, timeout=300, **data)  # type: ignore[arg-type]
        assert answer.status_code in (401, 403), (method, url, answer.status_code)
        assert SECRET not in answer.text
    assert server.graphql(RUN % ("alice", "state"))["project"]["run"]["state"] == "finished"


def test_other_ways_to_show_a_key_are_none(server: Server) -> None:
    for value in ("", "Basic", "Basic !!!", "Bearer " + server.key, "Basic " + server.key, "Basic " + "A" * 60_000):
        status, said = raw(server, request(server, "GET", "/files/alice/p/r/notes.txt").replace(
            authorization(server.key).encode(), value.encode()))  # fmt: skip
        assert status in (400, 401, 431), (value[:20], said[:80])
    found = requests.get(f"{server.url}/files/alice/p/r/notes.txt?api_key={server.key}", timeout=300)
    assert found.status_code == 401


def test_another_users_run_does_not_exist(server: Server, bob: str) -> None:
    for method, url, body in doors(server):
        if "__type" in json.dumps(body):
            continue  # the schema is no secret to a user
        data = {"json": body} if isinstance(body, dict) else {"data": body}
        answer = requests.request(method, url, auth=("api", bob), timeout=300, **data)  # type: ignore[arg-type]
        assert SECRET not in answer.text
        if url.endswith("/graphql"):
            assert answer.json().get("errors") or answer.json()["data"]["project"] is None, answer.text
        else:
            assert answer.status_code in (403, 404), (method, url, answer.status_code)
    assert links(server, bob, "alice") == []
    held = server.graphql(RUN % ("alice", "state config"))["project"]["run"]
    assert held["state"] == "finished" and json.loads(held["config"]) == {"a": {"value": 1}}
    assert requests.get(f"{server.url}/files/alice/p/r/notes.txt", auth=("api", server.key), timeout=300).text == SECRET


def test_the_key_is_never_repeated(server: Server) -> None:
    for query in ("{ viewer { id } }", "{ nothing }", "{"):
        answer = requests.post(f"{server.url}/graphql", json={"query": query}, auth=("api", server.key), timeout=300)
        assert server.key not in answer.text + str(answer.headers)
    assert server.key not in server.log.read_text()


# Paths

CLIMBS = [
    "../secret.txt", "../../../../../../etc/passwd", "..%2f..%2f..%2fsecret.txt", "%2e%2e/%2e%2e/secret.txt",
    "%2e%2e%2f%2e%2e%2fsecret.txt", "..%252f..%252fsecret.txt", "..%5c..%5csecret.txt", "..\\..\\secret.txt",
    "%00", "notes.txt%00.png", "//etc/passwd", "/etc/passwd", "%2fetc%2fpasswd", "C:%5cwindows", "C:/x",
    "%c0%ae%c0%ae/secret.txt", "\uff0e\uff0e/secret.txt", "%ef%bc%8e%ef%bc%8e/secret.txt", "a/./b", "a//b", "a/",
    "%0d%0aX-Injected:%201", "%ff%fe", "%ed%a0%80", "a" * 2000, ".", "..", "%2e",
]  # fmt: skip


@pytest.mark.parametrize("name", CLIMBS)
def test_names_that_climb_lead_nowhere(server: Server, name: str) -> None:
    before = {p for p in server.root.parent.rglob("*") if "blobs" not in p.parts and "live" not in p.parts}
    targets = [
        f"/files/local/p/r/{name}",
        f"/files/local/p/{name}",
        f"/exports/1/{name}",
        f"/exports/{name}",
        f"/{name}",
    ]
    for target in targets:
        status, said = raw(server, request(server, "GET", target))
        assert status in (400, 401, 403, 404, 405) or (status == 200 and target == f"/{name}"), (target, said[:300])
        assert SECRET.encode() not in said and b"root:" not in said
        assert b"\r\nX-Injected" not in said
    for target in (f"/upload/local/p/r/{name}", f"/upload/local/{name}", f"/upload/{name}"):
        status, said = raw(server, request(server, "PUT", target, body=b"planted"))
        names = [edge["node"]["name"] for edge in files(server)]
        safe = all(n == n.strip("/") and ".." not in n.split("/") and "\\" not in n and "\0" not in n for n in names)
        assert safe and (status >= 400 or status == 200), (target, said[:300], names)
    after = {p for p in server.root.parent.rglob("*") if "blobs" not in p.parts and "live" not in p.parts}
    assert not {p for p in after - before if p.suffix not in (".parquet", ".tmp") and "data" not in p.parts}
    assert (server.root.parent / "secret.txt").read_text() == SECRET
    healthy(server)


def files(server: Server) -> list[dict[str, Any]]:
    found = server.graphql(RUN % ("local", "files(first: 500) { edges { node { name directUrl } } }"))
    edges: list[dict[str, Any]] = found["project"]["run"]["files"]["edges"]
    return edges


def test_odd_but_harmless_names_make_no_headers(server: Server) -> None:
    for name in ('a"b.txt', "a;b=c.txt", "ü😀.txt", "a'b*utf-8''c.txt", "\u202egpj.exe", "x\u2028y"):
        url = f"{server.url}/upload/local/p/r/{requests.utils.quote(name)}"  # type: ignore[attr-defined]
        assert requests.put(url, data=b"<script>1</script>", auth=("api", server.key), timeout=300).ok
    for edge in files(server):
        answer = requests.get(edge["node"]["directUrl"], timeout=300)
        assert answer.status_code == 200
        assert re.fullmatch(r"attachment; filename\*=utf-8''[A-Za-z0-9%._~-]+", answer.headers["content-disposition"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]


def test_a_root_behind_a_symlink_and_links_in_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept.txt").write_text(SECRET)
    (tmp_path / "mirror").symlink_to(tmp_path / "real")
    with serving(tmp_path / "mirror", "--history-exports", "now") as server:
        server.upsert("p", "r")
        assert server.stream("p", "r", complete=True, exitcode=0).ok
        assert links(server, server.key, "local")
        (server.root / "exports" / "9").symlink_to(tmp_path / "outside")
        (server.root / "live" / "notes").symlink_to(tmp_path / "outside")
        status, said = raw(server, request(server, "GET", "/exports/9/kept.txt/kept.txt"))
        assert status == 403 and SECRET.encode() not in said
        server.stop()
        server.start()
        assert links(server, server.key, "local")
    assert (tmp_path / "outside" / "kept.txt").read_text() == SECRET


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"1", b'"x"', b"{", b"\x00", b"\xff\xfe{}", b'{"query": null}', b'{"query": []}',
        b'{"query": "{ viewer { id } }", "variables": []}', b'{"query": "{ viewer { id } }", "variables": "x"}',
        b'[{"query": "{ viewer { id } }"}]', b'{"query":' + b"[" * 100_000, b'{"a":' * 50_000, b"[" * 1_000_000,
        b'{"query": "' + b"\\ud800" + b'"}', b'{"query": "{ viewer { id } }", "operationName": {"a": 1}}',
        b"9" * 10_000, b'{"query": ' + b"9" * 100_000 + b"}",
    ],
)  # fmt: skip
def test_malformed_bodies_are_refused(server: Server, body: bytes) -> None:
    before = spent(server)
    for path in ("/graphql", "/files/local/p/r/file_stream"):
        status, said = raw(server, request(server, "POST", path, "Content-Type: application/json", body=body))
        harmless = body in (b"", b'{"query": "{ viewer { id } }", "operationName": {"a": 1}}') or b'"query"' in body
        assert status == 400 or (status == 200 and harmless), (path, said[:200])
        assert b"Traceback" not in said
    assert spent(server) - before < 10
    healthy(server)


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/html", "multipart/form-data; boundary=x", "", "image/png", "\u00fc"]
)
def test_content_types_change_nothing(server: Server, kind: str) -> None:
    """The body counts, not what a client calls it; a page of a stranger cannot send it, for want of the key."""
    body = json.dumps(VIEWER).encode()
    status, said = raw(server, request(server, "POST", "/graphql", f"Content-Type: {kind}", body=body))
    assert status in (200, 400), said[:200]
    assert (status == 200) == (b"viewer" in said and b'"id"' in said)


def test_bombs_cost_little(server: Server) -> None:
    assert server.process
    process = psutil.Process(server.process.pid)
    before, time_before = process.memory_info().rss, spent(server)
    zeros = gzip.compress(b"\0" * (500 << 20), 9)
    twice = gzip.compress(zeros)
    for body in (zeros, twice, zeros[: len(zeros) // 2], b"\x1f\x8b" + b"\xff" * 1000, gzip.compress(b"{}") * 10_000):
        for path in ("/graphql", "/files/local/p/r/file_stream"):
            answer = requests.post(
                server.url + path,
                data=body,
                headers={"Content-Encoding": "gzip"},
                auth=("api", server.key),
                timeout=300,
            )
            assert answer.status_code in (400, 413), (path, answer.status_code, answer.text[:100])
    for encoding in ("br", "deflate", "zstd", "gzip, gzip", "x" * 1000):
        status, _ = raw(server, request(server, "POST", "/graphql", f"Content-Encoding: {encoding}", body=b"{}"))
        assert status == 415
    assert spent(server) - time_before < 30
    assert process.memory_info().rss - before < 350e6
    healthy(server)


def test_lengths_that_lie(server: Server) -> None:
    for headers in (
        ["Content-Length: -1"], ["Content-Length: x"], ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked, chunked"],
        ["Content-Length: 99999999999999999999"],
    ):  # fmt: skip
        head = request(server, "POST", "/graphql", *headers)
        status, said = raw(server, head + b"hello", seconds=2)
        assert status in (0, 400, 413, 501), said[:200]
    status, said = raw(server, request(server, "GET", "/ready", *[f"X-{n}: {'y' * 1000}" for n in range(200)]))
    assert status in (0, 200, 400, 431)
    healthy(server)


# GraphQL


def test_documents_that_cost_much_are_refused_or_quick(server: Server) -> None:
    introspection = "{ __schema { types { name fields { name type { name ofType { name ofType { name } } } } } } }"
    typed = "{ __schema { types { fields { type { fields { type { fields { type { fields { name } } } } } } } } } }"
    runs = "runs(first: 5000) { edges { node { history(samples: 1000000) events(samples: 1000000) } } }"
    documents = {
        "introspection": introspection,
        "types of types": typed,
        "aliased introspection": "{" + " ".join(f"a{i}: __schema {{ types {{ name }} }}" for i in range(500)) + "}",
        "aliased runs": "{" + " ".join(f'a{i}: project(name: "p", entityName: "local") {{ {runs} }}'
                                       for i in range(300)) + "}",
        "directives": "{ viewer { id " + "@skip(if: false) " * 5000 + "} }",
        "long name": "{ " + "a" * 1_000_000 + " }",
        "many operations": " ".join(f"query Q{i} {{ viewer {{ id }} }}" for i in range(5000)),
        "long string": '{ project(name: "' + "x" * 1_000_000 + '", entityName: "local") { id } }',
        "deep list": '{ node(id: ' + "[" * 5000 + "]" * 5000 + ") { id } }",
        "many variables": "query(" + " ".join(f"$v{i}: Int" for i in range(5000)) + ") { viewer { id } }",
        "fragment bomb": "{ viewer { ...F0 } } " + " ".join(
            f"fragment F{i} on User {{ ...F{i + 1} ...F{i + 1} }}" for i in range(40)) + " fragment F40 on User { id }",
    }  # fmt: skip
    for name, query in documents.items():
        before = spent(server)
        answer = requests.post(f"{server.url}/graphql", json={"query": query}, auth=("api", server.key), timeout=300)
        assert answer.status_code in (200, 400), (name, answer.status_code, answer.text[:200])
        assert spent(server) - before < 15, name
        assert len(answer.content) < 20 << 20, name
        anonymous = requests.post(f"{server.url}/graphql", json={"query": query}, timeout=300)
        assert anonymous.status_code in (400, 401, 413), (name, anonymous.status_code)
    healthy(server)


def test_text_in_variables_is_text(server: Server) -> None:
    """Nothing that is sent becomes SQL, a path or a pattern."""
    query = (
        "query($p: String!, $r: String!, $o: String, $f: JSONString) { project(name: $p, entityName: \"local\") "
        "{ run(name: $r) { id } runs(order: $o, filters: $f) { edges { node { name } } } } }"
    )  # fmt: skip
    evil = ["' or 1=1 --", '"; drop table runs; --', "'; copy (select 1) to '/tmp/x'; --", "$1", "{{7*7}}", "\0", "%s"]
    for text in evil:
        for variables in (
            {"p": text, "r": "r"}, {"p": "p", "r": text}, {"p": "p", "r": "r", "o": f"+{text}"},
            {"p": "p", "r": "r", "o": f"+config.{text}.value"}, {"p": "p", "r": "r", "f": json.dumps({text: 1})},
            {"p": "p", "r": "r", "f": json.dumps({f"config.{text}": {"$regex": text}})},
            {"p": "p", "r": "r", "f": text},
            {"p": "p", "r": "r", "f": json.dumps({"$and": [{"$or": [{f"summary_metrics.{text}": text}]}]})},
        ):  # fmt: skip
            body = {"query": query, "variables": variables}
            answer = requests.post(f"{server.url}/graphql", json=body, auth=("api", server.key), timeout=300).json()
            names = ((answer.get("data") or {}).get("project") or {}).get("runs", {"edges": []})["edges"]
            assert "internal error" not in json.dumps(answer), (variables, answer)
            assert len(names) <= 1
    deep = '{"$and": [' * 3000 + '{"x": 1}' + "]}" * 3000
    for text in (deep, json.dumps({"$or": [{"x": i} for i in range(50_000)]}), "[" * 100_000):
        body = {"query": query, "variables": {"p": "p", "r": "r", "f": text}}
        answer = requests.post(f"{server.url}/graphql", json=body, auth=("api", server.key), timeout=300).json()
        assert "internal error" not in json.dumps(answer), str(answer)[:300]
    healthy(server)


# Hosts


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:80", "",
     "localhost@evil.example", "evil.example#localhost", "localhost\\@evil.example", "[::1].evil.example",
     "0x7f000001.evil.example", "xn--lcalhost"],
)  # fmt: skip
def test_a_page_of_a_stranger_cannot_reach_in(server: Server, host: str) -> None:
    """DNS rebinding: the browser sends the stranger's name as the host."""
    for target in ("/graphql", "http://localhost/graphql", f"http://{host}/graphql"):
        body = json.dumps(VIEWER).encode()
        status, said = raw(server, request(server, "POST", target, f"Host: {host}", body=body))
        assert status in (0, 400, 421), said[:200]
        assert b'"viewer"' not in said


def test_forwarded_headers_are_not_believed(server: Server) -> None:
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "javascript", "X-Forwarded-For": "evil.example"}
    headers |= {"Forwarded": "host=evil.example", "X-Original-URL": "/x", "X-HTTP-Method-Override": "PUT"}
    query = {"query": RUN % ("local", "files(first: 1) { edges { node { url directUrl } } }")}
    answer = requests.post(f"{server.url}/graphql", json=query, headers=headers, auth=("api", server.key), timeout=300)
    assert answer.ok and "evil" not in answer.text and "javascript" not in answer.text
    assert "access-control-allow-origin" not in answer.headers
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = requests.options(f"{server.url}/graphql", headers=asked, timeout=300)
    assert "access-control-allow-origin" not in preflight.headers and not preflight.ok


# Ranges


def test_ranges_that_ask_for_too_much(server: Server) -> None:
    url = f"{server.url}/upload/local/p/r/big.bin"
    data = os.urandom(1 << 20)
    assert requests.put(url, data=data, auth=("api", server.key), timeout=300).ok
    target = f"{server.url}/files/local/p/r/big.bin"

    def get(ranges: str) -> requests.Response:
        return requests.get(target, headers={"Range": ranges}, auth=("api", server.key), timeout=300)

    assert get("bytes=-5").content == data[-5:]
    assert get("bytes=5-4").status_code in (400, 416)
    for odd in ("bytes=9999999-", "bytes=-0", "bytes=abc", "bytes=1-2-3", "lines=1-2", "bytes=", "bytes=--5",
                "bytes=0-99999999999999999999999", "bytes=\u0664-"):  # fmt: skip
        status, said = raw(server, request(server, "GET", "/files/local/p/r/big.bin", f"Range: {odd}"))
        assert status in (200, 206, 400, 416), (odd, said[:200])
    before = spent(server)
    for many in (",".join(["0-"] * 1000), ",".join(f"{i}-{i}" for i in range(0, 20_000, 2)), ",".join(["0-0"] * 5000)):
        answer = get(f"bytes={many}")
        assert answer.status_code in (200, 206, 400, 416, 431)
        assert len(answer.content) < 3 << 20
    assert spent(server) - before < 10
    healthy(server)
