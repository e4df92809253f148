"""Files of runs over HTTP: signed links, names that try to climb, ranges, what a browser may do with them."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from serving import Server, serving

from mirror.server.resolvers.data import like

CREATE = """mutation($e: String!, $p: String!, $r: String!, $f: [String!]!) {
    createRunFiles(input: {entityName: $e, projectName: $p, runName: $r, files: $f}) {
        runID uploadHeaders files { name uploadUrl } } }"""
MARK = """mutation($f: [String!]!) { markRunFilesUploaded(input:
    {entityName: "local", projectName: "p", runName: "r", files: $f}) { success } }"""
LIST = """query($n: [String], $p: String) { project(name: "p", entityName: "local") { run(name: "r") { fileCount
    files(names: $n, pattern: $p) { edges { node { id name url directUrl sizeBytes md5 mimetype updatedAt } } } } } }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("files") / "mirror") as found:
        found.upsert("p", "r")
        yield found


def upload(server: Server, name: str, data: bytes) -> requests.Response:
    found = server.graphql(CREATE, e="local", p="p", r="r", f=[name])["createRunFiles"]
    assert found["runID"] and found["uploadHeaders"] == [] and found["files"][0]["name"] == name
    return requests.put(found["files"][0]["uploadUrl"], data=data, timeout=300)  # no key, as the SDK


def listed(server: Server, **variables: Any) -> list[dict[str, Any]]:
    found = server.graphql(LIST, **variables)["project"]["run"]["files"]["edges"]
    return [edge["node"] for edge in found]


def test_bytes_come_back_by_both_links(server: Server) -> None:
    data = bytes(range(256)) * 1000
    assert upload(server, "dir/data.bin", data).ok
    (file,) = listed(server, n=["dir/data.bin"])
    assert file["sizeBytes"] == len(data)
    assert file["md5"] == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert requests.get(file["directUrl"], timeout=300).content == data
    assert requests.get(file["url"], timeout=300).status_code == 401
    assert requests.get(file["url"], auth=("api", server.key), timeout=300).content == data
    sha = hashlib.sha256(data).hexdigest()
    assert (server.root / "blobs" / "sha256" / sha[:2] / sha).read_bytes() == data


def test_a_link_is_good_for_its_path_and_method_only(server: Server) -> None:
    upload(server, "a.txt", b"a")
    upload(server, "b.txt", b"b")
    a, b = listed(server, n=["a.txt", "b.txt"])
    signature = urlsplit(a["directUrl"]).query
    assert requests.get(f"{b['url']}?{signature}", timeout=300).status_code == 401
    path = urlsplit(a["url"]).path
    assert (
        requests.put(
            f"{server.url}{path.replace('/files/', '/upload/')}?{signature}", data=b"x", timeout=300
        ).status_code
        == 401
    )
    late = signature.replace("expires=1", "expires=2")
    assert requests.get(f"{a['url']}?{late}", timeout=300).status_code == 401


def test_a_file_is_replaced_by_the_next_of_its_name(server: Server) -> None:
    for data in (b"one", b"three"):
        assert upload(server, "twice.txt", data).ok
    (file,) = listed(server, n=["twice.txt"])
    assert file["sizeBytes"] == 5 and requests.get(file["directUrl"], timeout=300).content == b"three"


def test_downloads_are_attachments_that_no_browser_runs(server: Server) -> None:
    upload(server, "evil.html", b"<script>alert(1)</script>")
    (file,) = listed(server, n=["evil.html"])
    headers = requests.get(file["directUrl"], timeout=300).headers
    assert headers["content-disposition"].startswith("attachment")
    assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in headers["content-security-policy"]


def test_ranges(server: Server) -> None:
    data = b"0123456789" * 100
    upload(server, "range.bin", data)
    (file,) = listed(server, n=["range.bin"])
    for asked, got, content in (
        ("bytes=0-9", "bytes 0-9/1000", data[:10]),
        ("bytes=990-", "bytes 990-999/1000", data[990:]),
        ("bytes=-5", "bytes 995-999/1000", data[-5:]),
        ("bytes=500-2000", "bytes 500-999/1000", data[500:]),
    ):
        answer = requests.get(file["directUrl"], headers={"Range": asked}, timeout=300)
        assert (answer.status_code, answer.headers["content-range"], answer.content) == (206, got, content)
    assert requests.get(file["directUrl"], headers={"Range": "bytes=5000-"}, timeout=300).status_code == 416
    head = requests.head(file["directUrl"], timeout=300)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "1000", b"")


