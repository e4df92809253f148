"""W&B's own protobuf classes, from the `wandb` package, which is needed for nothing else here."""

from __future__ import annotations

from functools import cache
from typing import Any

from mirror.errors import TerminalSourceError


@cache
def messages() -> Any:
    """The module `wandb_internal_pb2`: `Record` and what it may hold. Raises TerminalSourceError without `wandb`."""
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError as e:
        raise TerminalSourceError(
            f"reading `.wandb` logs needs the `wandb` package ({e}): pip install 'wandb-mirror[wandb]'", e
        ) from e
    return wandb_internal_pb2


def decoded(data: bytes) -> Any:
    """A record as W&B's message, None if it is none in spite of its checksum."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    try:
        return messages().Record.FromString(data)
    except DecodeError:
        return None


def as_dict(message: Any) -> dict[str, Any]:
    """A message as protobuf writes it in JSON."""
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped,unused-ignore]

    found: dict[str, Any] = MessageToDict(message)
    return found
