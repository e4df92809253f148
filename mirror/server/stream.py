"""The file_stream protocol: rows, console lines, the summary and the end of a run, posted in pieces.

What is answered with 200 is on the disk. Rows are told apart by their line number, so a piece that is sent again
adds nothing; a piece that would leave a hole is refused, because the lines in between are lost then and the client
should know. A posted line is a row only if it is a JSON object.
"""

from __future__ import annotations

import sys
from typing import Any

from mirror.server.access.limits import Refused, parsed_body
from mirror.server.home import Home
from mirror.server.live import ENDED, LiveRun, LiveRuns
from mirror.server.rows import one_line, parse_row
from mirror.store.live import SpoolStream

_ROWS: dict[str, SpoolStream] = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "system"}
_SUMMARY = "wandb-summary.json"
_CONSOLE = "output.log"
_TRIES = 5


def take(home: Home, entity: str, project: str, run_id: str, body: bytes) -> dict[str, Any]:
    """Take in one post; returns the answer's object. `Refused` with the status to answer otherwise."""
    post = _parsed(body)
    _, live = home.writable()
    for _ in range(_TRIES):
        rid = home.find_live(entity, project, run_id)
        if rid is None:
            found = home.look().run(entity, project, run_id)
            if found is None:
                raise Refused(404, f"there is no run `{entity}/{project}/{run_id}` here: start it first")
            home.own(found)
            if not found.live:
                if not _is_news(post):
                    return {}
                home.reopen(found)
            rid = found.rid
        with live.held(rid) as held:
            if held is not None:
                return _take(live, held, post)
    raise Refused(503, f"run `{entity}/{project}/{run_id}` is just being closed: send it again")


def _parsed(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    post = parsed_body(body)
    if not isinstance(post, dict) or not isinstance(post.get("files"), dict | None):
        raise Refused(400, 'the body must be an object like {"files": {..}, "complete": true, "exitcode": 0}')
    for name, piece in (post.get("files") or {}).items():
        content = piece.get("content") if isinstance(piece, dict) else None
        if not isinstance(content, list) or not all(isinstance(line, str) for line in content):
            raise Refused(400, f'`{name}` must be an object like {{"offset": 0, "content": ["line"]}}')
        if not isinstance(piece.get("offset", 0), int) or piece.get("offset", 0) < 0:
            raise Refused(400, f"the offset of `{name}` must be a line number, not `{piece.get('offset')}`")
    return post


def _is_news(post: dict[str, Any]) -> bool:
    """Whether a post can revive a run that ended: `uploaded` alone does not, a repeated end does not either."""
    return any(piece["content"] for piece in (post.get("files") or {}).values()) or not (
        post.get("complete") or post.get("uploaded")
    )


def _take(live: LiveRuns, held: LiveRun, post: dict[str, Any]) -> dict[str, Any]:
    if live.spool.run(held.rid).state in ENDED and not _is_news(post):
        return {}
    files: dict[str, Any] = post.get("files") or {}
    rows = {stream: _checked_rows(name, files[name]) for name, stream in _ROWS.items() if name in files}
    for stream, (first, lines) in rows.items():
        count = live.spool.count(held.rid, stream)
        if first > count:
            raise Refused(409, f"lines {count} to {first - 1} of the {stream} of this run never came: send them first")
        live.spool.append(held.rid, stream, first, lines)
    if _CONSOLE in files:
        lines = [line.encode("utf-8", "replace") for line in files[_CONSOLE]["content"]]
        live.spool.rewrite_logs(held.rid, files[_CONSOLE].get("offset", 0), lines)
    unknown = [n for n in files if n not in _ROWS and n not in (_SUMMARY, _CONSOLE)]
    if unknown:
        path = live.spool.run(held.rid).key.path
        print(f"run {path!r}: the streamed file {unknown[0][:80]!r} is not kept", file=sys.stderr)
    changes: dict[str, Any] = {}
    if files.get(_SUMMARY, {}).get("content"):
        changes["summary"] = _checked_summary(files[_SUMMARY]["content"][-1])
    if post.get("preempting"):
        changes["state"] = "preempting"
    if post.get("complete"):
        code = post.get("exitcode")
        _end(live, held, code if isinstance(code, int) else 0, changes)
    else:
        live.beat(held, **changes)
        live.relieve(held)
    return {"stopped": True} if held.stop_asked else {}


def _end(live: LiveRuns, held: LiveRun, code: int, changes: dict[str, Any]) -> None:
    preempting = "preempting" in (changes.get("state"), live.spool.run(held.rid).state)
    state = "preempted" if preempting and code != 0 else "finished" if code == 0 else "failed"
    live.end(held, state, code, summary=changes.get("summary"))


def _checked_rows(name: str, piece: dict[str, Any]) -> tuple[int, list[bytes]]:
    """First line number and the lines, each a JSON object on one line."""
    first = piece.get("offset", 0)
    lines = [one_line(text) for text in piece["content"]]
    for number, line in enumerate(lines):
        try:
            parse_row(line)
        except (ValueError, RecursionError):
            excerpt = line[:80].decode("utf-8", "replace")
            raise Refused(400, f"line {first + number} of `{name}` is no JSON object: `{excerpt}`") from None
    return first, lines


def _checked_summary(text: str) -> str:
    try:
        parse_row(text)
    except (ValueError, RecursionError):
        raise Refused(400, f"`{_SUMMARY}` is no JSON object: `{text[:80]}`") from None
    return text
