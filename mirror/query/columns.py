"""Columns of a list of runs: attributes as they are, config and summary values with the best exact type.

What type a key has is for the selected runs to say: integers come as BIGINT (HUGEINT if they need it), numbers as
DOUBLE with NaN and infinities, strings as VARCHAR, true and false as BOOLEAN; a mix, lists and objects as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mirror.errors import UsageError
from mirror.query.sql import execute

if TYPE_CHECKING:
    from sqlglot.expressions import Expression as Expr

    from mirror.query.filters.tree import Document
    from mirror.query.runs import Chosen, Selection
    from mirror.store import Reader

_INTEGERS = {"UBIGINT", "BIGINT", "LONG"}
_NUMBERS = {*_INTEGERS, "DOUBLE", "NONFINITE"}
_LONGEST_BIGINT, _LONGEST_HUGEINT = 18, 38  # characters that always fit
_ROOTS = ("config", "summary", "summary_metrics")


def expressions(reader: Reader, names: Sequence[str], selection: Selection | Chosen) -> list[Expr]:
    """The columns `names` of the selected runs, each under its name. UsageError for a name that is none."""
    from sqlglot import exp

    from mirror.query.filters.compile import attribute_sql
    from mirror.query.filters.fields import resolve
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
        elif name == "duration" or name.partition(".")[0] in _ROOTS:
            field, _ = resolve(name)
            if isinstance(field, Attribute):
                found[name] = attribute_sql(field)
            else:
                documents[name] = _document(field)
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


def _document(field: Document) -> Expr:
    """The field's value as JSON, NULL where there is none."""
    from mirror.query.filters.compile import pointer, readings
    from mirror.query.filters.sql import call, column, text

    document = column(field.table, "runs")
    places = [call("json_extract", document.copy(), text(pointer(reading))) for reading in readings(field.parts)]
    return call("coalesce", *places) if len(places) > 1 else places[0]


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
        kind = _type(set(row[2 * i] or ()) - {"NULL"}, row[2 * i + 1] or 0)
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


def _type(kinds: set[str], longest: int) -> str:
    if kinds and kinds <= _INTEGERS and longest <= _LONGEST_HUGEINT:
        return "HUGEINT" if longest > _LONGEST_BIGINT else "BIGINT"
    if kinds and kinds <= _NUMBERS - {"LONG"}:
        return "DOUBLE"
    if kinds == {"BOOLEAN"}:
        return "BOOLEAN"
    return "VARCHAR" if kinds <= {"VARCHAR", "NONFINITE"} else "JSON"
