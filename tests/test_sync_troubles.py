"""Servers and runs that fail: what is reported, what is kept, what is tried again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from liar import Action, Answer, Request, Reset
from serving import Server, serving
from syncing import Copy, Done, Proxy, log_run, logged, operation_of, proxied, same, sampled

from mirror.store import Writer
from mirror.store.catalog import peek


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("served") / "mirror") as server:
        for i in range(12):
            log_run(server, "p", f"r{i:02}", logged(20), system=sampled(2))
        yield server


def lines(done: Done) -> list[str]:
    return [line for line in done.stderr.splitlines() if line]


def asks_for(request: Request, run_id: str) -> bool:
    return request.path == "/graphql" and run_id in request.json["variables"].values()


# -- wrong calls ------------------------------------------------------------------------------------------


def test_a_wrong_key(copy: Copy) -> None:
    copy.key = "f" * 40
    done = copy.sync("local/p", ok=False)
    (line,) = lines(done)
    assert "does not accept the API key from WANDB_API_KEY" in line
    assert copy.key not in done.stderr + done.stdout
    assert not copy.root.exists()


def test_no_key(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    copy.env = {"WANDB_API_KEY": ""}
    (line,) = lines(copy.sync("local/p", ok=False))
    assert "no API key" in line
    assert "wandb login" in line


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nobody", "no projects of an entity `nobody`"),
        ("local/nothing-here", "no project `local/nothing-here`"),
        ("local/p/nosuchrun", "no run `nosuchrun` in `local/p`"),
    ],
)
def test_what_does_not_exist_or_is_closed(copy: Copy, path: str, message: str) -> None:
    done = copy.sync(path, ok=False)
    assert done.exit_code == 1
    (line,) = lines(done)
    assert message in line
    assert "WANDB_API_KEY" in line or "does not exist" in line


@pytest.mark.parametrize(
    "args",
    [("a/b/c/d",), ("",), ("https://wandb.ai/a/b/sweeps/s",), ("--workers", "0", "a"), ("--no-such-option", "a"), ()],
)
def test_wrong_calls_exit_2(copy: Copy, args: tuple[str, ...]) -> None:
    assert copy.sync(*args, ok=False).exit_code == 2


def test_paths_of_another_server_than_the_one_named(copy: Copy, server: Server) -> None:
    done = copy.sync("https://wandb.ai/a/b", "--base-url", server.url, ok=False)
    assert done.exit_code == 2
    assert "is not on" in done.stderr


def test_an_unreachable_host_and_no_wandb_server(copy: Copy, tmp_path: Path) -> None:
    with proxied(Server(tmp_path / "never")) as gone:
        url = gone.url
    done = copy.sync("local/p", "--base-url", url, ok=False)
    (line,) = lines(done)
    assert f"cannot reach `{url}`" in line and "check the address" in line


def test_a_page_of_html_is_no_wandb_server(copy: Copy, proxy: Proxy) -> None:
    proxy.before = lambda request: Answer(body="<html>hello</html>", headers={"Content-Type": "text/html"})
    (line,) = lines(copy.sync("local/p", ok=False))
    assert "is no W&B server" in line


def test_a_folder_that_is_no_mirror_is_left_alone(copy: Copy, proxy: Proxy) -> None:
    copy.root.mkdir()
    (copy.root / "thesis.tex").write_text("important")
    (line,) = lines(copy.sync("local/p", ok=False))
    assert "not a mirror" in line
    assert [p.name for p in copy.root.iterdir()] == ["thesis.tex"]
    assert not proxy.requests


def test_a_server_of_the_same_mirror_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "both") as server:
        log_run(server, "p", "r", logged(3))
        (line,) = lines(Copy(server.root, server.url, server.key).sync("local/p", ok=False))
        assert "serves the mirror at" in line
        (line,) = lines(Copy(server.root, server.url, server.key).sync("local/p", "--dry-run", ok=False))
        assert "serves the mirror at" in line


def test_a_project_that_somebody_else_syncs(copy: Copy, proxy: Proxy) -> None:
    source = proxy.url.removeprefix("http://")
    with Writer(copy.root) as writer, writer.lease(source, "local", "p"):
        (line,) = lines(copy.sync("local/p", ok=False))
    assert "is being written by process" in line
    copy.sync("local/p")


# -- dry run ----------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_says_what_would_happen(server: Server, copy: Copy) -> None:
    for i in range(3):
        log_run(server, "dry", f"r{i}", logged(10))
    done = copy.sync("local/dry", "--dry-run")
    assert not copy.root.exists()
    assert done.stdout.splitlines()[-1].split()[:7] == ["local/dry", "3", "0", "0", "0", "0", "30"]
    copy.sync("local/dry")
    log_run(server, "dry", "r1", logged(5, 10), offset=10)
    log_run(server, "dry", "r3", logged(7))
    before = {p: p.read_bytes() for p in copy.root.rglob("*") if p.is_file()}
    done = copy.sync("local/dry", "--dry-run")
    assert done.stdout.splitlines()[-1].split()[:7] == ["local/dry", "1", "1", "2", "0", "0", "12"]
    assert {p: p.read_bytes() for p in copy.root.rglob("*") if p.is_file()} == before


# -- runs that fail ---------------------------------------------------------------------------------------


POISONS: dict[str, tuple[str, Any]] = {
    "500 for its rows": ("RunRows", Answer(status=500, body={"error": "cannot"})),
    "hangs up on its rows": ("RunRows", Reset()),
    "GraphQL error in its rows": ("RunRows", "errors"),
    "500 for its documents": ("RunDocuments", Answer(status=500, body={"error": "cannot"})),
    "GraphQL error in its documents": ("RunDocuments", "errors"),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_poisoned_run_is_set_apart_and_the_rest_goes_on(proxy: Proxy, copy: Copy, name: str) -> None:
    operation, how = POISONS[name]

    def poison(request: Request) -> Action | None:
        if operation_of(request) != operation or not asks_for(request, "r07"):
            return None
        if operation == "RunRows" and "history(" not in request.json["query"]:
            return None
        if how == "errors":
            names = {v: k for k, v in request.json["variables"].items()}
            error = {"message": "boom", "path": ["project", "r" + names["r07"][1:], "history"]}
            return Answer(body={"data": None, "errors": [error]})
        return how

    proxy.before = poison
    done = copy.sync("local/p", ok=False)
    assert done.exit_code == 1
    errors = lines(done)
    assert len(errors) == 1
    assert "local/p/r07: " + ("history" if operation == "RunRows" else "documents") in errors[0]
    assert "1 failed" in done.stdout
    runs = copy.runs("p")
    assert all(runs[f"r{i:02}"]["history_rows"] == 20 for i in range(12) if i != 7)
    assert len(proxy.requests) < 60, proxy.operations

    # At once tried again; then left alone for a while, and said so.
    again = copy.sync("local/p", ok=False)
    assert "r07" in again.stderr
    proxy.reset()
    waiting = copy.sync("local/p", ok=False)
    assert "in quarantine until" in waiting.stderr
    assert not any(asks_for(request, "r07") for request in proxy.requests)
    catalog = peek(copy.root)
    assert catalog is not None
    (failure,) = catalog.quarantined(proxy.url.removeprefix("http://"), "local", "p")
    assert failure.attempts == 2
    catalog.close()

    # Mended: a run that is named is tried whatever its quarantine says.
    copy.sync("local/p/r07")
    assert copy.runs("p")["r07"]["history_rows"] == 20
    copy.sync("local/p")


def test_system_metrics_that_fail_do_not_hold_up_the_history(proxy: Proxy, copy: Copy) -> None:
    def poison(request: Request) -> Action | None:
        if operation_of(request) == "RunRows" and asks_for(request, "r03") and "events(" in request.json["query"]:
            return Answer(status=502, body="bad gateway")
        return None

    proxy.before = poison
    done = copy.sync("local/p", ok=False)
    assert "local/p/r03: system:" in done.stderr
    runs = copy.runs("p")
    assert [run["history_rows"] for run in runs.values()] == [20] * 12
    assert sorted(run["system_rows"] for run in runs.values()) == [0] + [2] * 11


def test_pages_that_fail_are_asked_again_smaller(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "large", "r", logged(3000))

    def too_large(request: Request) -> Action | None:
        if operation_of(request) == "RunRows" and request.json["variables"]["s0"] > 500:
            return Answer(status=504, body="<html>gateway time-out</html>")
        return None

    proxy.before = too_large
    copy.sync("local/large")
    same(copy.rows("large", "r"), logged(3000))


def test_a_row_that_is_no_json_is_reported(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "garbled", "r", logged(5))
    log_run(server, "garbled", "other", logged(5))

    def garble(request: Request, body: Any) -> Any:
        node = (body["data"].get("project") or {}).get("r0") or {}
        if node.get("history") and asks_for(request, "r"):
            for i, name in enumerate(("r0", "r1")):
                if request.json["variables"].get(f"n{i}") == "r":
                    body["data"]["project"][name]["history"][2] = '{"_step": 2, "x": '
        return json.dumps(body).encode()

    proxy.after = garble
    done = copy.sync("local/garbled", ok=False)
    assert "local/garbled/r: history:" in done.stderr
    assert copy.runs("garbled")["other"]["history_rows"] == 5
    proxy.reset()
    copy.sync("local/garbled")
    same(copy.rows("garbled", "r"), logged(5))


# -- servers that lie -------------------------------------------------------------------------------------


def drop_rows(keep: int) -> Any:
    """Histories lose all but so many rows, whatever road is taken."""

    def after(request: Request, body: Any) -> Any:
        for node in (body["data"].get("project") or {}).values():
            if isinstance(node, dict) and "history" in node:
                node["history"] = node["history"][:keep]
        return json.dumps(body).encode()

    return after


def test_missing_rows_make_a_run_incomplete_with_both_numbers(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "missing", "r", logged(100))
    proxy.after = drop_rows(90)
    done = copy.sync("local/missing", ok=False)
    assert "incomplete: 90 rows came, the server says it has 100" in done.stderr
    run = copy.runs("missing")["r"]
    assert (run["history_rows"], run["history_total"], run["history_complete"]) == (90, 100, False)
    proxy.reset()
    copy.sync("local/missing")
    assert copy.runs("missing")["r"]["history_complete"]
    same(copy.rows("missing", "r"), logged(100))


def test_what_is_held_is_not_replaced_by_less(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "less", "r", logged(100), finish=False)
    copy.sync("local/less")
    log_run(server, "less", "r", logged(50, 100), offset=100)
    proxy.after = drop_rows(30)
    done = copy.sync("local/less", ok=False)
    assert "incomplete" in done.stderr
    assert copy.runs("less")["r"]["history_rows"] >= 100
    proxy.reset()
    copy.sync("local/less")
    same(copy.rows("less", "r"), logged(150))


def test_rows_that_only_come_without_a_range(server: Server, proxy: Proxy, copy: Copy) -> None:
    """A row without a step is in no range of steps; the count shows that it is missing."""
    rows = [{"_step": 0, "x": 1}, {"x": 2}, {"_step": 1, "x": 3}]
    log_run(server, "stepless", "r", rows)

    def only_steps(request: Request, body: Any) -> Any:
        node = (body["data"].get("project") or {}).get("r0") or {}
        if "history" in node and "lo0" in request.json["variables"]:
            node["history"] = [row for row in node["history"] if "_step" in json.loads(row)]
        return json.dumps(body).encode()

    proxy.after = only_steps
    copy.sync("local/stepless")
    same(copy.rows("stepless", "r"), rows)
    assert copy.runs("stepless")["r"]["history_road"] == "rows, unranged"


def test_a_server_that_samples_wide_ranges_is_walked(server: Server, proxy: Proxy, copy: Copy) -> None:
    """If a server gave one row per step range instead of per row, only ranges like the SDK's would be whole."""
    log_run(server, "walked", "r", logged(2500))

    def thin(request: Request, body: Any) -> Any:
        v = request.json["variables"]
        node = (body["data"].get("project") or {}).get("r0") or {}
        if "history" in node and ("lo0" not in v or v["hi0"] - v["lo0"] > 1000):
            node["history"] = node["history"][::2]
        return json.dumps(body).encode()

    proxy.after = thin
    copy.sync("local/walked", "--page-size", "2000")
    same(copy.rows("walked", "r"), logged(2500))
    assert copy.runs("walked")["r"]["history_road"] == "rows, walked"


