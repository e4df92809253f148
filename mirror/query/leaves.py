"""Documents of runs (config, summary) as Python values and by their leaves, exactly.

Leaves are numbers, strings, true, false, null, lists, empty objects and media (objects with `_type`). The place of a
leaf is the tuple of names that lead to it, so `{"a": {"b": 1}}` and `{"a.b": 1}` stay apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from mirror.query.sql import asking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mirror.store import Reader

Place = tuple[str, ...]
_PART = 500  # runs


def documents(reader: Reader, rids: Sequence[int]) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """rid, config and summary of the runs, in the order given, a few hundred in memory at a time. Runs that are not
    held any more are left out."""
    with asking(reader) as connection:
        for start in range(0, len(rids), _PART):
            part = list(rids[start : start + _PART])
            query = "select rid, config_raw, summary_raw from runs_raw where list_contains(?, rid)"
            found = {row[0]: row for row in connection.execute(query, [part]).fetchall()}
            for rid in part:
                if rid in found:
                    yield rid, config(found[rid][1]), summary(found[rid][2])


def config(raw: str | None) -> dict[str, Any]:
    """A config as its user wrote it, from the wire's text."""
    from mirror.store.documents import unwrapped

    return unwrapped(_parsed(raw))


def summary(raw: str | None) -> dict[str, Any]:
    """A summary without W&B's own `_wandb`, from the wire's text."""
    return {key: value for key, value in _parsed(raw).items() if key != "_wandb"}


def _parsed(raw: str | None) -> dict[str, Any]:
    from mirror.store.jsontext import parse

    found = parse(raw)[0] if raw is not None else {}
    return found if isinstance(found, dict) else {}


def leaves(document: Mapping[str, Any]) -> dict[Place, Any]:
    """Values by place, in the document's order."""
    found: dict[Place, Any] = {}
    waiting: list[tuple[Place, Any]] = [((key,), value) for key, value in reversed([*document.items()])]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict) and value and "_type" not in value:
            waiting += [((*place, key), child) for key, child in reversed([*value.items()])]
        else:
            found[place] = value
    return found


def label(place: Place) -> str:
    """A place as people write it: names with dots between them."""
    return ".".join(place)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal: numbers by their exact value (1 is 1.0, NaN is NaN), everything else by type
    and value.

    >>> same(1, 1.0), same(1, True), same(2**53 + 1, float(2**53)), same("1", 1)
    (True, False, False, False)
    """
    return bool(_exact(one) == _exact(other))


def _exact(value: Any) -> Any:
    from mirror.store.jsontext import Number

    if isinstance(value, (bool, type(None))):
        return ("constant", value)
    if isinstance(value, (int, float, Number)):
        number = Decimal(value)
        return ("number", "NaN" if number.is_nan() else number)
    if isinstance(value, list):
        return [_exact(v) for v in value]
    if isinstance(value, dict):
        return {key: _exact(v) for key, v in value.items()}
    return ("text", value)


def json_of(value: Any) -> str:
    """A value as JSON text; numbers keep their digits, NaN and infinities are strings."""
    from mirror.store.jsontext import write

    return write(value, True, strict=True)


def shown(value: Any) -> str:
    """A value for people: strings bare, unless they could be taken for something else."""
    if isinstance(value, float) and value - value != 0:
        return json_of(value).strip('"')
    text = json_of(value)
    if not isinstance(value, str) or not text.startswith('"'):
        return text
    return text if value.strip() != value or _looks_like_json(value) else value


def _looks_like_json(value: str) -> bool:
    from mirror.store.jsontext import parse_exactly

    try:
        parse_exactly(value)
    except (ValueError, RecursionError):
        return value == ""
    return True
