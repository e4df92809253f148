"""The HTTP side: which paths there are, who may use them, and how errors look."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mirror.errors import LockedError, MirrorError, NotFoundError, StoreError, UsageError
from mirror.server import execution, files, stream
from mirror.server.access.asker import EVERYTHING, NOBODY, Asker, asker, set_asker
from mirror.server.access.auth import Hosts, Key, Signer, presented_key
from mirror.server.access.limits import MAX_GRAPHQL_BYTES, MAX_STREAM_BYTES, Refused, parsed_body, read_body
from mirror.server.access.users import Users
from mirror.server.artifacts.artifacts import Artifacts
from mirror.server.artifacts.http import ArtifactBytes
from mirror.server.context import Context
from mirror.server.history.exports import Exports
from mirror.server.home import Home
from mirror.server.listings import Listings
from mirror.server.look import Found
from mirror.server.rows import dumps
from mirror.server.sweeps.sweeps import Sweeps
from mirror.server.transfer import attachment, receive, safe_headers
from mirror.store.blobs import Blob, blob_path

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

STORE_HEADER = "Mirror-Store"
"""Header of every answer: the id of the store that is served."""

_READ = ["GET", "HEAD"]
_MAX_ANONYMOUS = 20_000  # bytes of a query that is answered without a valid key
_MAX_METADATA = 4 << 20
_READ_ONLY = "this server is read-only (`mirror serve --read-only`): it takes no runs and no changes"


_OTHER_HOST = "this server does not answer to that host name: see `mirror serve --allow-host`"


class Server:
    """The handlers, over one served mirror."""

    def __init__(self, home: Home, key: Key, hosts: Hosts, *, export_after: float | None = None) -> None:
        self.home = home
        self._key = key
        self._users = Users(home.layout.root)
        self._hosts = hosts
        self._signer = Signer(key)
        self._listings = Listings()
        self._documents = execution.Documents()
        self._sweeps = Sweeps(home)
        self._artifacts = Artifacts(home)
        self._exports = Exports(home, export_after)

    def app(self) -> Starlette:
        @asynccontextmanager
        async def lifespan(_: Starlette) -> Any:
            yield
            await run_in_threadpool(self._exports.close)
            await run_in_threadpool(self.home.close)

        run = "/{entity}/{project}/{run_id}"
        artifacts = ArtifactBytes(self._artifacts, self._signed)
        routes = [
            Route("/graphql", self._guarded(self.graphql, anonymous=True), methods=["POST"]),
            Route(f"/files{run}/file_stream", self._guarded(self.file_stream), methods=["POST"]),
            Route(f"/files{run}/{{name:path}}", self._guarded(self.download, signed=True), methods=_READ),
            Route(f"/upload{run}/{{name:path}}", self._guarded(self.upload, signed=True), methods=["PUT"]),
            *artifacts.routes(self._guarded),
            Route("/exports/{rid:int}/{held}/{name}", self._guarded(self.export, anonymous=True), methods=_READ),
            Route("/healthz", self._guarded(self.health, anonymous=True)),
            Route("/ready", self._guarded(self.health, anonymous=True)),
            Route("/", self._guarded(self.root, anonymous=True)),
        ]
        made = Starlette(
            routes=routes, lifespan=lifespan, exception_handlers={404: self._not_found, 405: self._not_found}
        )
        made.router.redirect_slashes = False  # it would send clients to whatever host they named
        return made

    # -- around every handler -----------------------------------------------------------------------------

    def _guarded(self, handler: Handler, *, anonymous: bool = False, signed: bool = False) -> Handler:
        async def guarded(request: Request) -> Response:
            response = await answered(request)
            # A sync from a server into the mirror it serves would chase its own tail: this tells it.
            response.headers[STORE_HEADER] = self.home.store_id
            return response

        async def answered(request: Request) -> Response:
            try:
                if not self._hosts.allows(request.headers.get("host")):
                    raise Refused(421, _OTHER_HOST)
                who = self._asker(request)
                if who is None and signed and self._signed(request):
                    who = EVERYTHING  # whoever got the link saw what it leads to, and it leads nowhere else
                if who is None and not anonymous:
                    raise Refused(401, "user is not logged in")
                set_asker(who or NOBODY)
                return await handler(request)
            except Refused as exc:
                return _error(exc.status, exc.message)
            except ClientDisconnect:
                return _error(400, "the client hung up")
            except MirrorError as exc:
                return _error(_status(exc), str(exc))
            except Exception as exc:
                traceback.print_exception(exc, file=sys.stderr)
                return _error(500, f"internal error ({type(exc).__name__}): see the server's log")

        return guarded

    async def _not_found(self, request: Request, exc: Exception) -> Response:
        if not self._hosts.allows(request.headers.get("host")):
            return _error(421, _OTHER_HOST)
        status = int(getattr(exc, "status_code", 404))
        return _error(status, f"there is nothing at {request.method} {request.url.path} here")

    def _asker(self, request: Request) -> Asker | None:
        """Whose key came with the request; None if nobody's did."""
        key = presented_key(request.headers.get("authorization"))
        if key is None:
            return None
        if self._key.matches(key):
            return EVERYTHING
        user = self._users.by_key(key)
        return user.asker() if user else None

    def _signed(self, request: Request) -> bool:
        query = request.query_params
        method = "GET" if request.method == "HEAD" else request.method
        return self._signer.valid(method, request.scope["path"], query.get("expires"), query.get("signature"))

    # -- handlers -----------------------------------------------------------------------------------------

    async def health(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def root(self, request: Request) -> Response:
        return PlainTextResponse(
            "A mirror speaks W&B's API here. Point the SDK at it:\n"
            f"  export WANDB_BASE_URL={_base_url(request)}\n  export WANDB_API_KEY=<the key of this server>\n"
        )

    async def graphql(self, request: Request) -> Response:
        who = asker()
        authorized = who is not NOBODY
        body = await read_body(request, MAX_GRAPHQL_BYTES if authorized else _MAX_ANONYMOUS)
        query, variables, name = _graphql_request(body)
        context = Context(
            self.home,
            self._artifacts,
            self._exports,
            self._listings,
            self._signer,
            self._sweeps,
            base_url=_base_url(request),
            authorized=authorized,
            # The server's own key speaks for others, as W&B's service accounts do.
            username=who.name or request.headers.get("x-wandb-username") or self.home.entity,
            user_email=request.headers.get("x-wandb-user-email") or "",
            user_agent=request.headers.get("user-agent") or "",
        )
        return await run_in_threadpool(self._graphql, query, variables, name, context)

    def _graphql(self, query: str, variables: dict[str, Any] | None, name: str | None, context: Context) -> Response:
        document = self._documents.get(query)
        operation = execution.operation(document, name)
        if not context.authorized and (
            execution.is_mutation(operation) or not execution.asks_only_for_viewer(operation)
        ):
            raise Refused(401, "user is not logged in")
        if self.home.read_only and execution.is_mutation(operation):
            raise Refused(403, _READ_ONLY)
        response = execution.run(document, variables, name, context)
        refused = response["data"] is None and not any("path" in e for e in response.get("errors", ()))
        if refused:
            return _json(response, 400)
        codes = [e["extensions"]["code"] for e in response.get("errors", ()) if "extensions" in e]
        return _json(response, codes[0] if codes and execution.is_mutation(operation) else 200)

    async def file_stream(self, request: Request) -> Response:
        self._refuse_if_read_only()
        entity, project, run_id = _run_path(request)
        body = await read_body(request, MAX_STREAM_BYTES)
        return _json(await run_in_threadpool(stream.take, self.home, entity, project, run_id, body))

    async def upload(self, request: Request) -> Response:
        self._refuse_if_read_only()
        entity, project, run_id = _run_path(request)
        name = files.checked_name(request.path_params["name"])
        found = await run_in_threadpool(self._run, entity, project, run_id)
        self.home.own(found)
        blob = await receive(request, self.home.layout.blobs)
        await run_in_threadpool(self._file_arrived, found, name, blob)
        return _json({})

    def _file_arrived(self, found: Found, name: str, blob: Blob) -> None:
        self.home.put_files(found, [files.entry(name, blob)])
        if name == files.METADATA and blob.size <= _MAX_METADATA:
            data = blob_path(self.home.layout.blobs, blob.sha256).read_bytes()
            with suppress(UnicodeDecodeError):  # kept as a file all the same
                self.home.edit(found, {"metadata": data.decode()})

    async def download(self, request: Request) -> Response:
        entity, project, run_id = _run_path(request)
        name = request.path_params["name"]
        return await run_in_threadpool(self._download, entity, project, run_id, name)

    def _download(self, entity: str, project: str, run_id: str, name: str) -> Response:
        found = self._run(entity, project, run_id)
        held = self.home.files(self.home.look(), found).get(name)
        sha256 = files.sha256_of(held) if held else None
        if sha256:
            return attachment(blob_path(self.home.layout.blobs, sha256), name, held.mimetype if held else None)
        if name == files.METADATA and (metadata := self.home.look().whole(found).run.metadata):
            return Response(metadata.encode(), headers=safe_headers(name), media_type="application/json")
        if held:
            raise NotFoundError(f"this mirror lists `{name}`, but does not hold its bytes")
        raise NotFoundError(f"run `{found.run.key.path}` has no file `{name[:200]}`")

    async def export(self, request: Request) -> Response:
        # W&B's exports are signed links to a bucket, and so are these: whoever may see the run gets one.
        if not self._signed(request):
            raise Refused(403, "this link is not valid, or not any more: ask for the run's `parquetHistory` again")
        rid, held, name = (request.path_params[p] for p in ("rid", "held", "name"))
        path = await run_in_threadpool(self._exports.file, rid, held, name)
        return attachment(path, name, "application/vnd.apache.parquet")

    def _run(self, entity: str, project: str, run_id: str) -> Found:
        found = self.home.look().run(entity, project, run_id)
        if found is None:
            raise NotFoundError(f"there is no run `{entity}/{project}/{run_id}` here")
        return found

    def _refuse_if_read_only(self) -> None:
        if self.home.read_only:
            raise Refused(403, _READ_ONLY)


def _graphql_request(body: bytes) -> tuple[str, dict[str, Any] | None, str | None]:
    found = parsed_body(body)
    query = found.get("query") if isinstance(found, dict) else None
    variables = found.get("variables") if isinstance(found, dict) else None
    if not isinstance(query, str) or not (variables is None or isinstance(variables, dict)):
        raise Refused(400, 'the body must be an object like {"query": "..", "variables": {..}}')
    name = found.get("operationName")
    return query, variables, name if isinstance(name, str) else None


def _run_path(request: Request) -> tuple[str, str, str]:
    p = request.path_params
    return p["entity"], p["project"], p["run_id"]


def _base_url(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers['host']}"


def _status(exc: MirrorError) -> int:
    if isinstance(exc, NotFoundError):
        return 404
    if isinstance(exc, LockedError):
        return 503
    if isinstance(exc, StoreError):
        return 507 if "disk is full" in str(exc) else 500
    return 400 if isinstance(exc, UsageError) else 409


def _json(value: Any, status: int = 200) -> Response:
    return Response(dumps(value), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="api"'} if status == 401 else None
    return Response(dumps({"errors": [{"message": message}]}), status, headers, "application/json")
