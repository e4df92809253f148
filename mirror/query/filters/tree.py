"""What a filter says, as a small tree: the parser makes it, back ends (SQL here) read it.

A `Field` is something a run has; `Compare`, `In` and `Matches` say something about a field; `And` and `Or`
combine. Values are plain JSON values (None, bool, int, float, str, list, dict), checked by the parser.
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


Field: TypeAlias = "Attribute | Document"


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
    field: Field
    pattern: str
    place: str


@dataclass(frozen=True)
class And:
    """True without parts, as W&B's own "no filter" `{"$and": []}`."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Or:
    parts: tuple[Node, ...]


Node: TypeAlias = "And | Or | Compare | In | Matches"
