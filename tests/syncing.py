"""What sync tests share: runs logged over the wire, a proxy that counts and injects faults, a mirror to look into."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from liar import Action, Answer, Liar, Request
from serving import Server

from mirror.cli import main
from mirror.query.rows import rows as read_rows
from mirror.store import Reader

MIRROR = [sys.executable, "-c", "import sys; sys.argv[0] = 'mirror'; from mirror.cli import main; main()"]
"""The command, as the console script calls it."""


def logged(n: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Rows as the SDK logs them."""
    return [
        {"_step": i, "_timestamp": 1.7e9 + i / 8, "_runtime": i / 8, "loss": 1 / (i + 1), "epoch": i // 10} | more
        for i in range(start, start + n)
    ]


def sampled(n: int, start: int = 0) -> list[dict[str, Any]]:
    """System metrics as the SDK sends them."""
    return [
        {"_wandb": True, "_timestamp": 1.7e9 + 15 * i, "_runtime": 15.0 * i, "system.cpu": 10.5 + i}
        for i in range(start, start + n)
    ]


def log_run(
    server: Server,
    project: str,
    name: str,
    rows: Sequence[dict[str, Any] | str] = (),
    *,
    system: Sequence[dict[str, Any]] = (),
    offset: int = 0,
    finish: bool = True,
    summary: dict[str, Any] | None = None,
    entity: str = "local",
    **fields: Any,
) -> None:
    """Make or continue a run through upsertBucket and file_stream; `offset` is the line to write at."""
    server.upsert(project, name, entity, **fields)
    for start in range(0, max(len(rows), 1), 20_000):
        files: dict[str, Any] = {}
        part = rows[start : start + 20_000]
        if part:
            lines = [row if isinstance(row, str) else json.dumps(row) for row in part]
            files["wandb-history.jsonl"] = {"offset": offset + start, "content": lines}
        if system and not start:
            files["wandb-events.jsonl"] = {"offset": 0, "content": [json.dumps(row) for row in system]}
        if summary is not None:
            files["wandb-summary.json"] = {"offset": 0, "content": [json.dumps(summary)]}
        answer = server.stream(project, name, entity, files=files)
        assert answer.ok, answer.text
    if finish:
        assert server.stream(project, name, entity, complete=True, exitcode=0).ok


class Proxy(Liar):
    """Stands before a real server and passes everything on. `before` may answer itself, `after` may change
    the answer: both get the request, whose `operation` is the name of its GraphQL query."""

    def __init__(self, server: Server) -> None:
        self._behind = server
        self._local = threading.local()
        self.operations: Counter[str] = Counter()
        self.before: Callable[[Request], Action | None] = lambda request: None
        self.after: Callable[[Request, Any], Any] = lambda request, body: body
        super().__init__(self._pass_on)

    def reset(self) -> None:
        self.operations.clear()
        self.requests.clear()
        self.before = lambda request: None
        self.after = lambda request, body: body

    def _pass_on(self, request: Request) -> Action:
        operation = operation_of(request)
        self.operations[operation] += 1
        if (action := self.before(request)) is not None:
            return action
        session = getattr(self._local, "session", None) or requests.Session()
        self._local.session = session
        headers = {k: v for k, v in request.headers.items() if k in ("Authorization", "Content-Type", "Range")}
        answer = session.request(
            request.method, self._behind.url + request.path, data=request.body, headers=headers,
            allow_redirects=False, auth=lambda r: r, timeout=300,
        )  # fmt: skip
        body: Any = answer.content
        if request.path == "/graphql" and answer.ok:
            # Files are to be fetched through the proxy, too.
            body = self.after(request, json.loads(answer.text.replace(self._behind.url, self.url)))
        kept = {k: v for k, v in answer.headers.items() if k.lower() in ("location", "mirror-store", "content-range")}
        return body if isinstance(body, Answer) else Answer(answer.status_code, body, kept)


def operation_of(request: Request) -> str:
    """`Runs`, `RunRows`, ... or the path of a request that is no query."""
    if request.path != "/graphql":
        return request.path.split("?")[0]
    found = re.match(r"\s*(?:query|mutation)\s+(\w+)", request.json["query"])
    return found[1] if found else "?"


@contextmanager
def proxied(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server)
    try:
        yield proxy
    finally:
        proxy.close()


@dataclass
class Done:
    """What a command printed and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass
class Copy:
    """A mirror made by `mirror sync` from one server (or proxy)."""

    root: Path
    url: str
    key: str
    env: dict[str, str] = field(default_factory=dict)
    _held: tuple[object, Reader] | None = field(default=None, repr=False, compare=False)

    def arguments(self, *paths: str) -> list[str]:
        return ["sync", *paths, "--mirror", str(self.root)]

    def command(self, *paths: str) -> list[str]:
        return [*MIRROR, *self.arguments(*paths)]

    def environ(self) -> dict[str, str]:
        return os.environ | {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.key, "NETRC": "/dev/null"} | self.env

    def sync(self, *paths: str, ok: bool | None = True) -> Done:
        """Run `mirror sync`; `ok` is how it must end, None if either way will do.

        It runs in this process, since that is a second faster each time; `command` is for those that need one.
        """
        stdout, stderr = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(stdout),
            redirect_stderr(stderr),
            pytest.raises(SystemExit) as ended,
        ):
            for name, value in self.environ().items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["mirror", *self.arguments(*paths)])
            main()
        code = ended.value.code
        done = Done(code if isinstance(code, int) else int(code is not None), stdout.getvalue(), stderr.getvalue())
        assert "Traceback" not in done.stderr and "unexpected" not in done.stderr, done.stderr
        assert ok is None or done.ok is ok, done
        return done

    # -- looking into it ----------------------------------------------------------------------------------

    def reader(self) -> Reader:
        """One reader as long as the mirror stays as it is: what it makes of the views is most of what a look costs."""
        state = (self.root / "snapshot.json").stat()
        now = (self.root, state.st_ino, state.st_mtime_ns)
        if self._held is None or self._held[0] != now:
            self._held = now, Reader(self.root)
        else:
            self._held[1].refresh()  # rows that a server has taken in meanwhile
        return self._held[1]

    def sql(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self.reader().connect().execute(query, list(args)).fetchall()
        return found

    def runs(self, project: str) -> dict[str, dict[str, Any]]:
        """The live rows of `runs` of a project by run id."""
        cursor = self.reader().connect().execute("select * from runs where project = ?", [project])
        names = [d[0] for d in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return {row["run_id"]: row for row in found}

    def rows(self, project: str, run_id: str, stream: str = "history") -> list[dict[str, Any]]:
        """Logged rows as the mirror gives them back."""
        rid = self.runs(project)[run_id]["rid"]
        return list(read_rows(self.reader(), rid, stream))  # type: ignore[arg-type]

    def files(self) -> dict[str, tuple[int, int]]:
        """Every segment, with size and time: what a sync that has nothing to do must not change."""
        found = {}
        for path in sorted((self.root / "data").rglob("*")):
            stat = path.stat()
            found[str(path.relative_to(self.root))] = (stat.st_size, stat.st_mtime_ns)
        return found


def same(got: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Rows are equal, NaN to NaN, ints to ints, in order."""
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True), (f"row {i}", a, b)
