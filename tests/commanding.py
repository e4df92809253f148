"""Commands called within this process: quick, with what they print and how they exit."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from mirror.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


def call(*args: str | Path, stdin: str = "", root: Path | None = None) -> Done:
    """`mirror ARGS`, as the console script calls it, off a terminal."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
    argv = ["mirror", *map(str, args), *(["--mirror", str(root)] if root is not None else [])]
    code = 0
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
    ):
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
    out.flush(), err.flush()
    return Done(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


def ok(*args: str | Path, stdin: str = "", root: Path | None = None) -> str:
    done = call(*args, stdin=stdin, root=root)
    assert done.code == 0, done.err
    return done.out
