"""Clients for load tests and benchmarks: many runs that log at once over plain HTTP, readers, and clients that hang."""

from __future__ import annotations

import base64
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serving import Server

PROJECT = "load"


def lines(rows: int, keys: int, start: int = 0, seed: int = 0) -> list[str]:
    """Rows as training loops log them: step, times and keys - 3 floats."""
    rng = random.Random(seed)
    names = [f"train/metric_{k}" for k in range(keys - 3)]
    return [
        json.dumps(
            {"_step": i, "_timestamp": 1.7e9 + i * 0.37, "_runtime": i * 0.37} | {k: rng.random() for k in names}
        )
        for i in range(start, start + rows)
    ]


def posts(content: list[str], batch: int) -> list[bytes]:
    """file_stream bodies that post these lines, `batch` at a time."""
    return [
        json.dumps({"files": {"wandb-history.jsonl": {"offset": at, "content": content[at : at + batch]}}}).encode()
        for at in range(0, len(content), batch)
    ]


class Wire:
    """One connection to a server."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        token = base64.b64encode(f"api:{server.key}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        self._connection.request("POST", path, body, self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._connection.close()


@dataclass
class Measured:
    """Seconds a phase took, and how long each request took in it."""

    wall: float = 0.0
    waits: list[float] = field(default_factory=list)

    def wait(self, share: float) -> float:
        """The wait in ms that this share of the requests stays below."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else 0.0


def log(server: Server, runs: dict[str, list[bytes]], *, pause: float = 0.0) -> Measured:
    """Post the bodies of every run, each run over a connection of its own, all at once. The runs must exist."""
    found, lock = Measured(), threading.Lock()
    failures: list[BaseException] = []

    def one(name: str, bodies: list[bytes]) -> None:
        wire, waits = Wire(server), []
        try:
            for body in bodies:
                began = time.perf_counter()
                status, answer = wire.post(f"/files/local/{PROJECT}/{name}/file_stream", body)
                assert status == 200, answer
                waits.append(time.perf_counter() - began)
                if pause:
                    time.sleep(pause)
        except BaseException as error:
            failures.append(error)
        finally:
            wire.close()
        with lock:
            found.waits += waits

    began = time.perf_counter()
    threads = [threading.Thread(target=one, args=item) for item in runs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.wall = time.perf_counter() - began
    if failures:
        raise failures[0]
    return found


@contextmanager
def background(work: Callable[[], object], clients: int) -> Iterator[list[float]]:
    """`clients` threads that repeat `work` during the block; yields how long each repetition took."""
    stop, waits = threading.Event(), []
    failures: list[BaseException] = []

    def loop() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            try:
                work()
            except BaseException as error:
                failures.append(error)
                return
            waits.append(time.perf_counter() - began)

    threads = [threading.Thread(target=loop) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield waits
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def dawdlers(server: Server, clients: int, run: str, *, headers: bool = False) -> Iterator[list[socket.socket]]:
    """`clients` connections that send one byte a second: of a body, or of the `headers` themselves."""
    token = base64.b64encode(f"api:{server.key}".encode()).decode()
    start = (
        f"POST /files/local/{PROJECT}/{run}/file_stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {token}\r\n"
    )
    opening = start if headers else start + "Content-Length: 100000\r\n\r\n"
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(clients)]
    stop = threading.Event()
    for each in sockets:
        each.sendall(opening.encode())

    def drip() -> None:
        while not stop.wait(1.0):
            for each in sockets:
                try:
                    each.sendall(b"x")
                except OSError:
                    continue

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield sockets
    finally:
        stop.set()
        thread.join()
        for each in sockets:
            each.close()
