"""A `.wandb` log as a sequence of records; what is torn or damaged is skipped and said.

The format is LevelDB's log format with a header of seven bytes (wandb, core/pkg/leveldb): blocks of 32 KiB that
hold frames of a CRC-32 (of the type and the data), a length, a type and data. A record is one frame, or a first,
some middle and a last one. A block's last bytes are padding where no frame header fits.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mirror.errors import TerminalSourceError

BLOCK = 32 << 10
_HEADER = b":W&B\xe1\xbe\x00"
_FRAME_HEADER = 7
_FRAME = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_CRC_OF_TYPE = [zlib.crc32(bytes([kind])) for kind in range(_LAST + 1)]
_BEGINS = re.compile(b"[\x01\x02]")
"""The types of the frames that begin a record."""


@dataclass(frozen=True)
class Damage:
    """Bytes of a log from `start` to `end` that hold no whole record, though whole ones follow."""

    start: int
    end: int


class Log:
    """Reads a log from `offset` (0, or what `offset` was after an earlier reading) to its end.

    Afterwards `offset` is behind the last whole record, `torn` says how many bytes follow there, `damage` what was
    unreadable before. Bytes behind `offset` may be whole the next time, if the log is still written.
    """

    def __init__(self, path: Path, offset: int = 0, *, blocks_at_once: int = 32) -> None:
        self.path = path
        self._at_once = BLOCK * blocks_at_once
        self.offset = max(offset, len(_HEADER))
        self.torn = 0
        self.damage: list[Damage] = []
        self._begun: list[bytes] = []
        self._begun_at = 0
        self._bad_since: int | None = None

    def __iter__(self) -> Iterator[list[bytes]]:
        """Records in lists of about a megabyte (`blocks_at_once`). Raises TerminalSourceError if the file is no log."""
        try:
            with self.path.open("rb") as file:
                check_header(self.path, file)
                at = self.offset
                while True:
                    file.seek(at)
                    wanted = self._at_once - at % BLOCK
                    data = file.read(wanted)
                    found: list[bytes] = []
                    start = 0
                    while start < len(data):
                        size = BLOCK - (at + start) % BLOCK
                        self._block(data[start : start + size], at + start, found)
                        start += size
                    at += len(data)
                    self.torn = at - self.offset
                    if found:
                        yield found
                    if len(data) < wanted:  # what is written from now on is for the next reading
                        break
        except OSError as e:
            raise TerminalSourceError(f"`{self.path}` cannot be read: {e.strerror or e}", e) from e

    def _block(self, block: bytes, at: int, found: list[bytes]) -> None:
        """The records that end in a block, or in what there is of it."""
        p, n, crc32, unpack = 0, len(block), zlib.crc32, _FRAME.unpack_from
        while p + _FRAME_HEADER <= n:
            crc, length, kind = unpack(block, p)
            end = p + _FRAME_HEADER + length
            data = block[p + _FRAME_HEADER : end]
            if (
                end > n
                or not _FULL <= kind <= _LAST
                or crc32(data, _CRC_OF_TYPE[kind]) != crc
                or (kind >= _MIDDLE) is not bool(self._begun)
            ):
                p = self._skip(block, p, at)
                continue
            if self._bad_since is not None:
                self.damage.append(Damage(self._bad_since, at + p))
                self._bad_since = None
            if kind == _FULL:
                found.append(data)
                self.offset = at + end
            elif kind == _FIRST:
                self._begun, self._begun_at = [data], at + p
            else:
                self._begun.append(data)
                if kind == _LAST:
                    found.append(b"".join(self._begun))
                    self._begun = []
                    self.offset = at + end
            p = end

    def _skip(self, block: bytes, p: int, at: int) -> int:
        """Where the next whole record of the block begins after something unreadable at `p`; its end if none does."""
        if self._bad_since is None:
            self._bad_since = self._begun_at if self._begun else at + p
        self._begun = []
        for match in _BEGINS.finditer(block, p + _FRAME_HEADER - 1):
            q = match.start() - _FRAME_HEADER + 1
            crc, length, _ = _FRAME.unpack_from(block, q)
            end = match.end() + length
            if end <= len(block) and zlib.crc32(block[q + 6 : end]) == crc:
                return q
        return len(block)


def check_header(path: Path, file: BinaryIO) -> bool:
    """Whether a log has its header already (one that was just begun is empty).

    Raises TerminalSourceError if the file begins otherwise.
    """
    header = file.read(len(_HEADER))
    if not _HEADER.startswith(header):
        raise TerminalSourceError(f"`{path}` is no log of the W&B SDK: it does not begin with `:W&B` and version 0")
    return len(header) == len(_HEADER)
