"""Upkeep of a served root: segments that became many are merged beside the requests, in a session of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from mirror.errors import MirrorError
from mirror.store import Writer
from mirror.store.catalog import FileRow

_EVERY = 60.0  # seconds
_PATIENCE = 5.0  # seconds an end waits for the merge at hand; one that is cut off leaves nothing behind


class Upkeep:
    """A thread that merges what has become due. The writer that takes runs in only makes small merges itself."""

    def __init__(self, root: Path, *, every: float = _EVERY) -> None:
        self._root = root
        self._every = every
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while not self._ending.wait(self._every):
            try:
                with Writer(self._root, create=False) as writer:
                    writer.compact(progress=self._until_the_end)
            except MirrorError as e:  # a full disk, for one: requests are refused for it where they must be
                logging.getLogger(__name__).warning("files were not merged: %s", e)

    def _until_the_end(self, groups: list[list[FileRow]]) -> Iterator[list[FileRow]]:
        for group in groups:
            if self._ending.is_set():
                return
            yield group
