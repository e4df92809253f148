"""`mirror doctor --probe` finds what a server takes and gives at once, in few questions, and a sync goes by it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from liar import Action, Answer, Request
from serving import Server, serving
from starting import run_mirror
from syncing import Copy, Done, Proxy, log_run, logged, operation_of, proxied, same, sampled

from mirror.wandb.batch import Batch

RUNS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("served") / "mirror") as server:
        for i in range(RUNS):
            log_run(server, "p", f"r{i:02}", logged(3), system=sampled(2))
        log_run(server, "p", "long", logged(3000), system=sampled(900))
        yield server


@dataclass
class Strict:
    """What a server refuses, and gives out at most; and what was asked of it."""

    page: int = 10**9
    aliases: int = 10**9
    rows: int = 10**9
    events: int = 10**9
    refused: int = 0

    def before(self, request: Request) -> Action | None:
        if request.path != "/graphql":
            return None
        first = request.json["variables"].get("first") if "runs(" in request.json["query"] else None
        if (isinstance(first, int) and first > self.page) or aliases(request) > self.aliases:
            self.refused += 1
            return Answer(body={"errors": [{"message": "the query is too complex"}]})
        return None

    def after(self, request: Request, body: Any) -> Any:
        """Samples, as W&B makes them: evenly over all rows."""
        for node in (body["data"].get("project") or {}).values():
            for name, most in (("history", self.rows), ("events", self.events)):
                if isinstance(node, dict) and len(rows := node.get(name) or []) > most:
                    node[name] = [rows[i * len(rows) // most] for i in range(most)]
        return body


def aliases(request: Request) -> int:
    return sum(name[:1] == "n" and name[1:].isdigit() for name in request.json["variables"])


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as proxy:
        yield proxy


@pytest.fixture
def copy(proxy: Proxy, server: Server, tmp_path: Path) -> Copy:
    return Copy(tmp_path / "m", proxy.url, server.key)


def doctor(copy: Copy, *args: str) -> Done:
    arguments = ["doctor", "--mirror", str(copy.root), *args]
    environ = {**os.environ, **copy.environ(), "COLUMNS": "400"}
    done = run_mirror(arguments, env=environ)
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


PROBE = ("--probe", "--pace", "0", "--project", "local/p")


def findings(copy: Copy) -> dict[str, Any]:
    [found] = json.loads((copy.root / "servers.json").read_bytes()).values()
    return found


def test_limits_are_found_and_kept_to(server: Server, proxy: Proxy, copy: Copy) -> None:
    strict = Strict(page=37, aliases=11, rows=700, events=250)
    proxy.before, proxy.after = strict.before, strict.after
    done = doctor(copy, *PROBE)
    assert done.ok and "up to 40 questions about `local/p`" in done.stderr
    assert len(proxy.requests) <= 60  # with those that find out, after a refusal, whether the server is there
    found = findings(copy)
    assert {name: found[name] for name in ("page", "aliases", "rows", "events")} == {
        "page": 37, "aliases": 11, "rows": 700, "events": 250
    }  # fmt: skip
    assert "pages of 37 runs; 11 runs in one request; at most 700 rows" in done.stdout
    assert server.key not in (copy.root / "servers.json").read_text() + done.stdout + done.stderr

    strict.refused = 0
    proxy.requests.clear()
    copy.sync("local/p")
    assert strict.refused == 0
    asked = [request for request in proxy.requests if request.path == "/graphql"]
    assert max(r.json["variables"].get("first", 0) for r in asked if operation_of(r) == "Runs") == 37
    assert max(map(aliases, asked)) == 11
    for letter, most in (("s", 700), ("e", 250)):
        values = [r.json["variables"] for r in asked]
        assert max(v for said in values for name, v in said.items() if name[0] == letter and name[1:].isdigit()) <= most
    same(copy.rows("p", "long"), logged(3000))
    [long] = [run for run in copy.runs("p").values() if run["run_id"] == "long"]
    assert (long["history_road"], long["system_got"], long["system_total"], long["system_sampled"]) == (
        "rows", 250, 900, True
    )  # fmt: skip
    assert len(copy.runs("p")) == RUNS + 1


def test_a_server_without_limits_needs_few_questions(proxy: Proxy, copy: Copy) -> None:
    copy.sync("local/p")
    proxy.requests.clear()
    before = copy.files()
    done = doctor(copy, "--probe", "--pace", "0")  # the project that is held is asked about
    assert done.ok and "about `local/p`" in done.stderr
    assert len(proxy.requests) <= 10
    found = findings(copy)
    assert (found["page"], found["aliases"], found["rows"], found["events"]) == (1000, 200, None, None)
    assert (found["counts_rows"], found["exports"]) == (True, False)
    assert copy.files() == before
    again = doctor(copy, "--offline")
    assert "pages of 1,000 runs; 200 runs in one request" in again.stdout and "counts rows as they come" in again.stdout


def test_without_a_probe_a_sync_finds_out_by_itself(proxy: Proxy, copy: Copy) -> None:
    strict = Strict(page=37, aliases=11)
    proxy.before, proxy.after = strict.before, strict.after
    copy.sync("local/p")
    assert 0 < strict.refused <= 12
    assert len(copy.runs("p")) == RUNS + 1
    same(copy.rows("p", "long"), logged(3000))


def test_what_cannot_be_probed_is_said(server: Server, proxy: Proxy, copy: Copy) -> None:
    done = doctor(copy, "--probe", "--pace", "0", "--project", "local/nothing")
    assert done.exit_code == 1 and "`local/nothing` has no runs" in done.stdout
    assert doctor(copy, "--probe", "--project", "a/b/c").exit_code == 2
    assert not (copy.root / "servers.json").exists()
    copy.root.mkdir(exist_ok=True)
    (copy.root / "servers.json").write_text(json.dumps({proxy.url[7:]: {"page": -3, "aliases": "x", "rows": True}}))
    copy.sync("local/p/r01")  # as if it said nothing
    assert list(copy.runs("p")) == ["r01"]


def test_sizes_shrink_on_failures_and_recover_more_slowly_each_time() -> None:
    batch = Batch(25, 50)
    batch.went_well(25)
    assert batch.size == 50
    batch.failed(50)
    assert batch.size == 25
    tries = []
    for _ in range(200):  # a server that takes 30 at most
        if batch.size > 30:
            tries.append(_)
            batch.failed(batch.size)
        else:
            batch.went_well(batch.size)
    assert len(tries) == 2 and batch.size == 25
    for _ in range(200):  # it takes everything again
        batch.went_well(batch.size)
    assert batch.size == 50
    before = batch.remember()
    for size in (50, 25, 12, 6, 3):
        batch.failed(size)
    assert batch.size == 1
    batch.restore(before)  # it was one of the things that were asked for
    assert batch.size == 50


def test_answers_that_are_long_make_requests_small_for_as_long_as_they_are() -> None:
    batch = Batch(25, 50, most_bytes=1000)
    batch.went_well(25, 10_000)
    assert batch.size == 2
    batch.too_long(2)
    assert batch.size == 1
    for _ in range(8):
        batch.went_well(batch.size, batch.size)
    assert batch.size == 50
