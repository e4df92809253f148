"""Patterns of `$regex`: RE2, as at W&B, judged by the very RE2 that will run them."""

from __future__ import annotations

from functools import lru_cache

from mirror.errors import UsageError

MAX_PATTERN = 10_000
_MISSING = "look-around, back-references, possessive and atomic groups are not available in RE2"


def checked(pattern: str, at: str, refuse: type[UsageError]) -> str:
    """The pattern, or an error that says why it is none."""
    if len(pattern) > MAX_PATTERN:
        raise refuse(f"{at}: a pattern of {len(pattern):,} characters, at most {MAX_PATTERN:,} are taken")
    reason = _refused(pattern)
    if reason is not None:
        raise refuse(f"{at}: not a valid RE2 pattern ({reason}); {_MISSING}")
    return pattern


@lru_cache(maxsize=256)
def _refused(pattern: str) -> str | None:
    import duckdb

    try:
        with duckdb.connect() as db:
            db.execute("select regexp_matches('', ?)", [pattern])
    except duckdb.Error as e:
        return str(e).splitlines()[0].removeprefix("Invalid Input Error: ")
    return None


def with_options(pattern: str, options: str) -> str:
    """The pattern with MongoDB's `$options` as flags of its own: DuckDB's option `m` means something else.

    >>> with_options("a  b # two", "xi")
    '(?i)ab'
    """
    if "x" in options:
        pattern = _compact(pattern)
    flags = "".join(flag for flag in "ims" if flag in options)
    return f"(?{flags}){pattern}" if flags else pattern


def _compact(pattern: str) -> str:
    """A pattern without the blanks and comments that `x` allows; RE2 has no such flag."""
    found: list[str] = []
    in_class = False
    i = 0
    while i < len(pattern):
        one = pattern[i]
        if one == "\\":
            found.append(pattern[i : i + 2])
            i += 2
            continue
        if in_class:
            # A bracket that comes first in a class is one of its members: []a] and [^]a].
            in_class = one != "]" or "".join(found[-2:]) in ("[^",) or found[-1] == "["
            found.append(one)
        elif one == "#":
            end = pattern.find("\n", i)
            i = len(pattern) if end < 0 else end
        elif not one.isspace():
            in_class = one == "["
            found.append(one)
        i += 1
    return "".join(found)