def test_sampled_system_metrics_are_collected(server: Server, proxy: Proxy, copy: Copy) -> None:
    """A server that gives out 10 of them at a time: every one that ever came is kept, once."""
    log_run(server, "capped", "r", logged(5), system=sampled(30))
    shift = [0]

    def cap(request: Request, body: Any) -> Any:
        for node in (body["data"].get("project") or {}).values():
            if isinstance(node, dict) and "events" in node:
                node["events"] = node["events"][shift[0] :: 3]
        return json.dumps(body).encode()

    proxy.after = cap
    copy.sync("local/capped")
    run = copy.runs("capped")["r"]
    assert (run["system_rows"], run["system_got"], run["system_total"]) == (10, 10, 30)
    assert run["system_sampled"]
    for shift[0], held in ((1, 20), (1, 20), (2, 30)):
        copy.sync("local/capped", "--full")
        assert copy.runs("capped")["r"]["system_rows"] == held
    got = sorted(copy.rows("capped", "r", "system"), key=lambda row: row["_timestamp"])
    same(got, sampled(30))


def test_listings_with_duplicates_and_gaps(server: Server, proxy: Proxy, copy: Copy) -> None:
    """Each ascending page repeats a run and the whole lacks one: the opposite order finds it."""

    def muddle(request: Request, body: Any) -> Any:
        if operation_of(request) == "Runs" and request.json["variables"]["order"] == "+created_at":
            edges = body["data"]["project"]["runs"]["edges"]
            body["data"]["project"]["runs"]["edges"] = [e for e in edges if e["node"]["name"] != "r04"] + edges[:2]
        return json.dumps(body).encode()

    proxy.after = muddle
    copy.sync("local/p")
    assert sorted(copy.runs("p")) == [f"r{i:02}" for i in range(12)]
    assert proxy.operations["Runs"] == 2


