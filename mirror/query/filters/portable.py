"""Tree -> SQL for other engines that hold a copy of the tables `runs`, `config` and `summary`.

What another engine can say exactly it is told; what it cannot is refused by name, never approximated: patterns beyond
plain text (each engine has its own), the exact comparison of integers beyond 2^53, whatever needs the JSON text of a
list or an object. Lists answer through the nodes of their elements, which those of up to 64 elements have.
"""

from __future__ import annotations

import re

from sqlglot import exp
from sqlglot.expressions import Expression as Expr

from mirror.errors import UsageError
from mirror.query.filters.compile import RUNS, period_of, pointer, readings
from mirror.query.filters.parse import FilterError
from mirror.query.filters.sql import (
    FALSE,
    both,
    call,
    cast,
    column,
    compared,
    double,
    either,
    equal,
    is_null,
    member,
    text,
    word,
)
from mirror.query.filters.tree import (
    And,
    Attribute,
    Compare,
    Condition,
    Contains,
    Document,
    Exists,
    In,
    Matches,
    Node,
    Not,
    OfType,
    Or,
    Size,
)
from mirror.query.filters.values import allows_missing

DIALECTS = ("duckdb", "spark", "trino", "postgres", "bigquery")
NOTICE = "{0}: lists of more than 64 elements, and lists on the way to a name, are not looked into"
_SPELLED = ("NaN", "Infinity", "-Infinity")
_PLAIN = re.compile(r"(?P<start>\^?)(?P<text>(?:[^\\^$.|?*+()\[\]{}]|\\[^\w\s])*)(?P<rest>(?:\.\*)?)(?P<end>\$?)")


def portable(node: Node, dialect: str) -> Expr:
    """The expression for a tree. Raises FilterError for what the engine cannot be asked exactly."""
    if dialect not in DIALECTS:
        raise UsageError(f"unknown dialect `{dialect}`; known are {', '.join(DIALECTS)}")
    return _Portable(dialect).compiled(node)


def asks_documents(node: Node) -> bool:
    """Whether a config or summary value is asked for, which may be a list."""
    if isinstance(node, (And, Or)):
        return any(asks_documents(part) for part in node.parts)
    return asks_documents(node.part) if isinstance(node, Not) else isinstance(node.field, Document)


