"""Config and summary documents taken apart into a row per node, so that any field can be filtered on.

The wire's documents are JSON with liberties: bare `NaN` tokens, raw control characters (the SDK
itself falls back to a lenient parser), integers of any length. `explode` gives the nodes and a text that
every strict JSON reader takes; the document as it came is kept beside it by the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mirror.errors import SourceError
from mirror.store import jsontext
from mirror.store.jsontext import Number, storable

Node = tuple[str, str, "float | None", "str | None"]
"""Path (JSON pointer), type, number, string: a row of `config` or `summary` in schema/tables.sql."""

LONGEST_ARRAY = 64
"""Arrays with more elements are kept as one node."""

INTERNAL_KEYS = ("_wandb", "wandb_version")
"""Keys of a config that W&B wrote, not the user (WANDB_INTERNAL_KEYS in its SDK)."""


def parse(doc: str | None) -> Any:
    """The document as Python values, as lenient as W&B's SDK; None for None. Raises SourceError for text
    that is no JSON at all."""
    if doc is None:
        return None
    try:
        return jsontext.parse_plainly(doc)
    except (ValueError, RecursionError) as exc:
        raise _broken(doc, exc) from exc


def explode(doc: str | None, *, unwrap: bool) -> tuple[str | None, list[Node]]:
    """A document as strict JSON text (non-finite numbers as the strings W&B uses) and its nodes.

    `unwrap` is for configs: `{"lr": {"value": 0.1}}` becomes `{"lr": 0.1}` and W&B's own keys are left out.
    Numbers have their nearest double; those that differ from it have their exact text beside it. Containers
    have a node of their own with their exact text. A document that is missing has neither text nor nodes.
    Raises SourceError for text that is no JSON.
    """
    if doc is None:
        return None, []
    try:
        value, exact = jsontext.parse(doc)
        if unwrap and isinstance(value, dict):
            value = unwrapped(value)
        nodes = list(_nodes("", value, exact))
    except (ValueError, RecursionError) as exc:
        raise _broken(doc, exc) from exc
    return jsontext.write(value, exact, strict=True), nodes


def unwrapped(config: dict[str, Any]) -> dict[str, Any]:
    """A config as its user wrote it: `value` wrappers removed, W&B's own keys left out."""
    return {
        key: value["value"] if isinstance(value, dict) and "value" in value else value
        for key, value in config.items()
        if key not in INTERNAL_KEYS
    }


def _nodes(path: str, value: Any, exact: bool) -> Iterator[Node]:
    if isinstance(value, dict):
        yield path, "object", None, jsontext.write(value, exact, strict=True)
        for key, child in value.items():
            yield from _nodes(f"{path}/{_token(key)}", child, exact)
    elif isinstance(value, list):
        yield path, "array", None, jsontext.write(value, exact, strict=True)
        if len(value) <= LONGEST_ARRAY:
            for i, child in enumerate(value):
                yield from _nodes(f"{path}/{i}", child, exact)
    elif value is None:
        yield path, "null", None, None
    elif isinstance(value, bool):
        yield path, "bool", float(value), None
    elif isinstance(value, Number):
        yield path, "number", _nearest(value), None if value == "-0" else str(value)
    elif isinstance(value, int):
        yield path, "number", float(value), None if abs(value) <= 1 << 53 else str(value)
    elif isinstance(value, float):
        yield path, "number" if value - value == 0 else "nonfinite", value, None
    else:
        yield path, "string", None, storable(value)


def _nearest(text: Number) -> float | None:
    """The double nearest to a number's text; None where only an infinity is left."""
    value = float(text)
    return None if abs(value) == float("inf") else value


def _token(key: str) -> str:
    """A key as part of a JSON pointer (RFC 6901)."""
    return storable(key.replace("~", "~0").replace("/", "~1"))


def _broken(doc: str, exc: BaseException) -> SourceError:
    excerpt = doc if len(doc) <= 80 else doc[:77] + "..."
    return SourceError(
        f"A config or summary document is no JSON ({exc}): `{excerpt}`. "
        "Sync the run again, and report it to who runs the source if it stays.",
        exc,
    )