def test_an_incomplete_listing_deletes_nothing(proxy: Proxy, copy: Copy) -> None:
    copy.sync("local/p")

    def lose(request: Request, body: Any) -> Any:
        if operation_of(request) == "Runs":
            body["data"]["project"]["runs"]["edges"] = body["data"]["project"]["runs"]["edges"][:11]
        return json.dumps(body).encode()

    proxy.after = lose
    for _ in range(3):
        copy.sync("local/p", "--accept-deletions", ok=None)
    assert all(run["deleted_at"] is None for run in copy.runs("p").values())


def test_lost_access_deletes_nothing(proxy: Proxy, copy: Copy) -> None:
    copy.sync("local/p")
    proxy.after = lambda request, body: json.dumps(
        {"data": {"project": None}} if operation_of(request) == "Runs" else body
    ).encode()
    for _ in range(2):
        done = copy.sync("local/p", "--accept-deletions", ok=False)
        assert "no project `local/p`" in done.stderr
    assert all(run["deleted_at"] is None for run in copy.runs("p").values())
    assert copy.sql("select outcome from sync_log order by started_at desc limit 1") == [("unreachable",)]


def test_listings_that_are_too_heavy_are_asked_in_smaller_pages(proxy: Proxy, copy: Copy) -> None:
    def too_heavy(request: Request) -> Action | None:
        if operation_of(request) == "Runs" and request.json["variables"]["first"] > 100:
            return Answer(status=502, body="bad gateway")
        return None

    proxy.before = too_heavy
    copy.sync("local/p")
    assert len(copy.runs("p")) == 12


