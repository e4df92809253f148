"""Memory that is given back, or never taken: for processes that move much data through little of it."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_MMAP_THRESHOLD = -3
_LARGE = 256 << 10


def give_back() -> None:
    """Let large blocks go back to the system as soon as they are free.

    By default glibc raises the size from which it does so to 32 MB once a block of that size was freed, and
    Arrow's own allocator keeps what it once had; a sync of a run with 10,000 keys then peaks at 510 MB instead of 445.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library; it only costs memory
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


class _NoPandas:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas" and not sys.modules.keys() & {"wandb", "mlflow"}:  # whose clients ask for it, too
            raise ModuleNotFoundError("pandas is not wanted here", name=name)


def without_pandas() -> None:
    """Hide pandas in a process that makes no data frames: Arrow would import it with the first array it makes, for
    0.3 s and 30 MB, to know a data frame when it sees one."""
    sys.meta_path.insert(0, _NoPandas())
