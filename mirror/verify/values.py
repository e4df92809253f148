"""When two JSON values are the same: exactly, or but for their spelling, which servers change."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from mirror.store.jsontext import NONFINITE, Number, parse_exactly, write

EQUAL, RESPELLED, OTHER = "equal", "respelled", "other"


def read(text: str) -> Any:
    """The exact value of a JSON text; ValueError if it is none."""
    return parse_exactly(text)


def shown(value: Any) -> str:
    return write(value, True)


def compare(here: Any, there: Any) -> str:
    """Values from `read`: `respelled` if they are the same number as an integer and a float (2 and 2.0), or the same
    number that is none as a token and as text (NaN and "NaN"), anywhere within; the order of names does not count."""
    if type(here) is type(there):
        if isinstance(here, dict):
            if here.keys() != there.keys():
                return OTHER
            return _worst(compare(value, there[key]) for key, value in here.items())
        if isinstance(here, list):
            if len(here) != len(there):
                return OTHER
            return _worst(map(compare, here, there))
        if isinstance(here, float):
            return EQUAL if repr(here) == repr(there) else OTHER  # NaN is NaN, 0.0 is not -0.0
        return EQUAL if here == there else OTHER
    if isinstance(here, bool) or isinstance(there, bool):
        return OTHER
    numbers = [_exact(side) for side in (here, there)]
    if numbers[0] is not None and numbers[0] == numbers[1]:
        return RESPELLED
    words = [_word(side) for side in (here, there)]
    return RESPELLED if words[0] is not None and words[0] == words[1] else OTHER


def _worst(found: Iterator[str]) -> str:
    result = EQUAL
    for one in found:
        if one == OTHER:
            return OTHER
        result = RESPELLED if one == RESPELLED else result
    return result


def _exact(value: Any) -> Decimal | None:
    if isinstance(value, float) and value - value == 0:
        return Decimal(value) if value or not str(value).startswith("-") else None
    if isinstance(value, Number):
        return Decimal(value) if value != "-0" else None
    return Decimal(value) if isinstance(value, int) else None


def _word(value: Any) -> str | None:
    if isinstance(value, float) and value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return str(value) if isinstance(value, str) and not isinstance(value, Number) and value in NONFINITE else None


def leaves(here: Any, there: Any, path: str = "") -> Iterator[tuple[str, str | None, str | None, str]]:
    """The places where two documents were compared: JSON pointer, text here, text there (None: nothing), and what
    `compare` says. Dictionaries are gone into where both sides have one."""
    if not (isinstance(here, dict) and isinstance(there, dict)):
        yield path, shown(here), shown(there), compare(here, there)
        return
    if not here and not there:
        yield path, "{}", "{}", EQUAL
    for key in {**here, **there}:
        inner = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if key not in there:
            yield inner, shown(here[key]), None, OTHER
        elif key not in here:
            yield inner, None, shown(there[key]), OTHER
        else:
            yield from leaves(here[key], there[key], inner)
