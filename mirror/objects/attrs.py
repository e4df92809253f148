"""What all objects have in common: W&B's two spellings of a name, and no edits, since a mirror is a copy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mirror.errors import UsageError

_CAPITAL = re.compile(r"(?<=[a-z0-9])[A-Z]")


class OfflineError(UsageError):
    """What was asked for can only be done at the server that was mirrored."""


class ArgumentError(UsageError, ValueError):
    """An argument is of the wrong kind; wandb raises ValueError for the same."""


def refused(what: str) -> OfflineError:
    return OfflineError(
        f"{what} changes things at their server, and this is a mirror, which asks none: "
        "Api(online=True) writes there, and the mirror follows"
    )


class _Column:
    """An attribute that is a column of the thing's row."""

    def __init__(self, column: str) -> None:
        self._column = column


class Text(_Column):
    """Text, or None where the source did not say."""

    def __get__(self, thing: Any, owner: Any = None) -> str | None:
        value = None if thing is None else thing._row[self._column]
        return None if value is None else str(value)


class Name(_Column):
    """Text that is never missing."""

    def __get__(self, thing: Any, owner: Any = None) -> str:
        return "" if thing is None else str(thing._row[self._column])


class Texts(_Column):
    """A list of texts, empty where the source did not say."""

    def __get__(self, thing: Any, owner: Any = None) -> list[str]:
        return [] if thing is None else list(thing._row[self._column] or ())


class Time(_Column):
    """A time as W&B's API spells it: ISO 8601 in UTC with a Z."""

    def __get__(self, thing: Any, owner: Any = None) -> str | None:
        from mirror.query.text import moment

        value = None if thing is None else thing._row[self._column]
        return None if value is None else moment(value)


class Count(_Column):
    """A number, 0 where the source did not say."""

    def __get__(self, thing: Any, owner: Any = None) -> int:
        return 0 if thing is None else int(thing._row[self._column] or 0)


class Value(_Column):
    """A number, or None where the source did not say."""

    def __get__(self, thing: Any, owner: Any = None) -> Any:
        return None if thing is None else thing._row[self._column]


class Attrs:
    """Attributes under W&B's names: `created_at`, and `createdAt` for the same. They cannot be set."""

    def __getattr__(self, name: str) -> Any:
        snake = _CAPITAL.sub(lambda m: f"_{m[0].lower()}", name)
        if snake != name and hasattr(type(self), snake):
            return getattr(self, snake)
        raise AttributeError(f"a {type(self).__name__} of a mirror has no attribute `{name}`")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise unsupported(f"setting `{name}`")
        object.__setattr__(self, name, value)


def unsupported(what: str) -> OfflineError:
    return OfflineError(
        f"{what} changes things at their server, and this is a mirror, which only edits runs there: "
        "do it with wandb.Api(), then `mirror sync`"
    )


def refusing(name: str) -> Callable[..., Any]:
    """A method of wandb's that a mirror cannot have."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise unsupported(f"`{type(self).__name__}.{name}()`")

    method.__name__ = name
    method.__doc__ = "Refused: a mirror is a copy."
    return method
