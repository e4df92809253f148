"""Threads for waiting on the network, which never keep the program from ending.

`concurrent.futures` joins its threads at exit, so that a server that does not answer would hold up Ctrl-C
for as long as a request may take.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Pool:
    """At most `size` daemon threads; each piece of work starts one more until there are that many."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        future: Future[_T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._work.put((future, lambda: function(*args, **kwargs)))
            if len(self._threads) < self._size:
                name = f"{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def _run(self) -> None:
        while True:
            item = self._work.get()
            if item is None:
                return
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as e:
                    future.set_exception(e)
            del item, future, call  # results may be large

    def close(self) -> None:
        """Forget work that has not begun; threads end after what they are doing."""
        with self._lock:
            self._closed = True
            try:
                while True:
                    item = self._work.get_nowait()
                    if item:
                        item[0].cancel()
            except queue.Empty:
                pass
            for _ in self._threads:
                self._work.put(None)
