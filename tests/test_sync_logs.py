"""Console lines of W&B runs in `mirror sync`: all of them, in order, as they showed in the end, and cheaply."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from commanding import ok
from liar import Action, Answer, Request
from serving import Server
from syncing import Copy, Proxy, log_run, logged
from test_sync_run import upload


def write(server: Server, project: str, run: str, lines: list[str], offset: int = 0, **more: Any) -> None:
    """Console lines of a run, as the SDK sends them."""
    assert server.stream(project, run, files={"output.log": {"offset": offset, "content": lines}}, **more).ok


def texts(copy: Copy, run: str) -> list[str]:
    found = copy.sql("select line, text from logs where run_id = ? order by line", run)
    assert [line for line, _ in found] == list(range(len(found)))
    return [text for _, text in found]


def lines_asked(proxy: Proxy) -> list[Request]:
    """The requests for console lines from now on."""
    asked: list[Request] = []
    proxy.before = lambda request: asked.append(request) if b"logLines(" in (request.body or b"") else None
    return asked


def test_lines_with_time_and_level(server: Server, copy: Copy) -> None:
    log_run(server, "lines", "r", logged(3), finish=False)
    lines = [
        "2026-11-21T20:04:07.123456 step 1",
        "ERROR 2026-11-21T20:04:08.5 warning: \x1b[31mé\x1b[0m 'quoted'",
        "",
        "no time at all",
        '{"ts":"2026-11-21T20:04:09.000001","level":"error","content":"{}"}',
    ]
    write(server, "lines", "r", lines, complete=True, exitcode=0)
    copy.sync("local/lines")

    def at(second: int, micro: int) -> datetime:
        return datetime(2026, 11, 21, 20, 4, second, micro, tzinfo=timezone.utc)

    held = copy.sql("select line, ts, level, text from logs order by line")
    assert [(n, ts and ts.astimezone(timezone.utc), level, text) for n, ts, level, text in held] == [
        (0, at(7, 123456), None, "step 1"),
        (1, at(8, 500000), "error", "warning: \x1b[31mé\x1b[0m 'quoted'"),
        (2, None, None, ""),
        (3, None, None, "no time at all"),
        (4, at(9, 1), "error", "{}"),
    ]


def test_a_bar_is_held_as_it_stood_in_the_end(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "bars", "r", logged(3), finish=False)
    write(server, "bars", "r", ["start", "10 %"])
    copy.sync("local/bars")
    assert texts(copy, "r") == ["start", "10 %"]
    # The bar goes on where it was, and a line is added: lines are added while the run goes on ...
    write(server, "bars", "r", ["100 %", "saved"], offset=1)
    copy.sync("local/bars")
    assert texts(copy, "r")[2:] == ["saved"]
    # ... and all of them are as they are in the end, though their number did not change.
    assert server.stream("bars", "r", complete=True, exitcode=0).ok
    copy.sync("local/bars")
    assert texts(copy, "r") == ["start", "100 %", "saved"]
    # Then nothing is asked any more, even by --full, until the run is resumed: only what was added.
    asked = lines_asked(proxy)
    copy.sync("local/bars", "--full")
    assert not asked
    server.upsert("bars", "r", "local")
    write(server, "bars", "r", ["resumed"], offset=3, complete=True, exitcode=0)
    copy.sync("local/bars")
    assert texts(copy, "r") == ["start", "100 %", "saved", "resumed"]
    assert [bool(request.json["variables"]["c0"]) for request in asked] == [True]


def test_many_logs_in_one_request_and_a_long_one_in_pages(server: Server, proxy: Proxy, copy: Copy) -> None:
    for i in range(40):
        log_run(server, "logs", f"r{i}", logged(5), finish=False)
        write(server, "logs", f"r{i}", [f"{i}: {n}" for n in range(20)], complete=True, exitcode=0)
    copy.sync("local/logs")
    assert proxy.operations["RunRows"] <= 8, proxy.operations  # as many as workers
    for i in (0, 39):
        assert texts(copy, f"r{i}") == [f"{i}: {n}" for n in range(20)]
    log_run(server, "logs", "long", finish=False)
    lines = [f"line {n} " + "x" * (n % 50) for n in range(12_345)]
    write(server, "logs", "long", lines, complete=True, exitcode=0)
    copy.sync("local/logs/long")
    assert texts(copy, "long") == lines
    first = copy.files()
    asked = lines_asked(proxy)
    done = copy.sync("local/logs", "--full")
    assert "0 new, 0 changed" in done.stdout
    assert copy.files() == first
    assert not asked


def test_a_server_without_lines_has_them_in_a_file(server: Server, proxy: Proxy, copy: Copy) -> None:
    lines = ["2026-11-21T20:04:07.123456 one", "two", "", "four"]
    log_run(server, "old", "r", logged(3), finish=False)
    upload(server, "old", "r", {"output.log": "".join(line + "\n" for line in lines).encode()})
    assert server.stream("old", "r", complete=True, exitcode=0).ok

    def before(request: Request) -> Action | None:
        body = request.body or b""
        for name in ("logLines", "logLineCount"):
            if name.encode() in body and request.path == "/graphql":
                return Answer(400, {"errors": [{"message": f'Cannot query field "{name}" on type "Run".'}]})
        return None

    proxy.before = before
    copy.sync("local/old")
    assert texts(copy, "r") == ["one", "two", "", "four"]
    first = copy.files()
    copy.sync("local/old", "--full")
    assert copy.files() == first
    upload(server, "old", "r", {"output.log": b"other"})
    copy.sync("local/old", "--full")
    assert texts(copy, "r") == ["other"]


def test_lines_that_cannot_be_read_are_said_and_tried_again(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "broken", "r", logged(30), finish=False)
    write(server, "broken", "r", [f"{n}" for n in range(10)], complete=True, exitcode=0)
    refused = Answer(200, {"errors": [{"message": "no logs today"}]})
    proxy.before = lambda r: refused if b"logLines(" in (r.body or b"") else None
    done = copy.sync("local/broken", ok=False)
    assert "logs" in done.stderr
    assert "no logs today" in done.stderr
    assert copy.runs("broken")["r"]["history_rows"] == 30
    proxy.reset()
    copy.sync("local/broken", "--full")
    assert texts(copy, "r") == [f"{n}" for n in range(10)]


def test_a_server_that_counts_lines_it_does_not_have(server: Server, proxy: Proxy, copy: Copy) -> None:
    """It is tried again, but not for ever: then it is noted, and the run is not failed for it."""
    for name in ("miscounted", "right"):
        log_run(server, "counts", name, logged(2), finish=False)
        write(server, "counts", name, ["one", "two"], complete=True, exitcode=0)

    def after(request: Request, body: Any) -> Any:
        text = json.dumps(body)
        return json.loads(text.replace('"logLineCount": 2', '"logLineCount": 5')) if "miscounted" in text else body

    proxy.after = after
    for options in ([], ["--full"]):
        done = copy.sync("local/counts/miscounted", *options, ok=False)
        assert "miscounted: logs: incomplete: 2 console lines came, the server says it has 5" in done.stderr
    done = copy.sync("local/counts/miscounted")
    assert "Note: local/counts/miscounted: logs: incomplete: 2 console lines came" in done.stderr, done
    assert copy.sql("select count(*) from quarantine") == [(0,)]
    asked = lines_asked(proxy)
    assert copy.sync("local/counts/miscounted").ok and not asked
    assert texts(copy, "miscounted") == ["one", "two"]
    assert copy.sql("select logs_rows, logs_total from runs") == [(2, 5)]
    assert "1 run held with fewer console lines than the source counts" in ok("status", root=copy.root)
