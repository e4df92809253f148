"""DuckDB's error messages, said in one line: what is wrong, where, and what was probably meant."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mirror.query.wide import VIEWS as WIDE_VIEWS

if TYPE_CHECKING:
    import duckdb

    from mirror.query.wide import Statement

_TABLE = re.compile(r"Table with name (.+?) does not exist!")
_LONGEST = 400


def complaint(error: Exception, statement: Statement | None, db: duckdb.DuckDBPyConnection) -> str:
    """One line for an exception that a statement raised on `db`."""
    kind, _, rest = str(error).partition(": ")
    found = _as_json(rest)
    message = str(found.get("exception_message", rest)) if found else rest
    position = found.get("position") if found else None
    first, *others = [line.strip() for line in message.splitlines() if line.strip()] or [kind]
    table = _TABLE.match(first)
    if "Permission" in kind and "file system operations are disabled" in first:
        first = first.partition(" - ")[0]
        others = ["queries read the mirror's own tables only (`show tables` lists them)"]
    elif table is not None and kind.startswith("Catalog"):
        first, others = _unknown_table(table[1], db)
    elif first.startswith("Max expression depth"):
        first, others = first.partition(".")[0], ["nest the query less"]
    elif others and others[0].startswith("LINE "):
        others = []
    hint = " ".join(others)
    text = first.rstrip("!.") + _where(position, statement) + (f"; {hint}" if hint else "")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _as_json(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _where(position: str | None, statement: Statement | None) -> str:
    """Line and column (both from 1) of a position, in what the user wrote."""
    import duckdb

    if statement is None or position is None or not position.isdigit():
        return ""
    found = int(position)
    if not duckdb.__version__.startswith("1."):  # bytes since DuckDB 2.0, characters before
        found = len(statement.text.encode()[:found].decode(errors="ignore"))
    place = statement.origin(found)
    if place is None:
        return ""
    before = statement.written[:place]
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    return f" (line {line}, column {column})" if line > 1 else f" (column {column})"


def _unknown_table(name: str, db: duckdb.DuckDBPyConnection) -> tuple[str, list[str]]:
    rows = db.cursor().execute("select schema_name, view_name from duckdb_views() where not internal").fetchall()
    tables = [f"{s}.{t}" if s != "main" else t for s, t in rows if s in ("main", "raw")]
    ours = sorted([*(t for t in tables if "." not in t), *WIDE_VIEWS])
    near = get_close_matches(name.lower(), [*ours, *tables], 1, cutoff=0.5)
    meant = [f"did you mean `{near[0]}`?"] if near else [f"there are {', '.join(ours)}"]
    return f"there is no table `{name}`", meant
