"""Lists of runs and their columns: attributes as they are, config and summary values with the best exact type.

What type a key has is for the selected runs to say: integers come as BIGINT (HUGEINT if they need it), numbers as
DOUBLE with NaN and infinities, strings as VARCHAR, true and false as BOOLEAN; a mix, lists and objects as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mirror.errors import UsageError
from mirror.query.kinds import best_type
from mirror.query.runs import Chosen, Selection, check_held, rids
from mirror.query.sql import Result, execute

if TYPE_CHECKING:
    from sqlglot.expressions import Expression as Expr

    from mirror.store import Reader

DEFAULT_COLUMNS = ("path", "name", "state", "created_at", "history_rows", "tags")
_FEW = 1000
_KINDS = {
    "UBIGINT": "int", "BIGINT": "int", "LONG": "long", "DOUBLE": "number", "NONFINITE": "nonfinite",
    "BOOLEAN": "bool", "VARCHAR": "string",
}  # fmt: skip
_ROOTS = ("config", "summary", "summary_metrics")


def listing(reader: Reader, selection: Selection, columns: Sequence[str] = DEFAULT_COLUMNS) -> Result:
    """The selected runs, a row each. Columns are those of the view `runs`, `path`, `duration`, `config.<key>` and
    `summary_metrics.<key>`. Raises NotFoundError for a path the mirror does not hold, UsageError for an unknown
    column."""
    for path in selection.paths:
        check_held(reader, path, selection.source)
    chosen: Selection | Chosen = selection
    if selection.limit is not None and selection.limit <= _FEW:
        # Documents are long: the few that are shown are read, not those of all runs on the way to them.
        chosen = Chosen(rids(reader, selection))
    return columns_of(reader, chosen, columns)


def columns_of(reader: Reader, runs: Selection | Chosen, columns: Sequence[str]) -> Result:
    """The same without a look at the paths."""
    from mirror.query.filters.sql import written

    return execute(reader, written(runs.query(expressions(reader, columns, runs))))


def expressions(reader: Reader, names: Sequence[str], selection: Selection | Chosen) -> list[Expr]:
    """The columns `names` of the selected runs, each under its name. UsageError for a name that is none."""
    from sqlglot import exp

    from mirror.query.filters.compile import attribute_sql
    from mirror.query.filters.sql import column
    from mirror.query.filters.tree import Attribute

    held = execute(reader, "select * from runs").columns
    found: dict[str, Expr] = {}
    documents: dict[str, Expr] = {}
    for name in names:
        if name in held:
            found[name] = column(name, "runs")
        elif name == "path":
            found[name] = _path()
        elif name == "duration":
            found[name] = attribute_sql(Attribute("duration", "duration", "duration"))
        elif re.split(r"[.\[]", name, maxsplit=1)[0] in _ROOTS:
            documents[name] = _document(name)
        else:
            raise UsageError(_unknown(name, [*held, "path", "duration", "config.<key>", "summary_metrics.<key>"]))
    found |= _typed(reader, documents, selection)
    return [exp.alias_(found[name].copy(), name, quoted=True) for name in names]


def _path() -> Expr:
    from sqlglot import exp

    from mirror.query.filters.sql import column, text

    found = column("entity", "runs")
    for name in ("project", "run_id"):
        slash = exp.DPipe(this=found, expression=text("/"))
        found = exp.DPipe(this=slash, expression=column(name, "runs"))
    return found


def _unknown(name: str, known: Sequence[str]) -> str:
    from mirror.query.filters.fields import near_match

    near = near_match(name.partition(".")[0], known)
    return f"unknown column `{name}`; {f'did you mean `{near}`?' if near else 'known: ' + ', '.join(known)}"


def _document(name: str) -> Expr:
    """The value at `config.<key>`, `summary.<key>` or `config["key"]["inner"]` as JSON, NULL where there is none. A
    key that is spelled like that goes before one that its dots lead to."""
    from mirror.query.filters.compile import pointer, readings
    from mirror.query.filters.fields import MAX_PARTS, resolve
    from mirror.query.filters.sql import call, column, text
    from mirror.query.filters.tree import Document

    root, dot, key = name.partition(".")
    places: list[tuple[str, ...]] = [(key,)] if dot and root in _ROOTS else []
    if not places or ("" not in (parts := key.split(".")) and len(parts) <= MAX_PARTS):
        field, _ = resolve(name)
        assert isinstance(field, Document)
        meant = [field.parts] if field.exact else readings(field.parts)
        places += [place for place in meant if place not in places]
    document = column("config" if name.startswith("config") else "summary", "runs")
    values = [call("json_extract", document.copy(), text(pointer(place))) for place in places]
    return call("coalesce", *values) if len(values) > 1 else values[0]


def _typed(reader: Reader, documents: dict[str, Expr], selection: Selection | Chosen) -> dict[str, Expr]:
    """JSON values cast to the type that holds all of a column exactly, for which the selected runs are looked at."""
    from sqlglot import exp

    from mirror.query.filters.sql import call, text, written

    if not documents:
        return {}
    inner = selection.query([exp.alias_(value.copy(), f"v{i}") for i, value in enumerate(documents.values())])
    looked = ", ".join(_KIND.format(v=f"v{i}") for i in range(len(documents)))
    row = execute(reader, f"select {looked} from ({written(inner)})").fetchall()[0]
    found = {}
    for i, (name, value) in enumerate(documents.items()):
        kinds = {_KINDS.get(kind, "json") for kind in row[2 * i] or () if kind != "NULL"}
        if "string" in kinds:  # beside strings, "NaN" is one
            kinds -= {"nonfinite"}
        kind = best_type(kinds, row[2 * i + 1] or 0)
        if kind == "VARCHAR":
            value = call("json_extract_string", value, text("$"))
        elif kind != "JSON":
            value = exp.TryCast(this=value, to=exp.DataType.build(kind, dialect="duckdb"))
        found[name] = value
    return found


# Strings that spell a non-finite number and integers that may leave 64 bit count as types of their own.
_KIND = """
list(distinct case
  when json_type({v}) = 'VARCHAR' and json_extract_string({v}, '$') in ('NaN', 'Infinity', '-Infinity') then 'NONFINITE'
  when regexp_full_match({v}::varchar, '-?[0-9]{{16,}}') then 'LONG'
  else json_type({v})
end) filter (where {v} is not null),
max(length({v}::varchar)) filter (where regexp_full_match({v}::varchar, '-?[0-9]{{16,}}'))
"""
