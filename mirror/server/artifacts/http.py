"""The bytes of artifacts over HTTP: uploads of drafts, downloads of files and manifests."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mirror.errors import NotFoundError
from mirror.manifests import stream
from mirror.server import ids
from mirror.server.access.asker import asker
from mirror.server.access.limits import Refused
from mirror.server.artifacts import manifest as artifacts_manifest
from mirror.server.artifacts.artifacts import Artifacts
from mirror.server.artifacts.stored import Held
from mirror.server.transfer import attachment, receive, safe_headers
from mirror.store.blobs import blob_path

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MD5 = re.compile(r"[0-9a-f]{32}")


class ArtifactBytes:
    """The handlers. `signed` says whether a request came by a link that this server signed: only such links carry
    bytes in or out, except the addresses that clients make up themselves (`artifactsV2`), which need a key."""

    def __init__(self, artifacts: Artifacts, signed: Callable[[Request], bool]) -> None:
        self._artifacts = artifacts
        self._signed = signed

    def routes(self, guarded: Callable[..., Any]) -> list[Route]:
        read = ["GET", "HEAD"]
        upload, by_key = "/artifact-files/{token}", "/artifactsV2/{region}/{entity}/{project}/{collection}"
        return [
            Route(f"{upload}/manifest/{{name}}", guarded(self.manifest_upload, anonymous=True), methods=["PUT"]),
            Route(f"{upload}/file/{{md5}}", guarded(self.upload, anonymous=True), methods=["PUT"]),
            Route(
                f"{upload}/part/{{md5}}/{{number:int}}/{{part}}", guarded(self.part, anonymous=True), methods=["PUT"]
            ),
            Route("/artifact-manifests/{artifact}", guarded(self.manifest, anonymous=True), methods=read),
            Route("/artifact-bytes/{sha256}/{name}", guarded(self.download, anonymous=True), methods=read),
            Route(f"{by_key}/{{birth}}/{{md5}}/{{name}}", guarded(self.by_digest), methods=read),
            Route("/artifacts/{entity}/{md5}", guarded(self.by_digest), methods=read),
        ]

    def _check(self, request: Request) -> None:
        if not self._signed(request):
            raise Refused(403, "this link is not valid, or not any more: ask for a new one")

    # -- in -----------------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        self._check(request)
        token, md5 = request.path_params["token"], _base64(request.path_params["md5"])
        await run_in_threadpool(self._artifacts.unfinished, token)
        blob = await receive(request, self._artifacts.home.layout.blobs, md5=md5)
        await run_in_threadpool(self._artifacts.drafts.file_came, token, blob)
        return Response(headers={"ETag": request.path_params["md5"]})

    async def manifest_upload(self, request: Request) -> Response:
        self._check(request)
        token, name = request.path_params["token"], request.path_params["name"]
        await run_in_threadpool(self._artifacts.unfinished, token)
        announced = (await run_in_threadpool(self._artifacts.drafts.arrived, token)).manifests.get(name)
        if announced is None:
            raise NotFoundError(f"no manifest `{name[:100]}` was announced: log the artifact again")
        limit = artifacts_manifest.MAX_BYTES
        blob = await receive(request, self._artifacts.home.layout.blobs, md5=announced.md5, limit=limit)
        await run_in_threadpool(self._artifacts.drafts.manifest_came, token, name, blob)
        return Response()

    async def part(self, request: Request) -> Response:
        self._check(request)
        p = request.path_params
        await run_in_threadpool(self._artifacts.unfinished, p["token"])
        folder = self._artifacts.drafts.parts(p["token"]) / _checked(p["md5"], _MD5)
        blob = await receive(request, folder, md5=_base64(p["part"]))
        await run_in_threadpool(_name_part, folder, blob.sha256, p["number"], p["part"])
        return Response(headers={"ETag": p["part"]})

    # -- out ----------------------------------------------------------------------------------------------

    async def download(self, request: Request) -> Response:
        self._check(request)
        sha256 = _checked(request.path_params["sha256"], _SHA256)
        return attachment(blob_path(self._artifacts.home.layout.blobs, sha256), request.path_params["name"])

    async def manifest(self, request: Request) -> Response:
        self._check(request)
        return await run_in_threadpool(self._manifest, request.path_params["artifact"])

    def _manifest(self, artifact_id: str) -> Response:
        source, storage_id = ids.parse_mirrored_run_id(artifact_id) or (None, artifact_id)
        found = self._artifacts.find(source, storage_id)
        if not isinstance(found, Held) or found.deleted:
            raise NotFoundError(f"there is no artifact with the id `{artifact_id[:100]}` here")
        name, sha256 = "wandb_manifest.json", found.artifact.manifest_sha256
        if sha256 and (path := blob_path(self._artifacts.home.layout.blobs, sha256)).exists():
            return attachment(path, name, "application/json")
        # Mirrored without its bytes: made from the entries.
        pieces = stream(self._artifacts.stored.batches(found))
        return StreamingResponse(pieces, headers=safe_headers(name), media_type="application/json")

    async def by_digest(self, request: Request) -> Response:
        p = request.path_params
        if not asker().sees(p["entity"]):
            raise NotFoundError("there is no such file here")
        name = p.get("name", p["md5"])
        digest = _base64(p["md5"])
        held = await run_in_threadpool(self._artifacts.stored.bytes_of, p["entity"], [digest])
        if digest not in held:
            raise NotFoundError(f"this mirror does not hold the bytes of `{name[:200]}`")
        return attachment(blob_path(self._artifacts.home.layout.blobs, held[digest][0]), name)


def _checked(text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise NotFoundError("there is nothing of that name here")
    return text


def _base64(hex_md5: str) -> str:
    return base64.b64encode(bytes.fromhex(_checked(hex_md5, _MD5))).decode()


def _name_part(folder: Path, sha256: str, number: int, md5: str) -> None:
    blob_path(folder, sha256).replace(folder / f"{number}-{md5}")
