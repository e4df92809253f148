"""JSON exactly: what orjson refuses or changes, parsed and written without losing anything.

orjson is fast and strict. The wire is neither always strict (bare `NaN`, raw control characters, lone
surrogates) nor bound to 64 bit; orjson turns longer integers into floats and `-0` into `0` without a word.
`doubtful` finds such texts, `parse_exactly` reads them, `text` writes them back. A name that occurs twice in
one object keeps its last value, as in the JSON readers W&B's own client and server are made of.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import numpy as np
import orjson

NONFINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}

DOUBTFUL = r"(^|[^0-9.])[0-9]{19}|-0([^.0-9eE]|$)"
"""Texts that orjson may change: integers that may leave 64 bit, minus zero (a syntax that RE2 knows too)."""

_DOUBTFUL = re.compile(DOUBTFUL)
_MINUS_ZERO = re.compile("-0([^.0-9eE]|$)")
_LONG = 4096  # a row of thousands of keys: `re` looks for digits a hundred times slower than numpy


class Number(str):
    """The text of a number that neither a Python int of at most 64 bit nor a finite double stands for:
    longer integers, `-0`, `1e400`."""

    __slots__ = ()


def parse(text: str) -> tuple[Any, bool]:
    """The value of a JSON text, and whether the exact parser had to make it (then it may hold `Number`s and
    non-finite floats). Raises ValueError for broken JSON, RecursionError for hundreds of nested levels."""
    if not _doubtful(text):
        try:
            return orjson.loads(text), False
        except orjson.JSONDecodeError:
            pass
    return parse_exactly(text), True


def _doubtful(text: str) -> bool:
    if len(text) < _LONG:
        return _DOUBTFUL.search(text) is not None
    return _MINUS_ZERO.search(text) is not None or _has_long_integer(text)


def _has_long_integer(text: str) -> bool:
    """Whether 19 digits follow each other that do not stand behind a point."""
    letters = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    others = np.flatnonzero(letters - ord("0") > 9)
    long = np.flatnonzero(np.diff(others, prepend=-1, append=len(letters)) > 19)
    return bool((long == 0).any() or (letters[others[long - 1]] != ord(".")).any())


def parse_exactly(text: str) -> Any:
    """The value of a JSON text that orjson may refuse or change; errors as in `parse`."""
    return _EXACTLY.decode(text)


def parse_plainly(text: str) -> Any:
    """The value as Python users expect it from `json.loads`, with integers of any length."""
    return _PLAINLY.decode(text)


def write(value: Any, exact: bool, *, sort: bool = False, strict: bool = False) -> str:
    """Compact JSON text of a value from `parse`. `strict`: non-finite numbers as strings and lone surrogates
    as readable escapes, so that every reader takes the text (DuckDB refuses both)."""
    if not exact:
        try:
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort else None).decode()
        except orjson.JSONEncodeError:  # nested deeper than orjson writes
            pass
    return _write(value, sort, strict)


def quoted(text: str) -> str:
    """A JSON string; lone surrogates become escapes, so the result is always good UTF-8."""
    try:
        return orjson.dumps(text).decode()
    except orjson.JSONEncodeError:
        return json.dumps(text)


def storable(text: str) -> str:
    """The text with lone surrogates as `\\udXXX`: no UTF-8 column can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write(value: Any, sort: bool, strict: bool) -> str:
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, str):
        return quoted(storable(value) if strict else value)
    if isinstance(value, dict):
        items = sorted(value.items()) if sort else value.items()
        written = [f"{_write(key, sort, strict)}:{_write(child, sort, strict)}" for key, child in items]
        return "{" + ",".join(written) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_write(v, sort, strict) for v in value]) + "]"
    if isinstance(value, float) and value - value != 0:
        name = "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
        return f'"{name}"' if strict else name
    return orjson.dumps(value).decode()


def _int(text: str) -> int | Number:
    return int(text) if len(text) < 20 and text != "-0" else Number(text)


def _float(text: str) -> float | Number:
    value = float(text)
    return Number(text) if abs(value) == float("inf") else value


def _plain_int(text: str) -> int:
    return int(text) if len(text) < 4300 else int(Decimal(text))  # Python refuses longer texts


_EXACTLY = json.JSONDecoder(strict=False, parse_int=_int, parse_float=_float, parse_constant=NONFINITE.__getitem__)
_PLAINLY = json.JSONDecoder(strict=False, parse_int=_plain_int)
