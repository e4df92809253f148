"""What a filter says, as a small tree: the parser makes it, back ends (SQL here) read it.

A `Field` is something a run has; a `Condition` says something about the value of a field; `And`, `Or` and `Not`
combine. Values are plain JSON values (None, bool, int, float, str, list, dict), checked by the parser. Operators that
are another's opposite have no node of their own: `$ne` is `Not` of a `Compare`, `$nin` of an `In`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Operator = Literal["$eq", "$gt", "$gte", "$lt", "$lte"]


@dataclass(frozen=True)
class Attribute:
    """A column of `runs`, or something computed from columns. `name` is the canonical W&B name."""

    name: str
    column: str
    kind: Literal["text", "time", "tags", "duration"]


@dataclass(frozen=True)
class Document:
    """A place in a run's config or summary: `parts` are the names on the way, none for the whole."""

    table: Literal["config", "summary"]
    parts: tuple[str, ...]
    exact: bool = False
    """Whether the parts are names as they stand, so that none of their neighbours may be one name with dots."""


@dataclass(frozen=True)
class Inner:
    """A place in the element that `$elemMatch` looks at, none for the element itself."""

    parts: tuple[str, ...]


Field: TypeAlias = "Attribute | Document | Inner"


@dataclass(frozen=True)
class Compare:
    field: Field
    operator: Operator
    value: Any
    place: str
    """The field as its author wrote it, for messages."""


@dataclass(frozen=True)
class In:
    field: Field
    values: tuple[Any, ...]
    place: str


@dataclass(frozen=True)
class Matches:
    """A string that an RE2 pattern is found in."""

    field: Field
    pattern: str
    place: str


@dataclass(frozen=True)
class Contains:
    """A string that holds a text."""

    field: Field
    text: str
    place: str


@dataclass(frozen=True)
class Exists:
    """A value is there, null included."""

    field: Field
    place: str


@dataclass(frozen=True)
class Size:
    """A list of so many elements."""

    field: Field
    size: int
    place: str


@dataclass(frozen=True)
class OfType:
    """One of MongoDB's names: string, bool, null, object, array, number, int, long, double."""

    field: Field
    kinds: frozenset[str]
    place: str


@dataclass(frozen=True)
class Mod:
    """A number whose integral part divided by `divisor` leaves `remainder`, with the sign of the number."""

    field: Field
    divisor: int
    remainder: int
    place: str


@dataclass(frozen=True)
class ElemMatch:
    """A list with an element that meets `node`, whose fields are `Inner`; `objects` if only objects may."""

    field: Field
    node: Node
    objects: bool
    place: str


@dataclass(frozen=True)
class And:
    """True without parts, as W&B's own "no filter" `{"$and": []}`."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Or:
    """False without parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    part: Node


Condition: TypeAlias = "Compare | In | Matches | Contains | Exists | Size | OfType | Mod | ElemMatch"
Node: TypeAlias = "And | Or | Not | Condition"
