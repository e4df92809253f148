"""Columns of a list of runs: attributes as they are, config and summary values with the best exact type.

What type a key has is for the selected runs to say: integers come as BIGINT (HUGEINT if they need it), numbers as
DOUBLE with NaN and infinities, strings as VARCHAR, true and false as BOOLEAN; a mix, lists and objects as JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirror.errors import UsageError
from mirror.query.sql import execute

if TYPE_CHECKING:
    from sqlglot.expressions import Expression as Expr

    from mirror.query.filters.tree import Document
    from mirror.query.runs import Selection
    from mirror.store import Reader

_INTEGERS = {"UBIGINT", "BIGINT", "LONG"}
_LONGEST_BIGINT, _LONGEST_HUGEINT = 18, 38  # characters that always fit
_NUMBERS = {*_INTEGERS, "DOUBLE", "NONFINITE"}


def expression(reader: Reader, name: str, selection: Selection) -> Expr:
    """The column `name` of the selected runs, under its name. UsageError for a name that is none."""
    from sqlglot import exp

    from mirror.query.filters.compile import attribute_sql
    from mirror.query.filters.fields import near_match, resolve
    from mirror.query.filters.sql import column, text
    from mirror.query.filters.tree import Attribute

    columns = execute(reader, "select * from runs").columns
    if name in columns:
        return exp.alias_(column(name, "runs"), name, quoted=True)
    if name == "path":
        parts = [column("entity", "runs"), text("/"), column("project", "runs"), text("/"), column("run_id", "runs")]
        joined = parts[0]
        for part in parts[1:]:
            joined = exp.DPipe(this=joined, expression=part)
        return exp.alias_(joined, name, quoted=True)
    root = name.partition(".")[0]
    if root in ("config", "summary", "summary_metrics") or name == "duration":
        field, _ = resolve(name)
        value = attribute_sql(field) if isinstance(field, Attribute) else _document(reader, field, selection)
        return exp.alias_(value, name, quoted=True)
    known = [*columns, "path", "duration", "config.<key>", "summary_metrics.<key>"]
    near = near_match(root, known)
    raise UsageError(f"unknown column `{name}`; {f'did you mean `{near}`?' if near else 'known: ' + ', '.join(known)}")


def _document(reader: Reader, field: Document, selection: Selection) -> Expr:
    from sqlglot import exp

    from mirror.query.filters.compile import pointer, readings
    from mirror.query.filters.sql import call, cast, column, text

    document = column(field.table, "runs")
    places = [call("json_extract", document.copy(), text(pointer(reading))) for reading in readings(field.parts)]
    value = call("coalesce", *places) if len(places) > 1 else places[0]
    kind = _kind(reader, value, selection)
    if kind == "VARCHAR":
        return call("json_extract_string", value, text("$"))
    return value if kind == "JSON" else exp.TryCast(this=value, to=cast(exp.null(), kind).to)


def _kind(reader: Reader, value: Expr, selection: Selection) -> str:
    """The type that holds all the selected runs' values exactly."""
    from sqlglot import exp

    from mirror.query.filters.sql import written

    values = selection.query([exp.alias_(value.copy(), "v")])
    query = f"""
        select case when json_type(v) = 'VARCHAR' and json_extract_string(v, '$') in ('NaN', 'Infinity', '-Infinity')
                    then 'NONFINITE'
                    when regexp_full_match(v::varchar, '-?[0-9]{{16,}}') then 'LONG'
                    else json_type(v) end as kind,
               max(length(v::varchar)) as longest
        from ({written(values)}) where v is not null group by 1
    """
    found: dict[str, int] = dict(execute(reader, query).fetchall())
    longest = found.get("LONG", 0)
    kinds = found.keys() - {"NULL"}
    if kinds and kinds <= _INTEGERS and longest <= _LONGEST_HUGEINT:
        return "HUGEINT" if longest > _LONGEST_BIGINT else "BIGINT"
    if kinds and kinds <= _NUMBERS - {"LONG"}:
        return "DOUBLE"
    if kinds == {"BOOLEAN"}:
        return "BOOLEAN"
    return "VARCHAR" if kinds <= {"VARCHAR", "NONFINITE"} else "JSON"
