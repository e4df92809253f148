"""What made a run: the command line, the code's state and the machine, from wandb-metadata.json."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def metadata(text: str | None) -> dict[str, Any]:
    """The document as it came; empty if the source had none or it is broken."""
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def arguments(found: Mapping[str, Any]) -> list[str] | None:
    """The words of the command that made a run, as W&B's guide puts them together: python, program, arguments.

    The SDK writes `program` and `args` (wandb 0.31, wandb-metadata.json); None without them."""
    program = found.get("program")
    if not isinstance(program, str) or not program:
        return None
    args = found.get("args")
    words: Sequence[Any] = args if isinstance(args, list) else []
    return ["python", program, *(str(word) for word in words)]


def command(found: Mapping[str, Any]) -> str | None:
    """The command as a line for a shell."""
    words = arguments(found)
    return None if words is None else shlex.join(words)


def git(found: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Remote and commit."""
    held = found.get("git")
    held = held if isinstance(held, dict) else {}
    return _text(held.get("remote") or held.get("remoteUrl")), _text(held.get("commit"))


def _text(value: Any) -> str | None:
    return str(value) if value is not None else None
