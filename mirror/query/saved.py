"""Saved queries: queries/*.sql, each with a header that says what it answers and what it wants to know.

    -- question: Which runs did best on a metric?
    -- param metric text: key of the summary
    -- param goal max|min = max: which end is better

A parameter has a type (text, integer, count, number, run or a choice of words), a default or none, and a description.
It is bound as `$name`; `run` takes a run's path and binds its rid; a count is at least 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirror.errors import UsageError
from mirror.query.runs import find_run
from mirror.query.sql import Result, execute
from mirror.query.table import Table
from mirror.resources import folder, text

if TYPE_CHECKING:
    from mirror.store import Reader

_QUESTION = re.compile(r"^-- question: (.+)$", re.M)
_PARAM = re.compile(r"^-- param (\w+) (\S+?)(?: = (\S+))?: (.+)$", re.M)


_NUMBERS: dict[str, tuple[type[int] | type[float], str, str]] = {
    "integer": (int, "an integer", "0"),
    "count": (int, "an integer from 1 on", "10"),
    "number": (float, "a number", "0.5"),
}


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    """`text`, `integer`, `count`, `number`, `run`, or the words to choose from, with | between them."""
    default: str | None
    """As written in the header; `null` is NULL. None means that a value must be given."""
    about: str

    def value(self, reader: Reader, given: Any, source: str | None) -> Any:
        """What is bound for a value as a user gives it. UsageError if it is not of the parameter's type."""
        if given is None:
            return None
        if self.kind == "run":
            return find_run(reader, str(given), source)["rid"]
        if self.kind in _NUMBERS:
            number, wanted, example = _NUMBERS[self.kind]
            try:
                found = number(str(given))
            except ValueError:
                found = None
            if found is None or (self.kind == "count" and found < 1):
                raise UsageError(
                    f"parameter `{self.name}` is {wanted}, got `{given}`: write --param {self.name}={example}"
                )
            return found
        if "|" in self.kind and given not in self.kind.split("|"):
            words = self.kind.split("|")
            raise UsageError(
                f"parameter `{self.name}` is {' or '.join(words)}, got `{given}`: write --param {self.name}={words[0]}"
            )
        return str(given)


@dataclass(frozen=True)
class SavedQuery:
    name: str
    question: str
    parameters: tuple[Parameter, ...]
    sql: str


def names() -> list[str]:
    return sorted(path.stem for path in folder("queries").glob("*.sql"))


def listing() -> Table:
    """All saved queries as rows: a query with its question, followed by its parameters."""
    rows: list[tuple[str | None, ...]] = []
    for query in map(load, names()):
        rows.append((query.name, None, None, None, query.question))
        rows += [(query.name, p.name, p.kind, p.default, p.about) for p in query.parameters]
    return Table(["query", "parameter", "type", "default", "about"], ["VARCHAR"] * 5, lambda: rows)


def load(name: str) -> SavedQuery:
    """A saved query by name. UsageError, with a near match, if there is none."""
    known = names()
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"there is no saved query `{name}`; {hint}")
    sql = text("queries", f"{name}.sql")
    question = _QUESTION.search(sql)
    if question is None:
        raise ValueError(f"queries/{name}.sql does not say what it answers")
    return SavedQuery(name, question[1], tuple(Parameter(*found) for found in _params(sql)), sql)


def _params(sql: str) -> list[tuple[str, str, str | None, str]]:
    return [(m[1], m[2], m[3], m[4]) for m in _PARAM.finditer(sql)]


def run(reader: Reader, name: str, given: Mapping[str, Any] | None = None, source: str | None = None) -> Result:
    """Run a saved query. Raises UsageError for parameters that are missing, unknown or of another type."""
    query = load(name)
    given = dict(given or {})
    bound = {}
    for parameter in query.parameters:
        if parameter.name in given:
            value = given.pop(parameter.name)
        elif parameter.default is None:
            raise UsageError(f"`{name}` needs --param {parameter.name}=... ({parameter.kind}): {parameter.about}")
        else:
            value = None if parameter.default == "null" else parameter.default
        bound[parameter.name] = parameter.value(reader, value, source)
    if given:
        known = ", ".join(f"`{p.name}`" for p in query.parameters) or "none"
        raise UsageError(f"`{name}` has no parameter `{next(iter(given))}`; it has {known}")
    return execute(reader, query.sql, bound)
