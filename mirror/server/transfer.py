"""Bytes in and bytes out over HTTP."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from mirror.errors import NotFoundError
from mirror.server.access.limits import Refused
from mirror.store.blobs import Blob, Incoming, incoming

_PIECE = 1 << 20


async def receive(request: Request, folder: Path, *, md5: str | None = None, limit: int | None = None) -> Blob:
    """Keep the body as a blob. `UsageError` if its base64 md5 is not the announced one, 413 beyond `limit` bytes;
    then nothing is kept."""
    with incoming(folder) as sink:
        await pour(request, sink, limit)
        return await run_in_threadpool(sink.keep, md5)


async def pour(request: Request, sink: Incoming, limit: int | None = None) -> None:
    """Write the body out as it comes, hashing it beside the loop that serves the others."""
    held = bytearray()
    came = 0
    async for chunk in request.stream():
        held += chunk
        came += len(chunk)
        if limit is not None and came > limit:
            raise Refused(413, f"the body is larger than the {limit} bytes that are taken here")
        if len(held) >= _PIECE:
            await run_in_threadpool(sink.write, bytes(held))
            held.clear()
    sink.write(bytes(held))


def safe_headers(name: str) -> dict[str, str]:
    """Bytes from strangers are downloads, whatever they claim to be, and never a page of this host."""
    return {
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(name.rsplit('/', 1)[-1], safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-cache",
    }


def attachment(path: Path, name: str, mimetype: str | None = None) -> Response:
    """The bytes at `path`, whole or in ranges."""
    if not path.exists():
        raise NotFoundError(f"the bytes of `{name}` are gone from the mirror's blobs: sync or upload them again")
    return FileResponse(path, media_type=mimetype or "application/octet-stream", headers=safe_headers(name))
