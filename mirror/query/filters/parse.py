"""Filter text or dict -> tree. Everything that is wrong with a filter is found here, with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from mirror.errors import UsageError
from mirror.query.filters.dates import period
from mirror.query.filters.fields import resolve
from mirror.query.filters.tree import And, Attribute, Compare, Field, In, Matches, Node, Operator, Or

MAX_DEPTH, MAX_NODES, MAX_VALUES = 64, 5000, 10_000

COMPARISONS = ("$eq", "$gt", "$gte", "$lt", "$lte")
SUPPORTED = ("$and", "$or", *COMPARISONS, "$in", "$regex")
_LATER = {
    "$ne", "$nin", "$nor", "$not", "$exists", "$all", "$size", "$elemMatch", "$type", "$mod", "$contains",
    "$options",
}  # fmt: skip
_HINTS = {"$options": ", or flags inside the pattern: (?i), (?s), (?m)"}
_LOGICAL = ("$and", "$or")


class FilterError(UsageError):
    """A filter that cannot be read; the message names the field, the operator and what is wrong."""


@dataclass(frozen=True)
class Filter:
    node: Node
    notices: tuple[str, ...]
    """What was understood although W&B's server would not have; for stderr."""


def parse(source: str | Mapping[str, Any] | None) -> Filter:
    """Read a filter: JSON text, a dict as `json.loads` makes it, None for no filter. Raises FilterError."""
    found = _read(source) if isinstance(source, str) else source
    if found is None:
        return Filter(And(()), ())
    if not isinstance(found, Mapping):
        raise FilterError(f'filter: needs an object such as {{"state": "finished"}}, got {_name(found)}')
    parser = _Parser()
    node = parser.conditions(found, "filter", 1)
    return Filter(node, tuple(dict.fromkeys(parser.notices)))


class _Parser:
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.nodes = 0
        self.values = 0

    def conditions(self, found: Mapping[str, Any], where: str, depth: int) -> Node:
        """An object of conditions, all of which must hold."""
        self._limits(where, depth, len(found))
        parts: list[Node] = []
        for name, value in found.items():
            if not isinstance(name, str):
                raise FilterError(f"{where}: names are strings, got {_name(name)} `{name!r}`")
            if name in _LOGICAL:
                parts.append(self._combination(name, value, where, depth))
            elif name.startswith("$"):
                raise _unsupported(where, name)
            else:
                parts += self._field(name, value, where, depth)
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _combination(self, name: str, value: Any, where: str, depth: int) -> Node:
        if not isinstance(value, (list, tuple)):
            raise FilterError(f"{where} {name}: needs a list of filters, got {_name(value)}")
        if not value and name == "$or":
            raise FilterError(f"{where} {name}: the list is empty")
        parts = []
        for i, one in enumerate(value):
            inner = f"{where}.{name}[{i}]"
            if not isinstance(one, Mapping):
                raise FilterError(f"{inner}: needs an object, got {_name(one)}")
            parts.append(self.conditions(one, inner, depth + 1))
        return And(tuple(parts)) if name == "$and" else Or(tuple(parts))

    def _field(self, name: str, value: Any, where: str, depth: int) -> Iterator[Node]:
        place = name if where == "filter" else f"{name} (in {where})"
        field, notice = resolve(_text(name, place), FilterError)
        if notice is not None:
            self.notices.append(notice)
        names = value if isinstance(value, Mapping) else ()
        operators = [k for k in names if isinstance(k, str) and k.startswith("$")]
        if not operators:
            yield self._compare(field, "$eq", value, place, depth)
            return
        plain = next((k for k in names if k not in operators), None)
        if plain is not None:
            raise FilterError(f"{place}: mixes operators with field '{plain}'")
        self._limits(place, depth + 1, len(value))
        for operator, operand in value.items():
            if operator in COMPARISONS:
                yield self._compare(field, cast(Operator, operator), operand, place, depth + 1)
            elif operator == "$in":
                yield self._in(field, operand, place, depth + 1)
            elif operator == "$regex":
                yield _regex(field, operand, place)
            else:
                raise _unsupported(place, operator)

    def _compare(self, field: Field, operator: Operator, value: Any, place: str, depth: int) -> Node:
        at = place if operator == "$eq" else f"{place} {operator}"
        value = self._value(value, at, depth + 1)
        if operator != "$eq" and isinstance(value, (list, dict)):
            raise FilterError(f"{at}: cannot order by {_name(value)}")
        _check_date(field, value, f"{place} {operator}")
        return Compare(field, operator, value, place)

    def _in(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        at = f"{place} $in"
        if not isinstance(operand, (list, tuple)):
            raise FilterError(f"{at}: needs a list, got {_name(operand)}")
        self.values += len(operand)
        if self.values > MAX_VALUES:
            raise FilterError(f"{at}: {self.values:,} values in the filter's lists, at most {MAX_VALUES:,} are taken")
        values = []
        for value in operand:
            scalar = not isinstance(value, (list, tuple, Mapping))
            values.append(self._value(value, at, depth + 1, counted=scalar))
            _check_date(field, value, at)
        return In(field, tuple(values), place)

    def _value(self, value: Any, at: str, depth: int, *, counted: bool = False) -> Any:
        """A literal as plain JSON values, or an error."""
        self._limits(at, depth, 0 if counted else 1)
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, str):
            return _text(value, at)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise FilterError(
                    f'{at}: JSON has no number `{value}`; write "NaN", "Infinity" or "-Infinity" as a string'
                )
            return value
        if isinstance(value, (list, tuple)):
            return [self._value(v, at, depth + 1) for v in value]
        if isinstance(value, Mapping):
            bad = next((k for k in value if not isinstance(k, str) or k.startswith("$")), None)
            if bad is not None:
                raise FilterError(f"{at}: `{bad}` cannot be a name inside a value")
            return {_text(k, at): self._value(v, at, depth + 1) for k, v in value.items()}
        hint = ' (write {"$regex": "..."})' if hasattr(value, "pattern") else ""
        hint = " (write its .isoformat())" if hasattr(value, "isoformat") else hint
        kind = type(value).__name__
        raise FilterError(f"{at}: a filter holds JSON values, got {kind} `{value!r:.60}`{hint}")

    def _limits(self, at: str, depth: int, nodes: int) -> None:
        self.nodes += nodes
        if depth > MAX_DEPTH:
            raise FilterError(f"{at[:200]}: more than {MAX_DEPTH} levels deep")
        if self.nodes > MAX_NODES:
            raise FilterError(f"{at[:200]}: the filter has more than {MAX_NODES:,} parts")


