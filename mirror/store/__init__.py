"""The store: immutable Parquet segments, a small catalog as the commit point, a published snapshot.

`Writer` puts records in, `Reader` hands out DuckDB connections over one consistent state, `Spool` keeps what a
server has acknowledged until it is in segments. See docs/data-model.md and docs/decisions.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirror.store.catalog import Known, StreamState
    from mirror.store.layout import LOCAL_SOURCE, Layout
    from mirror.store.live import Spool
    from mirror.store.reader import Reader
    from mirror.store.writer import Writer

_WHERE = {
    "Known": "mirror.store.catalog",
    "LOCAL_SOURCE": "mirror.store.layout",
    "Layout": "mirror.store.layout",
    "Reader": "mirror.store.reader",
    "Spool": "mirror.store.live",
    "StreamState": "mirror.store.catalog",
    "Writer": "mirror.store.writer",
}

__all__ = ["LOCAL_SOURCE", "Known", "Layout", "Reader", "Spool", "StreamState", "Writer"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'mirror.store' has no attribute {name!r}")
