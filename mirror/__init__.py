"""A local, exact, always-queryable copy of machine-learning experiments.

    import mirror
    m = mirror.open("wandb-mirror")
    m.sql("select project, count(*) from runs group by 1").df()

Names are imported when they are first used, so `import mirror` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirror.api import Mirror, open
    from mirror.errors import CommError, MirrorError, SourceError, StoreError, UsageError
    from mirror.objects import Api, Histogram
    from mirror.records import FileEntry, Project, Run, RunKey

    __version__: str

_WHERE = {
    "Api": "mirror.objects",
    "CommError": "mirror.errors",
    "FileEntry": "mirror.records",
    "Histogram": "mirror.objects",
    "Mirror": "mirror.api",
    "MirrorError": "mirror.errors",
    "Project": "mirror.records",
    "Run": "mirror.records",
    "RunKey": "mirror.records",
    "SourceError": "mirror.errors",
    "StoreError": "mirror.errors",
    "UsageError": "mirror.errors",
    "open": "mirror.api",
}

_MODULES = ("errors", "filters", "objects")
"""Reached as attributes without an import of their own (`wandb.errors.CommError`)."""

_LOGGING = ("init", "login", "log", "finish", "watch", "agent", "Artifact", "Image", "Table")

__all__ = [
    "Api",
    "CommError",
    "FileEntry",
    "Histogram",
    "Mirror",
    "MirrorError",
    "Project",
    "Run",
    "RunKey",
    "SourceError",
    "StoreError",
    "UsageError",
    "__version__",
    "open",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name in _MODULES:
        return import_module(f"mirror.{name}")
    if name in _LOGGING:
        raise AttributeError(f"mirror reads what was logged and has no `{name}`: log runs with wandb (docs/guides.md)")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("wandb-mirror")
        except PackageNotFoundError:  # a checkout that was never installed
            return "0+unknown"
    raise AttributeError(f"module 'mirror' has no attribute {name!r}")
