"""What a request may cost before it is refused: bytes of a body, a gzip bomb, the size of a GraphQL document."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from typing import Any

import anyio
import orjson
from graphql import DocumentNode, FieldNode, FragmentDefinitionNode, FragmentSpreadNode, SelectionSetNode
from starlette.requests import Request

MAX_GRAPHQL_BYTES = 16 << 20
MAX_STREAM_BYTES = 64 << 20
"""file_stream bodies after decompression. The SDK sends at most about 10 MiB."""

BODY_SECONDS = 300.0
"""Time a body that is held in memory may take; the SDK gives up after 180 seconds itself."""

MAX_TOKENS = 200_000
MAX_DEPTH = 16
"""The deepest query of the SDK (artifact aliases of a collection) has 11 levels."""
MAX_FIELDS = 50_000
MAX_SAME_FIELD = 50
"""How often one response name may be asked for in one selection: merging them costs the square."""


class Refused(Exception):
    """A request that will not be served: HTTP status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


async def read_body(request: Request, limit: int) -> bytes:
    """The body, decompressed if the client sent it with `Content-Encoding: gzip`; 413 beyond `limit` bytes."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise Refused(415, f"content encoding `{encoding}` is not understood here: send gzip or plain bytes")
    too_large = Refused(413, f"the body is larger than the {limit} bytes that are taken here")
    inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    held = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                if inflate:
                    try:
                        # Never more than the limit at once, however much a few bytes would inflate to.
                        chunk = inflate.decompress(chunk, limit + 1 - len(held))
                    except zlib.error as exc:
                        raise Refused(400, f"the body is not valid gzip: {exc}") from exc
                    if inflate.unconsumed_tail:
                        raise too_large
                    if inflate.unused_data:
                        raise Refused(400, "the gzip body goes on behind its end: send it as one piece")
                held += chunk
                if len(held) > limit:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the body did not come within {BODY_SECONDS:.0f} seconds") from None
    if inflate and held and not inflate.eof:
        raise Refused(400, "the gzip body ends too early")
    return bytes(held)


def parsed_body(body: bytes) -> Any:
    """The JSON value of a body; 400 if it is none. Lone surrogates and NaN tokens are taken as the SDK sends them."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise Refused(400, f"the body is no JSON: {exc}") from exc


def check_document(document: DocumentNode) -> None:
    """Refuse documents that are too deep or, fragments counted wherever they are used, too large.

    Runs before validation, which takes long on hostile documents itself.
    """
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    sizes: dict[str, tuple[int, int]] = {}

    def size(selections: SelectionSetNode | None, inside: frozenset[str]) -> tuple[int, int]:
        """(fields, depth) below one selection set."""
        if selections is None:
            return 0, 0
        fields, depth = 0, 0
        names: Counter[str] = Counter()
        for node in selections.selections:
            if isinstance(node, FragmentSpreadNode):
                name = node.name.value
                if name in inside or name not in fragments:
                    continue  # a cycle or an unknown fragment: validation says so
                if name not in sizes:
                    sizes[name] = size(fragments[name].selection_set, inside | {name})
                below, deep = sizes[name]
            else:
                below, deep = size(node.selection_set, inside)
                if isinstance(node, FieldNode):
                    below, deep = below + 1, deep + 1
                    names[(node.alias or node.name).value] += 1
            fields, depth = fields + below, max(depth, deep)
            if fields > MAX_FIELDS:
                raise Refused(400, f"the query asks for more than {MAX_FIELDS} fields: split it")
            if depth > MAX_DEPTH:
                raise Refused(400, f"the query is nested deeper than {MAX_DEPTH} levels")
        if names and (most := names.most_common(1)[0])[1] > MAX_SAME_FIELD:
            raise Refused(400, f"the query asks for `{most[0]}` {most[1]} times in one place; once is enough")
        return fields, depth

    for definition in document.definitions:
        if not isinstance(definition, FragmentDefinitionNode):
            size(getattr(definition, "selection_set", None), frozenset())
