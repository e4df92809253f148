"""Filter text or dict -> tree. Everything that is wrong with a filter is found here, with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from mirror.errors import UsageError
from mirror.query.filters.dates import period
from mirror.query.filters.fields import near_match, resolve
from mirror.query.filters.patterns import checked, with_options
from mirror.query.filters.tree import (
    And,
    Attribute,
    Compare,
    Contains,
    ElemMatch,
    Exists,
    Field,
    In,
    Inner,
    Matches,
    Mod,
    Node,
    Not,
    OfType,
    Operator,
    Or,
    Size,
)

MAX_DEPTH, MAX_NODES, MAX_VALUES, MAX_TEXT = 64, 5000, 10_000, 1_000_000
MAX_ELEMENTS, MAX_COPIES = 4, 200
"""`$elemMatch` inside one another, and conditions inside times the places that SQL has to look for them."""
_LONGEST_INTEGER = 13_000  # bits, about as many as Python writes out

COMPARISONS = ("$eq", "$gt", "$gte", "$lt", "$lte")
_LOGICAL = ("$and", "$or", "$nor", "$not")
_ON_FIELDS = (
    *COMPARISONS, "$ne", "$in", "$nin", "$regex", "$options", "$contains", "$not", "$exists", "$size", "$all",
    "$elemMatch", "$type", "$mod",
)  # fmt: skip
SUPPORTED = tuple(dict.fromkeys((*_LOGICAL, *_ON_FIELDS)))
_UNDOCUMENTED = {"$options", "$elemMatch", "$type", "$mod"}
"""Operators that neither W&B's documentation nor its SDK has (wandb 0.31: Api.runs, wandb._filters)."""
_TYPES = {
    1: "double", 2: "string", 3: "object", 4: "array", 8: "bool", 10: "null", 16: "int", 18: "long",
    "number": "number",
}  # fmt: skip
_NO_JSON = {
    5: "binData", 6: "undefined", 7: "objectId", 9: "date", 11: "regex", 12: "dbPointer", 13: "javascript",
    14: "symbol", 15: "javascriptWithScope", 17: "timestamp", 19: "decimal", -1: "minKey", 127: "maxKey",
}  # fmt: skip


class FilterError(UsageError):
    """A filter that cannot be read; the message names the field, the operator and what is wrong."""


@dataclass(frozen=True)
class Filter:
    node: Node
    notices: tuple[str, ...]
    """What was understood although W&B's server would not have; for stderr."""


def parse(source: str | Mapping[str, Any] | None, *, server_compat: bool = False) -> Filter:
    """Read a filter: JSON text, a dict as `json.loads` makes it, None for no filter. Raises FilterError.

    `server_compat` refuses what W&B's own server refuses or never matches, and what it is not known to take.
    """
    found = _read(source) if isinstance(source, str) else source
    if found is None:
        return Filter(And(()), ())
    if not isinstance(found, Mapping):
        raise FilterError(f'filter: needs an object such as {{"state": "finished"}}, got {_name(found)}')
    parser = _Parser(server_compat)
    node = parser.conditions(found, "filter", 1)
    return Filter(node, tuple(dict.fromkeys(parser.notices)))


