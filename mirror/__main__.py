"""`mirror`, also as `python -m mirror`: a command in a process of its own."""

from __future__ import annotations

from typing import NoReturn

from mirror.cli import main as command
from mirror.memory import without_pandas


def main() -> NoReturn:
    without_pandas()
    command()


if __name__ == "__main__":
    main()
