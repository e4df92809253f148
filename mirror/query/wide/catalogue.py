"""The columns of a wide view: which keys the runs in question have, and the type that holds each key's values.

numbers         DOUBLE; HUGEINT if all are integers and some are beyond 2^53
strings         VARCHAR
true, false     BOOLEAN
lists, dictionaries, media   VARCHAR, as JSON text; strings among them as they are
a mix with numbers           DOUBLE, the others NULL (true and false 1 and 0); `"key::json"` has all of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mirror.errors import QueryError
from mirror.query.wide.names import folded
from mirror.store.views import literal

PREFIX = "metric:"
JSON = "::json"

Ask = Callable[[str], list[tuple[Any, ...]]]
"""Runs one of our own statements in the sandbox, with the parameters of the user's query."""


@dataclass(frozen=True)
class Scope:
    """The runs that a query asks for."""

    condition: str = ""
    """On `rid`; empty for all runs."""
    live: Callable[[str], str] = "raw.{}_live".format
    """The view with the live rows of a table, of these runs at least."""


@dataclass(frozen=True)
class Key:
    """A column that values of runs make: what kinds of values there are, and in how many runs."""

    name: str
    numbers: int
    bools: int
    strings: int
    documents: int
    beyond: bool = False
    """All numbers are integers, some of them beyond 2^53, but within HUGEINT."""
    runs: int = 0
    filled: int = 0
    """Runs that logged the key in every row."""
    doubled: bool = False
    """In some run both `a.b` and `{"a": {"b": ..}}` were logged."""

    @property
    def mixed(self) -> bool:
        return sum(map(bool, (self.numbers, self.bools, self.strings, self.documents))) > 1

    def value(self, number: str, digits: str, text: str, kind: str, string: str) -> str:
        """SQL of the typed value, out of what holds numbers, digits of numbers that are no DOUBLE, texts and kinds of
        cells or nodes; `string` is SQL of a string's own text."""
        if self.beyond and not self.mixed:
            return f"coalesce(try_cast({digits} as hugeint), cast({number} as hugeint))"
        if self.numbers or (self.bools and self.mixed):
            return f"coalesce({number}, try_cast({digits} as double))"
        if self.bools:
            return f"({number} <> 0)"
        if self.strings and self.documents:
            return f"case when {kind} = 'string' then {string} else {text} end"
        if self.strings:
            return string
        return text if self.documents else number


def exact_json(number: str, text: str, kind: str, string: str, digits: str) -> str:
    """SQL of the exact JSON text of any cell or node; `string` and `digits` spell strings and numbers."""
    return (
        f"case {kind} when 'null' then 'null' when 'string' then {string} "
        f"when 'bool' then case when {number} <> 0 then 'true' else 'false' end "
        f"when 'nonfinite' then case when isnan({number}) then '\"NaN\"' when {number} > 0 then '\"Infinity\"' "
        f"else '\"-Infinity\"' end "
        f"when 'int' then coalesce({text}, cast(cast({number} as bigint) as varchar)) "
        f"else coalesce({text}, {digits}) end"
    )


@dataclass(frozen=True)
class Column:
    """What a name of a wide view means: a column of ours, or a key's value (or its JSON)."""

    name: str
    """As it is shown and bound, in canonical spelling."""
    key: str | None = None
    json: bool = False


class Names:
    """Looks names up among our own columns and the keys of the runs in question."""

    def __init__(self, own: Iterable[str], keys: dict[str, Key]) -> None:
        self.own = {folded(name): name for name in own}
        self.keys = keys
        self._folded: dict[str, list[str]] = {}
        for name in sorted(keys):
            self._folded.setdefault(folded(name), []).append(name)

    def look(self, name: str, quoted: bool) -> Column | None:
        """Quoted names are keys letter by letter; a name without quotes has to be clear without its case."""
        if quoted:
            if name in self.own.values():
                return Column(name)
            found = self._prefixed(name) or self._plain(name)
            return found or (Column(self.own[folded(name)]) if folded(name) in self.own else None)
        if folded(name) in self.own:
            return Column(self.own[folded(name)])
        twins = self._folded.get(folded(name), [])
        if len(twins) > 1:
            both = " and ".join(f'`"{twin}"`' for twin in twins)
            raise QueryError(f"`{name}` may be {both}: write the one you mean in double quotes")
        return Column(twins[0], twins[0]) if twins else None

    def _plain(self, name: str) -> Column | None:
        if name in self.keys:
            return Column(name, name)
        base = name.removesuffix(JSON)
        return Column(name, base, json=True) if base != name and base in self.keys else None

    def _prefixed(self, name: str) -> Column | None:
        if not name.startswith(PREFIX):
            return None
        found = self._plain(name[len(PREFIX) :])
        return Column(name, found.key, found.json) if found is not None else None

    def near(self, name: str) -> str | None:
        """The column a mistyped name most likely means."""
        name = name.removeprefix(PREFIX).removesuffix(JSON)
        known = [*sorted(self.keys, key=lambda key: "/" in key), *self.own.values()]
        exact = [k for k in known if folded(k) == folded(name)]
        close = exact or get_close_matches(name, known, 1, cutoff=0.6)
        inside = [k for k in known if folded(name) in (part for part in folded(k).replace("/", ".").split("."))]
        found = close or inside
        return found[0] if found else None


def spellings(name: str) -> set[str]:
    """Keys that a name may mean."""
    found = {name, name.removeprefix(PREFIX)}
    return found | {k.removesuffix(JSON) for k in found}


def listed(texts: Iterable[str], *, lower: bool = False) -> str:
    """Strings as an IN list; `lower`: as DuckDB's lower() makes them."""
    return ", ".join(f"lower({spelled(text)})" if lower else spelled(text) for text in sorted(texts))


def spelled(text: str) -> str:
    """A string in SQL; NUL, which DuckDB before 2.0 cannot read in a query's text, by its number."""
    return " || chr(0) || ".join(literal(part) for part in text.split("\0")) if "\0" in text else literal(text)
