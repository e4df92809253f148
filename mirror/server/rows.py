"""Logged rows as they cross the wire: one JSON object a line."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_SURROGATE = re.compile("[\ud800-\udfff]")


class Texts(list[str]):
    """Many texts that go out as they are: GraphQL need not look at each of them."""


def parse_row(line: str | bytes) -> dict[str, Any]:
    """The row. Bare NaN and Infinity tokens, control characters and lone surrogates are taken as the SDK sends
    them; `ValueError` if the line is no JSON object."""
    row: Any
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = json.loads(line, strict=False)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def dumps(value: Any) -> bytes:
    """JSON; what orjson refuses (lone surrogates, integers beyond 64 bit, NaN tokens) is written by the slow way."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return json.dumps(value).encode()


def one_line(text: str) -> bytes:
    """A row as the spool keeps it: without the newline older clients end it with, and without newlines between
    its tokens (inside strings JSON has none). Lone surrogates, which UTF-8 lacks, become JSON escapes."""
    line = text.strip().replace("\r", " ").replace("\n", " ")
    try:
        return line.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(lambda m: f"\\u{ord(m[0]):04x}", line).encode()