CLIMBERS = [
    "../x", "a/../../x", "/etc/passwd", "..", ".", "a//b", "a/./b", "a\\b", "..\\x", "C:/x", "a\x00b", "a\nb", "",
    "a/", "x" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("name", CLIMBERS)
def test_names_that_climb_are_refused(server: Server, name: str) -> None:
    before = {p for p in server.root.rglob("*") if "blobs" not in p.parts}
    body = {"query": CREATE, "variables": {"e": "local", "p": "p", "r": "r", "f": [name]}}
    answer = server.post("/graphql", body).json()
    assert "no file name" in answer["errors"][0]["message"], answer
    path = f"/upload/local/p/r/{quote(name, safe='')}"
    put = requests.Request("PUT", server.url, data=b"x", auth=("api", server.key)).prepare()
    put.url = f"{server.url}{path}"  # as it is: requests would tidy up `..`
    assert requests.Session().send(put, timeout=300).status_code in (400, 404, 405)
    after = {p for p in server.root.rglob("*") if "blobs" not in p.parts}
    assert after == before
    assert not any(p.name in ("x", "passwd") for p in server.root.parent.rglob("*"))


@pytest.mark.parametrize(
    "name", ["%2e%2e%2f%2e%2e%2fserve-key.json", "..%2fsnapshot.json", "../../../snapshot.json", "%00"]
)
def test_nothing_but_files_of_the_run_can_be_fetched(server: Server, name: str) -> None:
    get = requests.Request("GET", server.url, auth=("api", server.key)).prepare()
    get.url = f"{server.url}/files/local/p/r/{name}"
    assert requests.Session().send(get, timeout=300).status_code in (401, 404)


@pytest.mark.parametrize(
    "name", ["ünï cödé/文件.txt", "a b+c&d=e?f#g%41.txt", "'quoted'.txt", "😀.png", "-rf", ".hidden"]
)
def test_odd_names_are_kept(server: Server, name: str) -> None:
    assert upload(server, name, name.encode()).ok
    (file,) = listed(server, n=[name])
    assert file["name"] == name and requests.get(file["directUrl"], timeout=300).content == name.encode()
    assert requests.get(file["url"], auth=("api", server.key), timeout=300).content == name.encode()


def test_a_file_that_never_came_is_not_called_uploaded(server: Server) -> None:
    body = {"query": MARK, "variables": {"f": ["never.txt"]}}
    assert "never.txt" in server.post("/graphql", body).json()["errors"][0]["message"]
    upload(server, "came.txt", b"x")
    assert server.graphql(MARK, f=["came.txt"]) == {"markRunFilesUploaded": {"success": True}}


def test_files_come_to_a_run_that_has_ended_and_to_one_that_is_just_ending(tmp_path: Path) -> None:
    with serving(tmp_path / "mirror") as server:
        server.upsert("p", "r")
        assert upload(server, "live.txt", b"1").ok
        assert server.stream("p", "r", complete=True, exitcode=0).ok
        for n in range(20):  # while it is drained, and after
            assert upload(server, f"late{n}.txt", str(n).encode()).ok
        end = time.monotonic() + 300
        while any(path.name.isdigit() for path in (server.root / "live").iterdir()) and time.monotonic() < end:
            time.sleep(0.05)
        assert upload(server, "last.txt", b"!").ok
        names = {"live.txt", "last.txt", *(f"late{n}.txt" for n in range(20))}
        assert {f["name"] for f in listed(server)} == names
        server.stop()
        server.start()
        found = listed(server)
        assert {f["name"] for f in found} == names
        content = {f["name"]: requests.get(f["directUrl"], timeout=300).text for f in found}
        assert content["late13.txt"] == "13" and content["last.txt"] == "!"
        state = '{ project(name: "p", entityName: "local") { run(name: "r") { state } } }'
        assert server.graphql(state)["project"]["run"]["state"] == "finished"


def test_the_file_list_of_a_live_run_survives_kill_9(tmp_path: Path) -> None:
    with serving(tmp_path / "mirror") as server:
        server.upsert("p", "r")
        assert upload(server, "wandb-metadata.json", json.dumps({"program": "train.py"}).encode()).ok
        assert upload(server, "b.txt", b"b").ok
        server.kill()
        server.start()
        assert [f["name"] for f in listed(server)] == ["b.txt", "wandb-metadata.json"]
        assert requests.get(listed(server)[0]["directUrl"], timeout=300).content == b"b"


def test_an_upload_link_outlives_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path / "mirror") as server:
        server.upsert("p", "r")
        found = server.graphql(CREATE, e="local", p="p", r="r", f=["f"])["createRunFiles"]["files"][0]
        server.kill()
        server.start()
        assert requests.put(found["uploadUrl"], data=b"x", timeout=300).ok


def test_a_cut_upload_leaves_nothing(server: Server) -> None:
    import socket

    url = urlsplit(
        server.graphql(CREATE, e="local", p="p", r="r", f=["cut.bin"])["createRunFiles"]["files"][0]["uploadUrl"]
    )
    with socket.create_connection((url.hostname or "", url.port or 0)) as s:
        head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 1000000\r\n\r\n"
        s.sendall(head.encode() + b"x" * 1000)
    end = time.monotonic() + 300  # until the server has noticed
    while list((server.root / "blobs" / "sha256").glob("*.tmp")) and time.monotonic() < end:
        time.sleep(0.05)
    assert listed(server, n=["cut.bin"]) == []
    assert list((server.root / "blobs" / "sha256").glob("*.tmp")) == []


@pytest.mark.parametrize(
    ("pattern", "name", "match"),
    [("%.json", "a/b.json", True), ("%.json", "a.jsonl", False), ("_.txt", "a.txt", True), ("_.txt", "ab.txt", False),
     ("a.b", "axb", False), ("100\\%", "100%", True), ("100\\%", "100x", False), ("%A%", "bab", True),
     ("", "a", False)],
)  # fmt: skip
def test_patterns_are_sql_like(pattern: str, name: str, match: bool) -> None:
    assert bool(like(pattern).fullmatch(name)) is match
