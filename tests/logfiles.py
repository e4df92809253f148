"""`.wandb` logs written by hand: W&B's records in LevelDB's framing, so that tests can tear and damage them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32 << 10


def framed(records: Sequence[bytes], at: int = len(HEADER)) -> bytes:
    """Records as a log holds them from byte `at` on."""
    out = bytearray()
    for record in records:
        left, begun = record, False
        while True:
            room = BLOCK - (at + len(out)) % BLOCK
            if room < 7:
                out += bytes(room)
                continue
            part, left = left[: room - 7], left[room - 7 :]
            kind = (3 if left else 4) if begun else (2 if left else 1)
            data = bytes([kind]) + part
            out += struct.pack("<IHB", zlib.crc32(data), len(part), kind) + part
            begun = True
            if not left:
                break
    return bytes(out)


def unframed(log: Path) -> list[bytes]:
    """The records of a whole log."""
    data, at, found = log.read_bytes(), len(HEADER), list[bytes]()
    while at < len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + size]
        if kind in (1, 2):
            found.append(part)
        else:
            found[-1] += part
        at += 7 + size
    return found


def run_record(run_id: str, project: str = "logs", entity: str = "team", **fields: Any) -> bytes:
    record = pb.Record(num=1)
    record.run.run_id, record.run.project, record.run.entity = run_id, project, entity
    record.run.start_time.FromSeconds(fields.pop("started", 1_700_000_000))
    for name, value in fields.items():
        setattr(record.run, name, value)
    data: bytes = record.SerializeToString()
    return data


def row(step: int, num: int = 2, **values: Any) -> bytes:
    """A history record; values of nested dictionaries get nested keys, as the SDK writes them."""
    record = pb.Record(num=num)
    record.history.step.num = step
    for key, value in {"_step": step, "_timestamp": 1.7e9 + step, **values}.items():
        _add(record.history.item.add, (key,), value)
    data: bytes = record.SerializeToString()
    return data


def _add(new: Any, path: tuple[str, ...], value: Any) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _add(new, (*path, key), inner)
    else:
        item = new()
        item.nested_key.extend(path)
        item.value_json = json.dumps(value)


def summary(num: int = 2, remove: Sequence[str] = (), **values: Any) -> bytes:
    record = pb.Record(num=num)
    for key, value in values.items():
        item = record.summary.update.add()
        item.key, item.value_json = key, json.dumps(value)
    for key in remove:
        record.summary.remove.add().key = key
    data: bytes = record.SerializeToString()
    return data


def exit_record(code: int = 0) -> bytes:
    record = pb.Record(num=9)
    record.exit.exit_code = code
    data: bytes = record.SerializeToString()
    return data


def write_log(folder: Path, run_id: str, records: Sequence[bytes], name: str | None = None) -> Path:
    """A run folder with a log; returns the log."""
    place = folder / (name or f"offline-run-20260101_000000-{run_id}")
    place.mkdir(parents=True, exist_ok=True)
    log = place / f"run-{run_id}.wandb"
    log.write_bytes(HEADER + framed(records))
    return log