class _Parser:
    def __init__(self, server_compat: bool) -> None:
        self.server_compat = server_compat
        self.notices: list[str] = []
        self.nodes = 0
        self.values = 0
        self.characters = 0
        self.copies = 1

    def conditions(self, found: Mapping[str, Any], where: str, depth: int, *, inside: bool = False) -> Node:
        """An object of conditions, all of which must hold; `inside` an element of a list."""
        self._limits(where, depth, len(found))
        parts: list[Node] = []
        for name, value in found.items():
            if not isinstance(name, str):
                raise FilterError(f"{where}: names are strings, got {_name(name)} `{name!r:.60}`")
            if name in _LOGICAL:
                parts.append(self._combination(name, value, where, depth, inside))
            elif name.startswith("$"):
                raise _unknown(where, name, _LOGICAL, _ON_FIELDS)
            else:
                parts += self._field(name, value, where, depth, inside)
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _combination(self, name: str, value: Any, where: str, depth: int, inside: bool) -> Node:
        if name == "$not":  # MongoDB has it on fields only; W&B's SDK writes it here
            if not isinstance(value, Mapping):
                raise FilterError(f"{where} $not: needs an object, got {_name(value)}")
            return Not(self.conditions(value, f"{where}.$not", depth + 1, inside=inside))
        if not isinstance(value, (list, tuple)):
            raise FilterError(f"{where} {name}: needs a list of filters, got {_name(value)}")
        if not value and name != "$and":
            raise FilterError(f"{where} {name}: the list is empty")
        parts = []
        for i, one in enumerate(value):
            inner = f"{where}.{name}[{i}]"
            if not isinstance(one, Mapping):
                raise FilterError(f"{inner}: needs an object, got {_name(one)}")
            parts.append(self.conditions(one, inner, depth + 1, inside=inside))
        if name == "$and":
            return And(tuple(parts))
        return Or(tuple(parts)) if name == "$or" else Not(Or(tuple(parts)))

    def _field(self, name: str, value: Any, where: str, depth: int, inside: bool) -> Iterator[Node]:
        place = name if where == "filter" else f"{name} (in {where})"
        field = self._resolved(self._text(name, place[:200]), place, inside)
        names = value if isinstance(value, Mapping) else ()
        if any(isinstance(k, str) and k.startswith("$") for k in names):
            yield from self._operators(field, value, place, depth)
        else:
            yield self._compare(field, "$eq", value, place, depth)

    def _resolved(self, name: str, place: str, inside: bool) -> Field:
        if inside:
            parts = tuple(name.split("."))
            if "" in parts:
                raise FilterError(f"{place}: empty part in field path; write the names between single dots")
            return Inner(parts)
        field, notice = resolve(name, FilterError, server_compat=self.server_compat)
        if notice is not None:
            self.notices.append(notice)
        return field

    def _operators(self, field: Field, found: Mapping[str, Any], place: str, depth: int) -> Iterator[Node]:
        """The conditions of `{"$gt": 1, "$lt": 2}`."""
        plain = next((k for k in found if not (isinstance(k, str) and k.startswith("$"))), None)
        if plain is not None:
            raise FilterError(f"{place}: mixes operators with field '{plain}'")
        self._limits(place, depth + 1, len(found))
        for operator, operand in found.items():
            if operator in _UNDOCUMENTED and self.server_compat:
                raise FilterError(
                    f"{place} {operator}: W&B's server is not known to take it; leave out --server-compat"
                )
            if operator in COMPARISONS:
                yield self._compare(field, cast(Operator, operator), operand, place, depth + 1)
            elif operator == "$regex":
                yield self._regex(field, operand, found.get("$options"), place)
            elif operator == "$options":
                if "$regex" not in found:
                    raise FilterError(f"{place} $options: belongs to a $regex beside it")
            elif operator in _READ:
                yield _READ[operator](self, field, operand, place, depth + 1)
            else:
                raise _unknown(place, operator, _ON_FIELDS, _LOGICAL)

    # -- operators on a field ---------------------------------------------------------------------------------

    def _compare(self, field: Field, operator: Operator, value: Any, place: str, depth: int) -> Compare:
        at = place if operator == "$eq" else f"{place} {operator}"
        value = self._value(value, at, depth + 1)
        if operator != "$eq" and isinstance(value, (list, dict)):
            raise FilterError(f"{at}: cannot order by {_name(value)}")
        _check_date(field, value, f"{place} {operator}")
        return Compare(field, operator, value, place)

    def _unequal(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        return Not(self._compare(field, "$eq", operand, place, depth))

    def _in(self, field: Field, operand: Any, place: str, depth: int, operator: str = "$in") -> Node:
        at = f"{place} {operator}"
        values = []
        for value in self._list(operand, at):
            scalar = not isinstance(value, (list, tuple, Mapping))
            values.append(self._value(value, at, depth + 1, counted=scalar))
            _check_date(field, value, at)
        return In(field, tuple(values), place)

    def _not_in(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        return Not(self._in(field, operand, place, depth, "$nin"))

    def _regex(self, field: Field, pattern: Any, options: Any, place: str) -> Matches:
        at = f"{place} $regex"
        if not isinstance(pattern, str):
            raise FilterError(f"{at}: needs a string, got {_name(pattern)}")
        pattern = self._text(pattern, at)
        if options is not None:
            if not isinstance(options, str) or set(options) - set("imsx"):
                given = json.dumps(options, ensure_ascii=False, default=str)[:60]
                raise FilterError(f'{place} $options: needs letters out of "imsx", got {given}')
            pattern = with_options(pattern, options)
        return Matches(field, checked(pattern, at, FilterError), place)

    def _contains(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        if not isinstance(operand, str):
            hint = '; write {"x": value} for a list that holds the value' if operand is not None else ""
            raise FilterError(f"{place} $contains: needs a string, got {_name(operand)}{hint}")
        return Contains(field, self._text(operand, f"{place} $contains"), place)

    def _negated(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        at = f"{place} $not"
        if not isinstance(operand, Mapping) or not any(isinstance(k, str) and k.startswith("$") for k in operand):
            raise FilterError(f'{at}: needs operators such as {{"$gt": 5}}, got {_name(operand)}; use $ne for a value')
        return Not(And(tuple(self._operators(field, operand, at, depth + 1))))

    def _exists(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        if not isinstance(operand, (bool, int)):
            raise FilterError(f"{place} $exists: needs true or false, got {_name(operand)}")
        return Exists(field, place) if operand else Not(Exists(field, place))

    def _size(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        size = _integer(operand)
        if size is None or not 0 <= size < 2**31:
            given = json.dumps(operand, ensure_ascii=False, default=str)[:60]
            raise FilterError(f"{place} $size: needs a whole number from 0 on, got {given}")
        return Size(field, size, place)

    def _all(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        at = f"{place} $all"
        parts: list[Node] = []
        for value in self._list(operand, at):
            if isinstance(value, Mapping) and "$elemMatch" in value:
                parts += self._operators(field, value, at, depth + 1)
            else:
                parts.append(self._compare(field, "$eq", value, at, depth + 1))
        return And(tuple(parts)) if parts else Or(())

    def _element(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        at = f"{place} $elemMatch"
        if not isinstance(operand, Mapping):
            raise FilterError(f"{at}: needs an object of conditions on an element, got {_name(operand)}")
        if at.count("$elemMatch") > MAX_ELEMENTS:
            raise FilterError(f"{at[:200]}: more than {MAX_ELEMENTS} $elemMatch inside one another")
        parts = () if isinstance(field, Attribute) else field.parts
        outside, before = self.copies, self.nodes
        self.copies *= max(1, len(parts)) * (2 if parts[-1:] and parts[-1].isdigit() else 1)
        first = next(iter(operand), "")
        if isinstance(first, str) and first.startswith("$") and first not in ("$and", "$or", "$nor"):
            value: Node = And(tuple(self._operators(Inner(()), operand, at, depth + 1)))
            found = ElemMatch(field, value, False, place)
        else:
            found = ElemMatch(field, self.conditions(operand, at, depth + 1, inside=True), True, place)
        if (self.nodes - before) * self.copies > MAX_COPIES:
            raise FilterError(f"{at[:200]}: too many conditions this deep in lists; ask for less at a time")
        self.copies = outside
        return found

    def _type(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        at = f"{place} $type"
        kinds = set()
        for kind in self._list(operand, at) if isinstance(operand, (list, tuple)) else [operand]:
            number = _integer(kind)
            name = _TYPES.get(number) or _NO_JSON.get(number) if number is not None else kind
            given = json.dumps(kind, ensure_ascii=False, default=str)[:60]
            if name in _NO_JSON.values():
                raise FilterError(f"{at}: {given} is no type of JSON, which is what configs and summaries are")
            if name not in _TYPES.values():
                raise FilterError(f"{at}: unknown type {given}; known are {', '.join(sorted(_TYPES.values()))}")
            kinds.add(str(name))
        if not kinds:
            raise FilterError(f"{at}: the list is empty")
        return OfType(field, frozenset(kinds), place)

    def _mod(self, field: Field, operand: Any, place: str, depth: int) -> Node:
        at = f"{place} $mod"
        if not isinstance(operand, (list, tuple)) or len(operand) != 2:
            raise FilterError(f"{at}: needs [divisor, remainder]")
        for one in operand:
            if isinstance(one, bool) or not isinstance(one, (int, float)) or not -(2**63) <= one < 2**63:
                given = json.dumps(one, ensure_ascii=False, default=str)[:60]
                raise FilterError(f"{at}: needs numbers of at most 64 bits, got {given}")
        divisor, remainder = (int(one) for one in operand)
        if divisor == 0:
            raise FilterError(f"{at}: the divisor is zero")
        return Mod(field, divisor, remainder, place)

    # -- values -----------------------------------------------------------------------------------------------

    def _list(self, operand: Any, at: str) -> list[Any] | tuple[Any, ...]:
        if not isinstance(operand, (list, tuple)):
            raise FilterError(f"{at}: needs a list, got {_name(operand)}")
        self.values += len(operand)
        if self.values > MAX_VALUES:
            raise FilterError(f"{at}: {self.values:,} values in the filter's lists, at most {MAX_VALUES:,} are taken")
        return operand

    def _value(self, value: Any, at: str, depth: int, *, counted: bool = False) -> Any:
        """A literal as plain JSON values, or an error."""
        self._limits(at, depth, 0 if counted else 1)
        if isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER:
            raise FilterError(
                f"{at}: an integer of {value.bit_length():,} bits, at most {_LONGEST_INTEGER:,} are taken"
            )
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, str):
            return self._text(value, at)
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
            return {self._text(k, at): self._value(v, at, depth + 1) for k, v in value.items()}
        hint = ' (write {"$regex": "..."})' if hasattr(value, "pattern") else ""
        hint = " (write its .isoformat())" if hasattr(value, "isoformat") else hint
        kind = type(value).__name__
        raise FilterError(f"{at}: a filter holds JSON values, got {kind} `{value!r:.60}`{hint}")

    def _text(self, value: str, at: str) -> str:
        self.characters += len(value)
        if self.characters > MAX_TEXT:
            raise FilterError(f"{at[:200]}: the filter holds more than {MAX_TEXT:,} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FilterError(f"{at}: holds half of a surrogate pair, which is no character") from None
        return value

    def _limits(self, at: str, depth: int, nodes: int) -> None:
        self.nodes += nodes
        if depth > MAX_DEPTH:
            raise FilterError(f"{at[:200]}: more than {MAX_DEPTH} levels deep")
        if self.nodes > MAX_NODES:
            raise FilterError(f"{at[:200]}: the filter has more than {MAX_NODES:,} parts")


_READ = {
    "$ne": _Parser._unequal, "$in": _Parser._in, "$nin": _Parser._not_in, "$contains": _Parser._contains,
    "$not": _Parser._negated, "$exists": _Parser._exists, "$size": _Parser._size, "$all": _Parser._all,
    "$elemMatch": _Parser._element, "$type": _Parser._type, "$mod": _Parser._mod,
}  # fmt: skip


def _integer(value: Any) -> int | None:
    """A whole number, also one written as 2.0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) >= 2**63:
        return None
    return int(value) if value == int(value) else None


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
    if len(text) > 2 * MAX_TEXT:
        raise FilterError(f"filter: {len(text):,} characters, at most {2 * MAX_TEXT:,} are taken")
    try:
        return json.loads(text, parse_constant=constant, object_pairs_hook=once)
    except RecursionError:
        raise FilterError(f"filter: more than {MAX_DEPTH} levels deep") from None
    except ValueError as e:
        raise FilterError(f'filter: not JSON ({e}); write for example {{"state": "finished"}}') from None


def _unknown(place: str, operator: str, here: tuple[str, ...], elsewhere: tuple[str, ...]) -> FilterError:
    if operator in elsewhere:
        where = "around conditions" if operator in _LOGICAL else f'on a field: {{"state": {{"{operator}": ...}}}}'
        return FilterError(f"{place} {operator}: belongs {where}")
    known = f"supported are {', '.join(SUPPORTED)}"
    near = near_match(operator, here)
    hint = f"did you mean '{near}'? " if near else ""
    return FilterError(f"{place} {operator[:60]}: unknown operator; {hint}{known}")


def _name(value: Any) -> str:
    """The JSON name of a value's type."""
    for kinds, name in (
        ((bool,), "boolean"), ((int, float), "number"), ((str,), "string"), ((list, tuple), "array"),
        ((Mapping,), "object"),
    ):  # fmt: skip
        if isinstance(value, kinds):
            return name
    return "null" if value is None else type(value).__name__
