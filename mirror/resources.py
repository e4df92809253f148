"""Text files that ship with the package: `schema/*.sql` and `queries/*.sql`.

They stand at the top of the repository because people read them; the wheel carries them in `mirror/_data`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_BASE = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent


def folder(kind: str) -> Path:
    """The folder `schema` or `queries`."""
    return _BASE / kind


def text(kind: str, name: str) -> str:
    """One file's text, e.g. `text("schema", "tables.sql")`."""
    return (folder(kind) / name).read_text(encoding="utf-8")