def _regex(field: Field, pattern: Any, place: str) -> Matches:
    at = f"{place} $regex"
    if not isinstance(pattern, str):
        raise FilterError(f"{at}: needs a string, got {_name(pattern)}")
    reason = _refused(_text(pattern, at))
    if reason is not None:
        raise FilterError(
            f"{at}: not a valid RE2 pattern ({reason}); look-around, back-references, possessive and atomic "
            "groups are not available in RE2"
        )
    return Matches(field, pattern, place)


@lru_cache(maxsize=256)
def _refused(pattern: str) -> str | None:
    """Why a pattern is no RE2, according to the very RE2 that will run it."""
    import duckdb

    try:
        with duckdb.connect() as db:
            db.execute("select regexp_matches('', ?)", [pattern])
    except duckdb.Error as e:
        return str(e).splitlines()[0].removeprefix("Invalid Input Error: ")
    return None


def _check_date(field: Field, value: Any, at: str) -> None:
    if not isinstance(field, Attribute) or field.kind != "time" or value is None:
        return
    if not isinstance(value, str) or period(value) is None:
        raise FilterError(
            f'{at}: needs an ISO-8601 date such as "2025-01-31" or "2025-01-31T12:00:00Z", got '
            f"{json.dumps(value, ensure_ascii=False)[:80]}"
        )


def _read(text: str) -> Any:
    """JSON text, refusing what W&B's server refuses too and what Python's reader would let pass."""

    def constant(token: str) -> None:
        raise FilterError(f'filter: JSON has no number `{token}`; write "{token}" as a string')

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(n for n in names if names.count(n) > 1)
            raise FilterError(f"filter: `{twice}` stands twice in one object; combine the two with $and")
        return found

    if not text.strip():
        return None
    try:
        return json.loads(text, parse_constant=constant, object_pairs_hook=once)
    except RecursionError:
        raise FilterError(f"filter: more than {MAX_DEPTH} levels deep") from None
    except ValueError as e:
        raise FilterError(f'filter: not JSON ({e}); write for example {{"state": "finished"}}') from None


def _text(value: str, at: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FilterError(f"{at}: holds half of a surrogate pair, which is no character") from None
    return value


def _unsupported(place: str, operator: str) -> FilterError:
    known = f"supported are {', '.join(SUPPORTED)}"
    what = "not supported yet" if operator in _LATER else "unknown operator"
    return FilterError(f"{place} {operator}: {what}; {known}{_HINTS.get(operator, '')}")


def _name(value: Any) -> str:
    """The JSON name of a value's type."""
    for kinds, name in (
        ((bool,), "boolean"), ((int, float), "number"), ((str,), "string"), ((list, tuple), "array"),
        ((Mapping,), "object"),
    ):  # fmt: skip
        if isinstance(value, kinds):
            return name
    return "null" if value is None else type(value).__name__
