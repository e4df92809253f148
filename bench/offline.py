"""How fast a `.wandb` log is read, beside the SDK's own reader in Python.

    python bench/offline.py [--rows 100000] [--peer PYTHON] [--repeat 3] [--log FILE]

Writes a log as the SDK does (a history and two summary records a row, 11 keys), or takes one, and reads it, each in
a process of its own:

    sdk     wandb.sdk.internal.datastore.DataStore (gone from wandb since 0.27) with W&B's protobuf classes, values by
            json.loads: a dict a row. `--peer` is a Python that has wandb 0.26.1; without it one is made with pip.
    rows    the source alone: a JSON text a row, config, summary and all else
    cells   the same, decoded into Arrow tables, as the store takes them
    sync    the whole command, into a mirror

Prints microseconds of CPU a row, the ratios to `sdk`, and the peak memory of each.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
import venv
import zlib
from pathlib import Path

OLD = """
import glob, json, resource, sys, time
from wandb.proto import wandb_internal_pb2 as pb
from wandb.sdk.internal import datastore
began, cpu, rows = time.perf_counter(), time.process_time(), 0
reader = datastore.DataStore()
reader.open_for_scan(sys.argv[1])
while True:
    data = reader.scan_data()
    if data is None:
        break
    record = pb.Record()
    record.ParseFromString(data)
    if record.WhichOneof("record_type") == "history":
        row = {}
        for item in record.history.item:
            place, path = row, list(item.nested_key) or [item.key]
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = json.loads(item.value_json)
        rows += 1
"""

NEW = """
import resource, sys, time
from pathlib import Path
from mirror.sources.offline.source import OfflineSource
from mirror.sources.offline.protobuf import messages
from mirror.sources.protocol import Rows, Wanted
from mirror.store.cells import decode
messages()
decoding, rows = sys.argv[2] == "cells", 0
began, cpu = time.perf_counter(), time.process_time()
source = OfflineSource([Path(sys.argv[1])])
assert not source.errors, source.errors
for place in source.places():
    for run in source.listing(place.entity, place.name).runs:
        for step in source.fetch([Wanted(run)]):
            if isinstance(step, Rows) and step.stream == "history":
                rows += len(step.rows)
                if decoding:
                    decode(step.rows)
"""

SYNC = """
import resource, sys, time
from mirror.cli import main
rows = int(sys.argv[3])
began, cpu = time.perf_counter(), time.process_time()
try:
    sys.argv = ["mirror", "sync", sys.argv[1], "--mirror", sys.argv[2], "-q"]
    main()
except SystemExit as end:
    assert not end.code
"""

END = """
print(time.perf_counter() - began, time.process_time() - cpu, rows,
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out) + bytes([n])


def items(values: dict[str, float]) -> bytes:
    return b"".join(
        field(1, field(2, key.encode()) + field(16, json.dumps(value).encode())) for key, value in values.items()
    )


def write_log(path: Path, rows: int) -> None:
    """A log as wandb-core 0.31 writes it for `rows` rows."""
    at = 0
    with path.open("wb") as file:

        def put(data: bytes) -> None:
            nonlocal at
            at += file.write(data)

        def record(number: int, kind: int, content: bytes) -> None:
            data, begun = b"\x08" + varint(number) + field(kind, content), False
            while True:
                room = 32768 - at % 32768
                if room < 7:
                    put(bytes(room))
                    continue
                part, data = data[: room - 7], data[room - 7 :]
                piece = bytes([(3 if data else 4) if begun else (2 if data else 1)]) + part
                put(struct.pack("<IH", zlib.crc32(piece), len(part)) + piece)
                begun = True
                if not data:
                    return

        put(b":W&B\xe1\xbe\x00")
        record(1, 17, field(1, b"bench") + field(2, b"team") + field(3, b"bench"))
        runtime = field(1, field(2, b"_wandb") + field(2, b"runtime") + field(16, b"7"))
        for i in range(rows):
            values = {f"metric/{k}": (i + k) / 7 for k in range(8)}
            content = items(values | {"epoch": i // 100, "_timestamp": 1.7e9 + i / 3, "_runtime": i / 3, "_step": i})
            record(3 * i + 2, 3, runtime + field(1, field(1, b"_runtime") + field(16, b"7")))
            record(3 * i + 3, 3, content)
            record(3 * i + 4, 2, content + field(2, b"\x08" + varint(i)))
        record(3 * rows + 2, 18, b"")


Figures = tuple[float, float, int, float]
"""Seconds, seconds of CPU, rows, and peak memory in MB."""


def measured(python: str, script: str, *args: str) -> Figures:
    """The figures of a script in a process of its own."""
    done = subprocess.run([python, "-c", script + END, *args], check=True, capture_output=True, text=True)
    seconds, cpu, rows, peak = done.stdout.split()[-4:]
    return float(seconds), float(cpu), int(rows), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--peer", help="a Python with wandb 0.26.1")
    parser.add_argument("--no-peer", action="store_true", help="leave the SDK's reader out")
    parser.add_argument("--repeat", type=int, default=3, help="take the best of so many, by turns [default: 3]")
    parser.add_argument("--log", type=Path, help="a log to read instead of a made one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        log = args.log or folder / "run-bench.wandb"
        if not args.log:
            began = time.perf_counter()
            write_log(log, args.rows)
            size = log.stat().st_size / 1e6
            print(f"{args.rows:,} rows, {size:.0f} MB, written in {time.perf_counter() - began:.0f} s")
        peer = args.peer
        if peer is None and not args.no_peer:
            venv.create(folder / "peer", with_pip=True)
            peer = str(folder / "peer/bin/python")
            subprocess.run([peer, "-m", "pip", "install", "-q", "wandb==0.26.1"], check=True)
        runs: dict[str, list[Figures]] = {}
        for i in range(args.repeat):
            if peer is not None and not args.no_peer:
                runs.setdefault("sdk", []).append(measured(peer, OLD, str(log)))
            for name in ("rows", "cells"):
                runs.setdefault(name, []).append(measured(sys.executable, NEW, str(log), name))
            rows = str(runs["rows"][0][2])
            runs.setdefault("sync", []).append(measured(sys.executable, SYNC, str(log), str(folder / f"{i}"), rows))
        found = {name: min(figures, key=lambda f: f[1]) for name, figures in runs.items()}
    assert len({rows for _, _, rows, _ in found.values()}) == 1, found
    base = found.get("sdk")
    for name, (seconds, cpu, rows, peak) in found.items():
        ratio = f", {base[1] / base[2] / cpu * rows:.1f}x" if base else ""
        print(f"{name:6} {seconds:6.2f} s, {cpu / rows * 1e6:6.1f} us of CPU a row{ratio}, peak {peak:.0f} MB")


if __name__ == "__main__":
    main()
