"""`kill -9` of a server that takes in rows, console lines, summaries, files: what it acknowledged is there, once."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from chance import seed
from serving import Server

pytestmark = pytest.mark.slow

RUNS = 6
KILLS = 8
SEED = seed("MIRROR_KILL_SEED")
LOOK = """query($r: String!) { project(name: "p", entityName: "local") { run(name: $r) { state summaryMetrics fileCount
  historyLineCount eventsLineCount logLineCount history(samples: 100000) events(samples: 100000)
  logLines(first: 100000) { edges { node { number line } } }
  files(first: 1000) { edges { node { name directUrl sizeBytes md5 } } } } } }"""


@dataclass
class Client:
    """One run's client. It sends everything again until it is acknowledged, as the SDK does, and notes what was."""

    server: Server
    run: str
    stop: threading.Event
    rows: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    def insist(self, send: Callable[[], requests.Response]) -> None:
        while True:
            try:
                answer = send()
                assert answer.status_code < 400 or answer.status_code >= 500, answer.text
                if answer.ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)

    def work(self) -> None:
        try:
            self._work(random.Random(f"{SEED} {self.run}"))
        except BaseException as error:
            self.error = error

    def _work(self, chance: random.Random) -> None:
        query = "mutation($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }"
        new = {"query": query, "variables": {"i": {"entityName": "local", "modelName": "p", "name": self.run}}}
        self.insist(lambda: self.server.post("/graphql", new))
        n = 0
        while not self.stop.is_set():
            n += 1
            rows = [
                json.dumps({"_step": len(self.rows) + i, "x": chance.random()}) for i in range(chance.randrange(1, 9))
            ]
            events = [json.dumps({"_timestamp": 1.7e9 + n, "system.cpu": chance.random()})]
            console = [f"line {len(self.console)} é", f"line {len(self.console) + 1}"]
            summary = {"n": n, "x": chance.random()}
            files = {
                "wandb-history.jsonl": {"offset": len(self.rows), "content": rows},
                "wandb-events.jsonl": {"offset": len(self.events), "content": events},
                "output.log": {"offset": len(self.console), "content": console},
                "wandb-summary.json": {"offset": 0, "content": [json.dumps(summary)]},
            }
            self.insist(lambda files=files: self.server.stream("p", self.run, files=files))  # type: ignore[misc]
            self.rows += rows
            self.events += events
            self.console += console
            self.summary = summary
            # A new file, or a new content of an old one.
            name, data = f"media/f{chance.randrange(8)}.bin", chance.randbytes(chance.choice([0, 100, 300_000]))
            url = f"{self.server.url}/upload/local/p/{self.run}/{name}"
            key = ("api", self.server.key)
            self.insist(lambda url=url, data=data, key=key: requests.put(url, data=data, auth=key, timeout=300))  # type: ignore[misc]
            self.files[name] = data
        if self.run.endswith("0"):  # one of them ends; its lines are in segments at the next look
            self.insist(lambda: self.server.stream("p", self.run, complete=True, exitcode=0))


def check(server: Server, client: Client) -> None:
    found = server.graphql(LOOK, r=client.run)["project"]["run"]
    assert [json.loads(row) for row in found["history"]] == [json.loads(row) for row in client.rows]
    assert [json.loads(row) for row in found["events"]] == [json.loads(row) for row in client.events]
    lines = [(edge["node"]["number"], edge["node"]["line"]) for edge in found["logLines"]["edges"]]
    assert lines == list(enumerate(client.console))
    counts = [found[f"{name}LineCount"] for name in ("history", "events", "log")]
    assert counts == [len(client.rows), len(client.events), len(client.console)]
    assert json.loads(found["summaryMetrics"]) == client.summary
    held = {edge["node"]["name"]: edge["node"] for edge in found["files"]["edges"]}
    assert len(held) == len(found["files"]["edges"]) == found["fileCount"]
    assert held.keys() == client.files.keys()
    for name, data in client.files.items():
        assert int(held[name]["sizeBytes"]) == len(data)
        assert requests.get(held[name]["directUrl"], timeout=300).content == data


def test_nothing_acknowledged_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    server, stop = Server(tmp_path / "mirror"), threading.Event()
    server.start()
    clients = [Client(server, f"run{n}", stop) for n in range(RUNS)]
    threads = [threading.Thread(target=client.work) for client in clients]
    for thread in threads:
        thread.start()
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.1, 0.8))
            server.kill()
            server.start()
        end = time.monotonic() + 300
        while not all(len(client.rows) > 5 and client.files for client in clients) and time.monotonic() < end:
            time.sleep(0.1)  # a slow machine may have let some of them do little between two kills
        stop.set()
        for thread in threads:
            thread.join(300)
        assert [client.error for client in clients] == [None] * RUNS
        assert all(len(client.rows) > 5 and client.files for client in clients)
        server.kill()
        server.start()
        for client in clients:
            check(server, client)
        for client in clients:
            assert server.stream("p", client.run, complete=True, exitcode=0).ok
        server.stop()  # all lines are segments now
        server.start()
        for client in clients:
            check(server, client)
        assert not list((server.root / "blobs").rglob("*.tmp"))
    finally:
        stop.set()
        server.stop()
