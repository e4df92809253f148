"""Writing to a W&B server: what goes out, at which offsets, what is refused, and what happens when it is."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from liar import Answer, Request, Reset
from serving import Server
from syncing import Proxy

from mirror.credentials import Credential
from mirror.errors import SourceError, TransientSourceError
from mirror.wandb import mutations
from mirror.wandb.client import Client
from mirror.wandb.filestream import FileStream, OffsetConflict
from mirror.wandb.held import held_run, held_runs
from mirror.wandb.transport import Patience, ReadOnly, Transport
from mirror.wandb.uploads import Upload, mark_uploaded, upload_files

SOON = Patience(tries=4, first_wait=0.01, longest_wait=0.05)


def client_of(url: str, key: str, *, writable: bool = True) -> Client:
    return Client(Transport(url, Credential(key, "the test"), writable=writable))


@pytest.fixture
def client(server: Server, proxy: Proxy) -> Iterator[Client]:
    client = client_of(proxy.url, server.key)
    yield client
    client.transport.close()


def rows(n: int, start: int = 0) -> list[str]:
    return [json.dumps({"_step": i, "x": i / 3}) for i in range(start, start + n)]


def made(client: Client, run_id: str) -> FileStream:
    mutations.upsert_run(client, entity="local", project="wire", run_id=run_id)
    offsets = {"history": 0, "system": 0, "logs": 0}
    return FileStream(client.transport, "local", "wire", run_id, offsets, patience=SOON)


def held_rows(server: Server, run_id: str) -> list[str]:
    query = 'query Q($n: String!) { project(name: "wire") { run(name: $n) { history(samples: 100000) state } } }'
    found: list[str] = server.graphql(query, n=run_id)["project"]["run"]["history"]
    return found


def test_nothing_is_written_to_a_server_that_was_opened_for_reading(server: Server, proxy: Proxy) -> None:
    reading = client_of(proxy.url, server.key, writable=False)
    with pytest.raises(ReadOnly, match="opened for reading"):
        mutations.upsert_run(reading, entity="local", project="wire", run_id="never")
    with pytest.raises(ReadOnly):
        reading.transport.graphql("query A { viewer { id } } mutation M { deleteRun(input: {}) { success } }", {})
    stream = FileStream(reading.transport, "local", "wire", "never", {"history": 0})
    stream.write("history", rows(1))
    with pytest.raises(ReadOnly):
        stream.flush()
    with pytest.raises(ReadOnly):
        upload_files(reading, "local", "wire", "never", [Upload("a.txt", b"a")])
    assert proxy.requests == []
    reading.transport.close()


def test_lines_arrive_at_their_offsets_and_a_repeated_request_doubles_none(
    server: Server, proxy: Proxy, client: Client
) -> None:
    stream = made(client, "offsets")
    lost = iter([Reset(), None, Answer(500, {"error": "broken"}), None, Answer(429, {}, {"Retry-After": "0"})])

    def after_the_server_took_it(request: Request) -> object:
        if not request.path.endswith("file_stream"):
            return None
        action = next(lost, None)
        if isinstance(action, Reset):  # it arrives, and its answer does not
            url = f"{server.url}{request.path}"
            assert requests.post(url, data=request.body, auth=("api", server.key), timeout=300).ok
        return action

    proxy.before = after_the_server_took_it  # type: ignore[assignment]
    for start in range(0, 300, 100):
        stream.write("history", rows(100, start))
        stream.write("logs", [f"line {start}"])
        stream.flush()
    stream.summary('{"x": 1.0, "big": 9007199254740993}')
    stream.finish(0)
    assert [json.loads(line)["_step"] for line in held_rows(server, "offsets")] == list(range(300))
    held = held_run(client, "local", "wire", "offsets")
    assert held and (held.history, held.system, held.logs, held.state) == (300, 0, 3, "finished")
    assert held.last_row and held.last_row["_step"] == 299
    assert held_runs(client, "local", "wire", ["no such run", "offsets"])["no such run"] is None


def test_many_lines_are_sent_in_requests_of_a_bounded_size(proxy: Proxy, client: Client, server: Server) -> None:
    stream = made(client, "large")
    stream.write("history", [json.dumps({"_step": i, "s": 'é"' * 200_000}) for i in range(30)])
    stream.finish(0)
    sizes = [len(r.body) for r in proxy.requests if r.path.endswith("file_stream")]
    assert len(sizes) >= 3 and max(sizes) < 10 << 20
    assert len(held_rows(server, "large")) == 30


def test_a_gap_is_a_conflict_and_404_is_waited_out(proxy: Proxy, client: Client) -> None:
    made(client, "gap")
    ahead = FileStream(client.transport, "local", "wire", "gap", {"history": 5}, patience=SOON)
    ahead.write("history", rows(1, 5))
    with pytest.raises(OffsetConflict, match="never came"):
        ahead.flush()
    missing = iter([Answer(404, {"error": "no such run"})] * 2)
    proxy.before = lambda request: next(missing, None) if request.path.endswith("file_stream") else None
    stream = FileStream(client.transport, "local", "wire", "gap", {"history": 0}, patience=SOON)
    stream.write("history", rows(2))
    stream.flush()
    proxy.before = lambda request: Answer(404, {"error": "no such run"}) if "stream" in request.path else None
    stream.write("history", rows(2))
    with pytest.raises(TransientSourceError, match=r"404.*no such run"):
        stream.flush()


def test_files_are_uploaded_through_a_busy_bucket(proxy: Proxy, client: Client, server: Server, tmp_path: Path) -> None:
    made(client, "files")
    path = tmp_path / "large"
    path.write_bytes(b"\x00\xff" * 1_500_000)
    files = [Upload("a/é.txt", b"text"), Upload("empty", b""), Upload("large.bin", path), Upload("../out", b"x")]
    busy = iter([Answer(503, "SlowDown"), Reset(), Answer(503, "SlowDown")])
    proxy.before = lambda request: next(busy, None) if request.method == "PUT" else None
    refused = upload_files(client, "local", "wire", "files", files, patience=SOON)
    assert list(refused) == ["../out"], refused
    query = '{ project(name: "wire") { run(name: "files") { files { edges { node { name sizeBytes md5 } } } } } }'
    edges = server.graphql(query)["project"]["run"]["files"]["edges"]
    found = {e["node"]["name"]: e["node"]["md5"] for e in edges}
    expected = {"a/é.txt": b"text", "empty": b"", "large.bin": path.read_bytes()}
    assert found == {name: b64encode(hashlib.md5(data).digest()).decode() for name, data in expected.items()}
    assert mark_uploaded(client, "local", "wire", "files", ["empty"])


def test_runs_are_made_changed_and_deleted(client: Client, server: Server) -> None:
    made(client, "edited").finish(3)
    held = held_run(client, "local", "wire", "edited")
    assert held and held.state == "failed"
    changed = mutations.upsert_run(client, storage_id=held.storage_id, notes="new", tags=["a", "é"])
    assert not changed.inserted and changed.run_id == "edited"
    query = '{ project(name: "wire") { run(name: "edited") { notes tags state } } }'
    assert server.graphql(query)["project"]["run"] == {"notes": "new", "tags": ["a", "é"], "state": "failed"}
    mutations.delete_run(client, held.storage_id)
    with pytest.raises(mutations.DeletedRunId, match="suffix"):
        mutations.upsert_run(client, entity="local", project="wire", run_id="edited")


def test_a_refusal_names_its_reason(client: Client) -> None:
    with pytest.raises(SourceError, match="cannot be the name of a run"):
        mutations.upsert_run(client, entity="local", project="wire", run_id="a/b")