def test_a_server_that_is_away_for_a_while(proxy: Proxy, copy: Copy) -> None:
    """Nothing is anybody's fault when the server restarts in the middle: everything arrives."""
    away = threading.Event()
    since = 0.0

    def restart(request: Request) -> Action | None:
        nonlocal since
        if operation_of(request) == "RunRows" and not away.is_set():
            away.set()
            since = time.monotonic()
        return Reset() if away.is_set() and time.monotonic() - since < 4 else None

    proxy.before = restart
    copy.sync("local/p")
    assert [run["history_rows"] for run in copy.runs("p").values()] == [20] * 12


def test_rate_limits_are_obeyed_by_all_workers(server: Server, proxy: Proxy, copy: Copy) -> None:
    """Three requests a second for eight workers: each window refuses a worker once at most."""
    lock = threading.Lock()
    allowed: list[float] = []
    refused: list[float] = []

    def limit(request: Request) -> Action | None:
        with lock:
            now = time.monotonic()
            recent = [t for t in allowed if now - t < 1]
            if len(recent) >= 3:
                refused.append(now)
                reset = f"{1 - (now - recent[0]):.3f}"
                return Answer(status=429, body="Rate limit exceeded", headers={"RateLimit-Reset": reset})
            allowed.append(now)
            return None

    proxy.before = limit
    copy.sync("local/p", "--page-size", "40")
    assert [run["history_rows"] for run in copy.runs("p").values()] == [20] * 12
    windows = 1 + len(allowed) // 3
    assert len(refused) <= 8 * windows


def test_an_old_server_without_newer_fields(server: Server, proxy: Proxy, copy: Copy) -> None:
    """Fields that a server does not know are left out; what remains is mirrored."""
    missing = {"heartbeatAt", "eventsLineCount", "logLineCount", "host"}

    def refuse(request: Request) -> Action | None:
        if request.path != "/graphql":
            return None
        unknown = [f for f in missing if f in request.json["query"]]
        if not unknown:
            return None
        errors = [{"message": f'Cannot query field "{f}" on type "Run".'} for f in sorted(unknown)]
        return Answer(status=400, body={"errors": errors})

    proxy.before = refuse
    copy.sync("local/p")
    runs = copy.runs("p")
    assert [run["history_rows"] for run in runs.values()] == [20] * 12
    assert [run["system_rows"] for run in runs.values()] == [2] * 12
    proxy.operations.clear()
    copy.sync("local/p")
    assert proxy.operations["RunRows"] <= 1
