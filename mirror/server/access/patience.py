"""Connections that do not get to the point are closed, and there are never more of them than the process can hold."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 30.0
"""Time from a request's first byte (or from the connection) to the end of its headers."""

_OWN_FILES = 400  # descriptors for segments, spool files, uploads, databases
_ENOUGH = 16_384
_Base: Any = HttpToolsProtocol


def room() -> int:
    """Connections there is room for, once this process may open as many files as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(100, (_ENOUGH if soft == resource.RLIM_INFINITY else soft) - _OWN_FILES)


class Protocol(_Base):  # type: ignore[misc]
    """uvicorn's HTTP protocol; it waits for headers for ever by itself."""

    room = 1000
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.room:
            transport.abort()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._silent():
            self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _silent(self) -> bool:
        """Whether no request is being answered: its headers are not all there, or none has begun."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._silent():
            self.transport.abort()
