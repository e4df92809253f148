"""What a run logged: rows, console lines, files."""

from __future__ import annotations

import re
from typing import Any

from graphql import GraphQLResolveInfo

from mirror.errors import UsageError
from mirror.records import FileEntry, Stream
from mirror.server import files, ids, logs
from mirror.server.context import RunNode, context
from mirror.server.history import reading as history
from mirror.server.history.exports import reads_exports
from mirror.server.rows import Texts, dumps
from mirror.server.wire import connection, paged, wire_time

_TAIL = 10
MAX_SAMPLES = 1 << 31


def _count(stream: Stream) -> Any:
    return lambda node, _: history.count(node.look, node.found, stream)


def _rows(stream: Stream) -> Any:
    def resolve(
        node: RunNode,
        info: GraphQLResolveInfo,
        minStep: int | None = None,
        maxStep: int | None = None,
        samples: int | None = None,
    ) -> Texts:
        if samples is None:
            samples = 500
        start = _exported(node, info) if stream == "history" else 0
        return Texts(
            history.rows(
                node.look, node.found, stream, min_step=minStep, max_step=maxStep, samples=samples, start=start
            )
        )

    return resolve


def _tail(stream: Stream) -> Any:
    """The last rows as a JSON list of row texts, which a resuming client looks at for its last step."""

    def resolve(node: RunNode, _: GraphQLResolveInfo) -> str:
        return dumps(history.last(node.look, node.found, stream, _TAIL)).decode()

    return resolve


def _sampled(node: RunNode, info: GraphQLResolveInfo, specs: list[str], **_: Any) -> list[list[dict[str, Any]]]:
    start = _exported(node, info)
    return [history.sampled(node.look, node.found, spec, start) for spec in specs]


def _exported(node: RunNode, info: GraphQLResolveInfo) -> int:
    """Rows that this client has from the run's export already and would count twice if it got them again."""
    ctx, name = context(info), info.operation.name
    if not node.found.live or not (name and reads_exports(ctx.user_agent, name.value)):
        return 0
    return ctx.exports.rows_of_resumed(node.found)


def _parquet(node: RunNode, info: GraphQLResolveInfo, liveKeys: list[str]) -> dict[str, Any]:
    """Where a run has no export, neither URLs nor rows: the SDK then reads all rows by step range."""
    ctx = context(info)
    paths, live = ctx.exports.of(node.look, node.found, liveKeys)
    return {"parquetUrls": [ctx.link(path, sign="GET") for path in paths], "liveData": live}


def _log_lines(
    node: RunNode,
    _: GraphQLResolveInfo,
    first: int | None = None,
    after: str | None = None,
    last: int | None = None,
    **__: Any,
) -> dict[str, Any]:
    if last is not None:
        lines, start, more = logs.last(node.look, node.found, last)
    else:
        parts = ids.decode(after, "Line", 1) if after else ["-1"]
        if parts is None:
            raise UsageError(f"`{(after or '')[:100]}` is no cursor of this server: start again without `after`")
        start = int(parts[0]) + 1
        lines, more = logs.page(node.look, node.found, start, 1000 if first is None else max(0, first))
    nodes = [
        {"number": n, "timestamp": wire_time(at), "level": level, "label": None, "line": text}
        for n, at, level, text in lines
    ]
    return connection(nodes, [ids.encode("Line", line[0]) for line in lines], more=more)


def _file_node(node: RunNode, info: GraphQLResolveInfo, found: FileEntry) -> dict[str, Any]:
    ctx = context(info)
    key = node.key
    name = (key.entity, key.project, key.run_id, found.name)
    path, upload = files.file_path(*name), files.upload_path(*name)
    return {
        "id": ids.encode("File", node.found.rid, found.name),
        "name": found.name,
        "displayName": found.name,
        "url": lambda _info, upload=False: ctx.link(files.upload_path(*name), sign="PUT") if upload else ctx.link(path),
        "directUrl": ctx.link(path, sign="GET"),
        "uploadUrl": ctx.link(upload, sign="PUT"),
        "uploadHeaders": [],
        "storagePath": found.storage_id,
        "sizeBytes": found.size or 0,
        "mimetype": found.mimetype,
        "md5": found.md5,
        "digest": found.md5,
        "updatedAt": wire_time(found.updated_at),
    }


def _files(
    node: RunNode,
    info: GraphQLResolveInfo,
    names: list[str | None] | None = None,
    pattern: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    held = context(info).home.files(node.look, node.found)
    if names:
        held = {n: held[n] for n in dict.fromkeys(names) if n is not None and n in held}
    elif pattern is not None:
        matcher = like(pattern)
        held = {n: e for n, e in held.items() if matcher.fullmatch(n)}
    found = paged([held[n] for n in sorted(held)], first, after)
    for edge in found["edges"]:
        edge["node"] = _file_node(node, info, edge["node"])
    return found


def like(pattern: str) -> re.Pattern[str]:
    """SQL's LIKE (`%` any text, `_` one character, `\\` takes the next one literally), which `pattern` is."""
    parts, i = [], 0
    while i < len(pattern):
        c = pattern[i]
        if c == "\\" and i + 1 < len(pattern):
            i += 1
            parts.append(re.escape(pattern[i]))
        else:
            parts.append({"%": ".*", "_": "."}.get(c, re.escape(c)))
        i += 1
    return re.compile("".join(parts), re.IGNORECASE | re.DOTALL)


RESOLVERS: dict[str, dict[str, Any]] = {
    "Run": {
        "historyLineCount": _count("history"),
        "eventsLineCount": _count("system"),
        "logLineCount": lambda node, _: logs.count(node.look, node.found),
        "historyTail": _tail("history"),
        "eventsTail": _tail("system"),
        "history": _rows("history"),
        "events": _rows("system"),
        "sampledHistory": _sampled,
        "parquetHistory": _parquet,
        "logLines": _log_lines,
        "fileCount": lambda node, info: len(context(info).home.files(node.look, node.found)),
        "files": _files,
    },
}
