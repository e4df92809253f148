"""A real HTTP server on 127.0.0.1 that misbehaves as told: resets, truncates, refuses, answers nonsense."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What to send. `promise` is a Content-Length larger than the body: the answer breaks off."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    promise: int | None = None

    @property
    def bytes(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


class Reset:
    """Hang up hard, without a word."""


@dataclass
class Silence:
    """Say nothing for so long, then hang up."""

    seconds: float


Action = Answer | Reset | Silence


class Liar:
    """Requests seen so far, and `reply`, which makes the answer of each."""

    def __init__(self, reply: Callable[[Request], Action]) -> None:
        self.reply = reply
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        liar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # the head and the body go out in two pieces

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                request = Request(self.command, self.path, dict(self.headers), self.rfile.read(length))
                with liar._lock:
                    liar.requests.append(request)
                action = liar.reply(request)
                if isinstance(action, Silence):
                    time.sleep(action.seconds)
                if not isinstance(action, Answer):
                    # Lingering for 0 s turns the close into a reset.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                body = action.bytes
                self.send_response(action.status)
                for name, value in {"Content-Type": "application/json", **action.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(action.promise or len(body)))
                with suppress(OSError):  # a client that lost its patience has hung up
                    self.end_headers()
                    self.wfile.write(body)
                if action.promise:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = _serve

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def finish(self) -> None:
                with suppress(OSError, ValueError):  # the connection was reset on purpose
                    super().finish()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def liar(reply: Callable[[Request], Action] | list[Action]) -> Iterator[Liar]:
    """A server that answers by a function, or by a list of actions of which the last one is repeated."""
    if isinstance(reply, list):
        script = list(reply)
        lock = threading.Lock()

        def reply(request: Request) -> Action:
            with lock:
                return script.pop(0) if len(script) > 1 else script[0]

    server = Liar(reply)
    try:
        yield server
    finally:
        server.close()
