"""The type of a column that holds values of several kinds exactly."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

_LONGEST_BIGINT, _LONGEST_HUGEINT = 18, 38  # characters that always fit
_EXACT = 1 << 53
NONFINITE = ("NaN", "Infinity", "-Infinity")
"""How W&B's JSON spells numbers that are none."""


def best_type(kinds: Set[str], longest: int = 0) -> str:
    """The DuckDB type for `int`, `long` (an integer that a double may not hold; `longest` is the most characters of
    one), `number`, `nonfinite`, `bool`, `string` and `json` (anything else).

    >>> best_type({"int"}), best_type({"int", "number"}), best_type({"long", "number"}), best_type({"bool", "int"})
    ('BIGINT', 'DOUBLE', 'JSON', 'JSON')
    """
    if kinds and kinds <= {"int", "long"} and longest <= _LONGEST_HUGEINT:
        return "HUGEINT" if longest > _LONGEST_BIGINT else "BIGINT"
    if kinds and kinds <= {"int", "number", "nonfinite"}:
        return "DOUBLE"
    if kinds == {"bool"}:
        return "BOOLEAN"
    return "VARCHAR" if kinds <= {"string"} else "JSON"


class Seen:
    """What kinds of values a column has had so far."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.longest = 0

    def add(self, value: Any) -> None:
        """Note a value of a document; see `mirror.store.jsontext` for what they can be."""
        from mirror.store.jsontext import Number

        if value is None:
            return
        if isinstance(value, bool):
            self.kinds.add("bool")
        elif isinstance(value, Number):
            self._integer(str(value)) if value.lstrip("-").isdigit() else self.kinds.add("json")
        elif isinstance(value, int):
            self._integer(str(value))
        elif isinstance(value, float):
            self.kinds.add("number" if value - value == 0 else "nonfinite")
        elif isinstance(value, str):
            self.kinds.add("spelled" if value in NONFINITE else "string")
        else:
            self.kinds.add("json")

    def _integer(self, digits: str) -> None:
        small = len(digits) < 17 and abs(int(digits)) <= _EXACT
        self.kinds.add("int" if small else "long")
        self.longest = max(self.longest, len(digits))

    @property
    def type(self) -> str:
        """Strings that spell a number which is none count as numbers beside numbers, as strings else."""
        kinds = self.kinds - {"spelled"}
        if "spelled" in self.kinds:
            kinds.add("nonfinite" if kinds <= {"int", "number", "nonfinite"} else "string")
        return best_type(kinds, self.longest)


def fitted(value: Any, kind: str) -> Any:
    """A value of a document as a column of that type hands it out."""
    from mirror.query.leaves import json_of

    if kind == "JSON":
        return json_of(value)
    if value is None:
        return None
    if kind in ("BIGINT", "HUGEINT"):
        return int(value)
    return float(value) if kind == "DOUBLE" else value
