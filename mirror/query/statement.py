"""Is this text one statement that only reads? Decided by DuckDB's own parser, never by a second opinion.

The statement type is not enough (all tried on DuckDB 2.0, the first two overwrote a live segment): a WITH clause
may hold COPY, INSERT, UPDATE or DELETE, and the whole still counts as SELECT; json_execute_serialized_sql() runs
such a thing out of a string; EXPLAIN ANALYZE runs what it explains; a PIVOT is a bundle of statements; table
functions such as arrow_scan() take memory addresses. So SELECTs are checked node by node as DuckDB parsed them,
and where DuckDB gives no such tree (EXPLAIN, PIVOT) word by word as DuckDB's tokenizer sees them. Table functions
must be on a list: the mirror's data are tables.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from mirror.errors import QueryError

if TYPE_CHECKING:
    import duckdb

_READS = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE", "STATEMENT_NODE"}
"""Kinds of query nodes that read. INSERT_QUERY_NODE, COPY_QUERY_NODE and whatever comes next are not among them."""

_WORD = re.compile(r'"(?:[^"]|"")*"|\w+|\S')
_FIRST_WORDS = {"pivot", "pivot_wider", "pivot_longer", "unpivot", "select", "from", "with", "table", "values"}
_WRITES = {
    "insert", "update", "delete", "copy", "merge", "create", "drop", "alter", "attach", "detach", "install", "load",
    "export", "import", "call", "set", "reset", "pragma", "truncate", "vacuum", "checkpoint", "prepare", "execute",
}  # fmt: skip
_TABLE_FUNCTIONS = {
    "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_schemas", "duckdb_settings", "duckdb_tables",
    "duckdb_types", "duckdb_views", "generate_series", "histogram", "histogram_values", "json_each", "json_tree",
    "pg_timezone_names", "pragma_show", "pragma_table_info", "pragma_version", "range", "repeat", "repeat_row",
    "test_all_types", "unnest",
}  # fmt: skip
_FUNCTIONS_THAT_WRITE = {"nextval", "setseed", "setval", "write_log"}
REFUSED = "only reading is allowed: write one SELECT (or WITH, FROM, PIVOT, EXPLAIN, DESCRIBE, SHOW)"
_TABLES_ONLY = "ask the mirror's tables and views (`show tables` lists them), or read files with DuckDB itself"


def check(db: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Raise QueryError unless `sql` is one statement that reads; True if it is a bundle, as a PIVOT is. A syntax error
    is left to DuckDB's own exception."""
    statements = db.extract_statements(sql)
    kind = _kind(statements[0]) if len(statements) == 1 else "MULTI"
    if not statements or (len(statements) > 1 and ";" in [word for _, word in _words(sql)][:-1]):
        found = "nothing" if not statements else f"{len(statements)} statements"
        raise QueryError(f"found {found} to run; write one SELECT, without a second one after a semicolon")
    if kind == "SELECT":
        _check_select(db, sql)
        return False
    words = _words(sql)
    if kind in ("EXPLAIN", "MULTI") and words[0][1] == "explain":
        # What follows is a statement again, and EXPLAIN ANALYZE runs it.
        inner = _explained(words)
        if inner is None:
            raise QueryError(f"cannot tell what this EXPLAIN explains; {REFUSED}")
        check(db, sql.encode()[inner:].decode())
    elif kind == "MULTI":
        _check_words(words)
    else:
        raise QueryError(f"refused {kind.replace('_', ' ')}: {REFUSED}")
    return kind == "MULTI"


def explained_at(sql: str) -> int:
    """Where, in bytes, the statement begins that an EXPLAIN explains; 0 if it is none."""
    words = _words(sql)
    return (_explained(words) or 0) if words and words[0][1] == "explain" else 0


def _kind(statement: Any) -> str:
    try:
        return str(statement.type.name)
    except ValueError:  # a kind of statement that this DuckDB's Python package has no name for
        return "a statement of an unknown kind"