class _Portable:
    def __init__(self, dialect: str) -> None:
        self.dialect = dialect

    def refused(self, condition: Condition, what: str) -> FilterError:
        return FilterError(f"{condition.place}: no exact {self.dialect} {what}; use the dialect duckdb")

    def compiled(self, node: Node) -> Expr:
        if isinstance(node, And):
            return both(self.compiled(part) for part in node.parts)
        if isinstance(node, Or):
            return either(self.compiled(part) for part in node.parts)
        if isinstance(node, Not):
            return exp.Not(this=exp.Coalesce(this=self.compiled(node.part), expressions=[FALSE.copy()]))
        if isinstance(node.field, Document):
            return self._document(node.field, node)
        assert isinstance(node.field, Attribute)
        return self._attribute(node.field, node)

    # -- attributes -------------------------------------------------------------------------------------------

    def _attribute(self, field: Attribute, condition: Condition) -> Expr:
        if field.kind == "duration":
            raise self.refused(condition, "for durations")
        value = exp.column(field.column, table=RUNS, quoted=True)
        if isinstance(condition, Exists):
            return exp.Not(this=is_null(value))
        found = self._tags(value, condition) if field.kind == "tags" else self._scalar(field, value, condition)
        return either([found, is_null(value.copy())]) if allows_missing(condition) else found

    def _scalar(self, field: Attribute, value: Expr, condition: Condition) -> Expr:
        if isinstance(condition, OfType):
            return exp.Not(this=is_null(value)) if "string" in condition.kinds else FALSE.copy()
        if field.kind == "time":
            return self._time(value, condition)
        if isinstance(condition, (Matches, Contains)):
            return self._within(value, condition)
        if isinstance(condition, In):
            found = [c for c in condition.values if isinstance(c, str)]
            return member(value, map(text, dict.fromkeys(found))) if found else FALSE.copy()
        if not isinstance(condition, Compare) or not isinstance(condition.value, str):
            return FALSE.copy()
        if condition.operator != "$eq" and self.dialect == "postgres":
            value = exp.Collate(this=value, expression=exp.to_identifier("C", quoted=True))
        return compared(value, condition.operator, text(condition.value))

    def _time(self, value: Expr, condition: Condition) -> Expr:
        if isinstance(condition, (Matches, Contains)):
            raise self.refused(condition, "for a pattern in a time")
        dates: list[str] = []
        if isinstance(condition, In):
            dates = [c for c in condition.values if isinstance(c, str)]
        elif isinstance(condition, Compare) and isinstance(condition.value, str):
            if condition.operator != "$eq":
                return compared(value, condition.operator, self._moment(condition.value, 0))
            dates = [condition.value]
        sides = (("$gte", 0), ("$lt", 1))
        return either(both(compared(value.copy(), op, self._moment(date, i)) for op, i in sides) for date in dates)

    def _moment(self, date: str, side: int) -> Expr:
        return cast(word(period_of(date)[side].isoformat(" ")), "TIMESTAMPTZ")

    def _tags(self, value: Expr, condition: Condition) -> Expr:
        if isinstance(condition, Size):
            # Postgres: array_length() of an empty array is NULL.
            count = call("cardinality", value) if self.dialect == "postgres" else exp.ArraySize(this=value)
            return equal(count, condition.size)
        constants = condition.values if isinstance(condition, In) else ()
        if isinstance(condition, Compare) and condition.operator == "$eq":
            constants = (condition.value,)
        elif not isinstance(condition, In):
            raise self.refused(condition, "for this of tags")
        if any(isinstance(c, list) for c in constants):
            raise self.refused(condition, "for a whole list of tags")
        return either(self._has(value.copy(), c) for c in constants if isinstance(c, str))

    def _has(self, value: Expr, tag: str) -> Expr:
        if self.dialect == "postgres":
            return exp.EQ(this=text(tag), expression=exp.Any(this=exp.paren(value)))
        return exp.ArrayContains(this=value, expression=text(tag))

    def _within(self, value: Expr, condition: Matches | Contains) -> Expr:
        """A pattern that is plain text, at the start or anywhere."""
        start, wanted, end = "", "", ""
        if isinstance(condition, Contains):
            wanted = condition.text
        else:
            found = _PLAIN.fullmatch(condition.pattern)
            if found is None or (found["end"] and (found["rest"] or not found["start"])):
                raise self.refused(condition, f"for the pattern `{condition.pattern[:60]}`")
            start, end, wanted = found["start"], found["end"], re.sub(r"\\(.)", r"\1", found["text"])
        if end:
            return equal(value, wanted)
        if start:
            return exp.StartsWith(this=value, expression=text(wanted))
        return exp.GT(this=exp.StrPosition(this=value, substr=text(wanted)), expression=exp.Literal.number(0))

    # -- config and summary -----------------------------------------------------------------------------------

    def _document(self, field: Document, condition: Condition) -> Expr:
        places = [pointer(place) for place in ([field.parts] if field.exact else readings(field.parts))]
        held = self._holds(condition)
        found = self._runs_with(field, [_at(places), *([held] if held is not None else [])])
        if held is not None:
            found = either([found, *(self._listed(field, place, held) for place in places)])
        if not allows_missing(condition):
            return found
        return either([found, exp.Not(this=self._runs_with(field, [_at(places)]))])

    def _listed(self, field: Document, place: str, held: Expr) -> Expr:
        """Whether an element of the list at a place meets the condition."""
        element = self._runs_with(field, [_inside(place), held.copy()])
        return both([element, self._runs_with(field, [_at([place]), _is("array")])])

    def _runs_with(self, field: Document, conditions: list[Expr]) -> Expr:
        nodes = exp.alias_(exp.table_(field.table), "n", table=True)
        found = exp.select(column("rid", "n")).from_(nodes, copy=False).where(*conditions, copy=False)
        return exp.In(this=column("rid", RUNS), query=exp.Subquery(this=found))

    def _holds(self, condition: Condition) -> Expr | None:
        """When a node n that is no list meets the condition; None if any node does."""
        string = column("str", "n")
        if isinstance(condition, Exists):
            return None
        if isinstance(condition, (Matches, Contains)):
            found = self._within(string, condition)
            wanted = re.escape(condition.text) if isinstance(condition, Contains) else condition.pattern
            if any(re.search(wanted, one) for one in _SPELLED):
                raise self.refused(condition, "for a text that NaN or Infinity may hold")
            return both([_is("string"), found])
        if isinstance(condition, OfType):
            if condition.kinds - {"string", "bool", "null", "number"}:
                raise self.refused(condition, f"for the types {', '.join(sorted(condition.kinds))}")
            kinds = {*condition.kinds} | ({"nonfinite"} if "string" in condition.kinds else set())
            return member(column("type", "n"), map(word, sorted(kinds)))
        if isinstance(condition, In):
            return either(self._compared(condition, "$eq", c) for c in condition.values)
        if isinstance(condition, Compare):
            return self._compared(condition, condition.operator, condition.value)
        raise self.refused(condition, f"for ${type(condition).__name__[0].lower()}{type(condition).__name__[1:]}")

    def _compared(self, condition: Condition, operator: str, constant: object) -> Expr:
        number = column("num", "n")
        if constant is None:
            return _is("null") if operator in ("$eq", "$gte", "$lte") else FALSE.copy()
        if isinstance(constant, bool):
            return both([_is("bool"), compared(number, operator, double(float(constant)))])
        if isinstance(constant, (int, float)):
            if abs(constant) >= 2**53:
                raise self.refused(condition, "for integers from 2^53 on")
            return both([_is("number"), compared(number, operator, double(float(constant)))])
        if isinstance(constant, str):
            if operator != "$eq" or constant in _SPELLED:
                raise self.refused(condition, "for the order of strings or for NaN and Infinity")
            return both([_is("string"), equal(column("str", "n"), constant)])
        raise self.refused(condition, "for whole lists and objects")


def _is(kind: str) -> Expr:
    return equal(column("type", "n"), word(kind))


def _at(places: list[str]) -> Expr:
    path = column("path", "n")
    return member(path, map(text, places)) if len(places) > 1 else equal(path, places[0])


def _inside(place: str) -> Expr:
    """Nodes right below a place; if that is a list, its elements."""
    path, above = column("path", "n"), f"{place}/"
    rest = exp.Substring(this=path, start=exp.Literal.number(len(above) + 1))
    deeper = exp.StrPosition(this=rest, substr=word("/"))
    return both([exp.StartsWith(this=path.copy(), expression=text(above)), equal(deeper, 0)])
