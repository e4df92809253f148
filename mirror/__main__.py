"""`mirror`, also as `python -m mirror`: a command in a process of its own."""

from __future__ import annotations

import sys
from typing import NoReturn

from mirror.cli import main as command


class _NoPandas:
    """Tells the first who asks that there is no pandas: pyarrow, which would import it with the first array it makes,
    for 0.3 s, to know a data frame when it sees one. Commands make none. Later imports find it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            sys.meta_path.remove(self)
            raise ModuleNotFoundError("No module named 'pandas' is wanted here", name=name)


def main() -> NoReturn:
    sys.meta_path.insert(0, _NoPandas())
    command()


if __name__ == "__main__":
    main()