def _check_select(db: duckdb.DuckDBPyConnection, sql: str) -> None:
    import orjson

    found = db.execute("select json_serialize_sql(?, skip_null := true)", [sql]).fetchall()
    try:
        tree = orjson.loads(found[0][0])
    except orjson.JSONDecodeError:  # nested deeper than it reads
        tree = {"error": True}
    if tree["error"] is not False:
        # Not every SELECT can be written down (a mix of parameters, say); its words still can be looked at.
        _check_words(_words(sql))
        return
    _check_tree(tree["statements"])


def _check_tree(tree: Any) -> None:
    """Look at every node, whatever it belongs to: DuckDB's shape of a tree changes with its versions."""
    stack, nodes = [tree], 0
    while stack:
        found = stack.pop()
        if isinstance(found, list):
            stack += found
        elif isinstance(found, dict):
            stack += found.values()
            kind = found.get("type")
            if isinstance(kind, str) and kind.endswith("_NODE"):
                nodes += 1
                if kind not in _READS:
                    said = kind.removesuffix("_NODE").removesuffix("_QUERY")
                    raise QueryError(f"refused {said} inside WITH: {REFUSED}")
            if kind == "TABLE_FUNCTION":
                _check_table_function(str((found.get("function") or {}).get("function_name")))
            if str(found.get("function_name")).lower() in _FUNCTIONS_THAT_WRITE:
                raise QueryError(f"refused {found['function_name']}(): {REFUSED}")
    if not nodes:
        raise QueryError(f"cannot tell what this statement does; {REFUSED}")


def _check_table_function(name: str) -> None:
    if name.lower() not in _TABLE_FUNCTIONS:
        raise QueryError(f"refused {name}(): {_TABLES_ONLY}")


def _words(sql: str) -> list[tuple[int, str]]:
    """Byte offset and lower-case text of every token that is neither a comment nor a string."""
    import duckdb

    data = sql.encode()
    tokens = duckdb.tokenize(sql)
    ends = [start for start, _ in tokens[1:]] + [len(data)]
    skipped = (duckdb.token_type.comment, duckdb.token_type.string_const)
    found = []
    for (start, kind), end in zip(tokens, ends, strict=True):
        text = data[start:end].decode(errors="replace").lower()
        # DuckDB 1.5 counts a comment to the token before it.
        word = _WORD.match(text)
        if kind not in skipped and word is not None:
            found.append((start, word[0]))
    return found


def _check_words(words: list[tuple[int, str]]) -> None:
    first = next((word for _, word in words if word != "("), "")
    if first not in _FIRST_WORDS:
        raise QueryError(f"refused {first.upper()[:40]}: {REFUSED}")
    all_table_functions = _known_table_functions()
    for (_, word), (_, after) in zip(words, [*words[1:], (0, "")], strict=True):
        if word in _WRITES:
            raise QueryError(f'refused {word.upper()}: {REFUSED}; quote a column of that name: "{word}"')
        name = word[1:-1].replace('""', '"') if word.startswith('"') else word
        if after == "(" and name in _FUNCTIONS_THAT_WRITE:
            raise QueryError(f"refused {name}(): {REFUSED}")
        if after == "(" and name in all_table_functions:
            _check_table_function(name)


@cache
def _known_table_functions() -> set[str]:
    import duckdb

    with duckdb.connect() as db:
        kinds = "('table', 'table_macro', 'pragma')"
        rows = db.execute(f"select distinct function_name from duckdb_functions() where function_type in {kinds}")
        return {row[0] for row in rows.fetchall()}


def _explained(words: list[tuple[int, str]]) -> int | None:
    """Where the statement begins that an EXPLAIN explains."""
    rest = iter(words[1:])
    for start, word in rest:
        if word == "analyze":
            continue
        if word != "(":
            return start
        # EXPLAIN (ANALYZE, FORMAT json) ...; anything else in parentheses is the statement itself
        option = next(rest, (0, ""))[1]
        if option not in ("analyze", "format"):
            return start
        while next(rest, (0, ")"))[1] != ")":
            pass
    return None
