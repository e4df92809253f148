"""Many small runs to a server: how many requests that takes, and what is said of those that are not all there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from liar import Answer, Request
from serving import Server
from syncing import Proxy

import mirror
from mirror.credentials import Credential
from mirror.importers import arrival, push
from mirror.importers.account import Account
from mirror.importers.arrival import SentRun, check_arrival
from mirror.importers.files import RunFiles
from mirror.importers.places import Namespace
from mirror.importers.push import PushOptions, push_runs
from mirror.importers.run import Destination
from mirror.query.sql import asking
from mirror.records import Project, Run, RunKey
from mirror.store import Reader
from mirror.wandb.client import Client
from mirror.wandb.transport import Transport

RUNS = 50
ROWS = 'query Q($n: String!) { project(name: "small") { run(name: $n) { history(samples: 9) summaryMetrics } } }'
SHORT = (3, 17)
"""Runs that the server is made to show one row less of."""


@pytest.fixture
def client(server: Server, proxy: Proxy) -> Iterator[Client]:
    client = Client(Transport(proxy.url, Credential(server.key, "the test"), connections=8, writable=True))
    yield client
    client.transport.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one to five rows; every other one has metadata, which is sent as a file."""
    root = tmp_path_factory.mktemp("small") / "mirror"
    with mirror.open(root, write=True) as made:
        made.put_projects([Project("lab", "local", "small")])
        for n in range(RUNS):
            key = RunKey("lab", str(n), "local", "small", f"r{n}")
            made.put_runs([Run(key, state="finished", summary='{"n":1}', metadata='{"os":"x"}' if n % 2 else None)])
            made.put_history(key, [f'{{"_step":{i},"x":{n}.5}}' for i in range(n % 5 + 1)])
    return root


def all_rids(reader: Reader) -> list[int]:
    with asking(reader) as connection:
        return [rid for (rid,) in connection.execute("select rid from runs order by rid").fetchall()]


def test_small_runs_are_asked_about_together(
    root: Path, server: Server, proxy: Proxy, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_LONG", 600.0)  # a slow machine is none of the reasons to ask earlier here
    with Reader(root) as reader:
        totals = push_runs(reader, all_rids(reader), Destination(client), PushOptions(workers=4))
    assert totals.ok and totals.done == RUNS
    assert totals.counts["history"] == sum(n % 5 + 1 for n in range(RUNS)) and totals.counts["files"] == RUNS // 2
    streams = {name: count for name, count in proxy.operations.items() if name.endswith("file_stream")}
    uploads = {name: count for name, count in proxy.operations.items() if name.startswith("/upload/")}
    assert set(streams.values()) == set(uploads.values()) == {1}
    assert (len(streams), len(uploads)) == (RUNS, RUNS // 2)
    asked = {name: count for name, count in proxy.operations.items() if not name.startswith("/")}
    # 20 runs at a time: what is there before, and what has arrived.
    assert asked["HeldRuns"] == 2 * 3 and asked["RunFilesByName"] == 3
    assert (asked["UpsertBucket"], asked["CreateRunFiles"]) == (RUNS, RUNS // 2)
    assert "RunFiles" not in asked
    for n in range(RUNS):
        query = (
            'query Q($n: String!) { project(name: "small") { run(name: $n) { history(samples: 9) summaryMetrics } } }'
        )
        run = server.graphql(query, n=f"r{n}")["project"]["run"]
        assert run["history"] == [f'{{"_step":{i},"x":{n}.5}}' for i in range(n % 5 + 1)]
        assert json.loads(run["summaryMetrics"]) == {"n": 1}


def sent_runs(reader: Reader, names: list[str], rows: int) -> list[SentRun]:
    files = RunFiles(reader, 0, None, [])
    keys = [RunKey("there", name, "local", "arrival", name) for name in names]
    return [SentRun(key, rows, 0, 0, files, Account(key.path, key.path, "")) for key in keys]


def test_a_run_that_does_not_arrive_fails_alone(
    root: Path, server: Server, proxy: Proxy, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "_SETTLING", (0.0, 0.0))
    names = [f"a{n}" for n in range(20)]
    for n, name in enumerate(names):
        if n == 9:
            continue  # never made
        server.upsert("arrival", name)
        lines = [f'{{"_step":{i}}}' for i in range(1 if n in SHORT else 2)]
        assert server.stream("arrival", name, files={"wandb-history.jsonl": {"offset": 0, "content": lines}}).ok
    with Reader(root) as reader:
        sent = sent_runs(reader, names, 2)
        check_arrival(client, sent)
        for n, run in enumerate(sent):
            error = run.account.error
            if n == 9:
                assert error and "does not show run `local/arrival/a9`" in error
            elif n in SHORT:
                assert error and f"of 2 rows of history that were sent, `local/arrival/a{n}` shows 1" in error
            else:
                assert error is None and run.account.counts["history"] == 2
        assert proxy.operations["HeldRuns"] == 3  # once for all, twice for those that lacked rows

        def refuse(request: Request) -> Answer | None:
            asks = request.path == "/graphql" and "a5" in request.json["variables"].values()
            return Answer(400, {"errors": [{"message": "this run is broken"}]}) if asks else None

        proxy.before = refuse
        sent = sent_runs(reader, [name for n, name in enumerate(names) if n not in (*SHORT, 9)], 2)
        check_arrival(client, sent)
        assert {run.key.run_id for run in sent if run.account.error} == {"a5"}
        assert all(run.account.counts["history"] == 2 for run in sent if run.key.run_id != "a5")


def test_runs_that_cannot_be_read_fail_without_ending_the_push(root: Path, client: Client, tmp_path: Path) -> None:
    copied = tmp_path / "mirror"
    shutil.copytree(root, copied)
    with Reader(copied) as reader:
        rids = all_rids(reader)[:3]
        for path in copied.glob("data/history/*/*.parquet"):
            path.chmod(0o600)
            path.write_bytes(bytes(path.stat().st_size))
        options = PushOptions(into=Namespace("local", "broken"))
        totals = push_runs(reader, rids, Destination(client), options)
    assert len(totals.failures) == 3 and totals.done == 0
    assert all("a bug" not in str(account.error) for account in totals.failures)
