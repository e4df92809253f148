"""How long `mirror verify` takes, and how much memory, for one long run: the mirror alone, and against a server.

    python bench/verify.py [--rows 100000 1000000] [--keys 10]

A mirror with one run of so many rows is written from Python and pushed into a `mirror serve` of its own; then the
command is run, start to exit, without and with --against. Every row must have been compared, and none differ.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from push import MIRROR, long_run, push, timed
from serving import serving


def show(what: str, command: list[str], env: dict[str, str], place: Path, rows: int, said: str) -> None:
    took = timed(command, env, place)
    output = (place / "output.log").read_text()
    assert f"{rows:,} rows" in output and said in output, output[-2000:]
    print(
        f"| {what}, {rows:,} rows | {took.seconds:.1f} | {rows / took.seconds:,.0f} | {took.cpu / rows * 1e6:.1f} | "
        f"{took.peak / 1024:,.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--keys", type=int, default=10)
    given = parser.parse_args()
    print("| | seconds | rows/s | µs CPU/row | peak MB |\n|---|---|---|---|---|")
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            long_run(place / "mirror", rows, given.keys)
            command = [*MIRROR, "verify", "--mirror", str(place / "mirror")]
            show("mirror verify", command, {}, place, rows, "no difference")
            with serving(place / "server") as server:
                push(place, server, place / "mirror", rows)
                env = {"WANDB_API_KEY": server.key, "NETRC": "/dev/null"}
                against = [*command, "--against", server.url]
                show("mirror verify --against", against, env, place, rows, f"Compared with {server.url}")


if __name__ == "__main__":
    main()
