"""What a run logs, sent to a W&B server: its file_stream, which takes lines at the offsets it says it holds.

A line sent twice at one offset is one line, so every request may be made again. Limits (W&B's rate limits for
servers; wandb 0.31): 2 requests a second a run, about 10 MiB a request, 100 KiB less than that a line. A request goes
out while the lines of the next one are made.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

import orjson

from mirror.errors import TerminalSourceError, TransientSourceError
from mirror.wandb.transport import LONG, Patience, Transport, loads, reason

Lines = Literal["history", "system", "logs"]

FILES: dict[Lines, str] = {"history": "wandb-history.jsonl", "system": "wandb-events.jsonl", "logs": "output.log"}
SUMMARY = "wandb-summary.json"
LONGEST_LINE = (10 << 20) - (100 << 10)
"""Bytes of UTF-8; servers refuse longer lines, and the SDK leaves them out."""
_FULL = LONGEST_LINE
"""Bytes of a request that make it go: as many as a single line may have."""
_PER_SECOND = 2.0
_BURST = 2.0


class OffsetConflict(TerminalSourceError):
    """The server holds other lines than we thought: ask it which, and go on from there."""


class FileStream:
    """Sends the lines of one run, in order, from `offsets` on. Used by one thread."""

    def __init__(
        self,
        transport: Transport,
        entity: str,
        project: str,
        run_id: str,
        offsets: Mapping[Lines, int],
        *,
        patience: Patience = LONG,
    ) -> None:
        self._transport = transport
        self._path = "/".join(quote(part, safe="") for part in (entity, project, run_id))
        self._next = dict(offsets)
        self._pace = _Pace()
        self._patience = patience
        self._under_way: _Request | None = None
        self._size = 0
        self._texts: dict[Lines, list[bytes]] = {}
        self._lines: dict[Lines, int] = {}
        self._more: dict[str, Any] = {}
        self._summary: bytes | None = None

    def write(self, stream: Lines, lines: Sequence[str]) -> None:
        """Append lines, each of at most LONGEST_LINE bytes; sent when enough have come together."""
        if not lines:
            return
        text = orjson.dumps(lines)[1:-1]
        if self._size + len(text) <= _FULL or (len(lines) == 1 and not self._size):
            self._append(stream, len(lines), text)
        elif len(lines) == 1:
            self._post()
            self._append(stream, 1, text)
        else:  # some of it still goes into this request
            half = len(lines) // 2
            self.write(stream, lines[:half])
            self.write(stream, lines[half:])

    def _append(self, stream: Lines, lines: int, text: bytes) -> None:
        self._texts.setdefault(stream, []).append(text)
        self._lines[stream] = self._lines.get(stream, 0) + lines
        self._size += len(text) + 1

    def summary(self, text: str) -> None:
        """The whole summary as JSON text; sent with what comes next."""
        self._summary = orjson.dumps(text)
        if self._size + len(self._summary) > _FULL:
            summary, self._summary = self._summary, None
            self._post()
            self._summary = summary
        self._size += len(self._summary)

    def uploaded(self, names: list[str]) -> None:
        """Files whose bytes have been uploaded."""
        self._more["uploaded"] = [*self._more.get("uploaded", ()), *names]

    def preempting(self) -> None:
        """The run is about to be preempted: if it now fails, it ends as `preempted`."""
        self._more["preempting"] = True
        self.flush()

    def finish(self, exit_code: int) -> None:
        """Send the rest; the run is over: `finished` for exit code 0, else `failed`."""
        self._more |= {"complete": True, "exitcode": exit_code}
        self.flush()

    def flush(self) -> None:
        """Send what has come together, if anything has; the server has taken everything in when this returns."""
        self._post()
        self._settle()

    def _post(self) -> None:
        """Have what has come together sent, after what was sent before has arrived."""
        if not self._texts and self._summary is None and not self._more:
            return
        files = [(FILES[stream], self._next[stream], texts) for stream, texts in self._texts.items()]
        if self._summary is not None:
            files.append((SUMMARY, 0, [self._summary]))
        pieces = [b'{"files":{']  # joined once: they are megabytes
        for i, (name, offset, texts) in enumerate(files):
            pieces.append(b'%b"%b":{"offset":%d,"content":[' % (b"," if i else b"", name.encode(), offset))
            pieces += (piece for text in texts for piece in (text, b","))
            pieces[-1] = b"]}"
        more = orjson.dumps(self._more)[1:]
        body = b"".join([*pieces, b"},", more] if self._more else [*pieces, b"}}"])
        for stream, lines in self._lines.items():
            self._next[stream] += lines
        self._texts, self._lines, self._more, self._summary, self._size = {}, {}, {}, None, 0
        self._settle()
        self._under_way = _Request(lambda: self._send(body))

    def _settle(self) -> None:
        """Wait for the request under way. Raises what became of it."""
        if self._under_way is not None:
            request, self._under_way = self._under_way, None
            request.wait()

    def _send(self, body: bytes) -> None:
        self._pace.wait(self._transport)
        self._transport.send(
            "POST",
            f"{self._transport.base_url}/files/{self._path}/file_stream",
            body,
            self._answer,
            headers={"Content-Type": "application/json"},
            patience=self._patience,
        )

    def _answer(self, status: int, content: bytes, headers: Any) -> None:
        where = f"`{self._transport.base_url}` answers {status} to lines of run `{self._path}`{reason(content)}"
        if status == 404:  # so it does for a moment after the run was made
            raise TransientSourceError(where)
        if status == 409:
            raise OffsetConflict(where)
        if status == 401:
            raise self._transport.wrong_key()
        if status >= 300:
            raise TerminalSourceError(where)
        if content.strip():
            try:
                loads(content)
            except ValueError as e:
                raise TransientSourceError(f"{where}, which is no JSON") from e


class _Request:
    """A call in a thread of its own, which never keeps the program from ending."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="file_stream", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as e:
            self._error = e

    def wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


class _Pace:
    """At most two requests a second, two at once after a pause."""

    def __init__(self) -> None:
        self._credit = _BURST
        self._at = time.monotonic()

    def wait(self, transport: Transport) -> None:
        now = time.monotonic()
        self._credit = min(_BURST, self._credit + (now - self._at) * _PER_SECOND) - 1
        self._at = now
        if self._credit < 0:
            transport.budget.sleep(-self._credit / _PER_SECOND)
