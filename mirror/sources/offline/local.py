"""Bytes on this machine: files of run folders, and files of artifacts where the SDK put them until they are sent."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mirror.errors import TerminalSourceError
from mirror.sources.offline import artifacts
from mirror.sources.offline.folder import RunLog
from mirror.sources.offline.manifest import named
from mirror.wandb.transport import Sink

_PIECE = 1 << 20


def run_files(logs: Iterable[RunLog], names: Iterable[str]) -> dict[str, Path]:
    """Where the files with these names are, of all the logs of a run; of one name the last."""
    wanted = set(names)
    return {name: path for log in logs for name, path in named(log.files) if name in wanted}


class Staged:
    """Where the SDK put the files of artifacts: what the logs (with the storage ids of their runs) say of it. Logs are
    read anew for what is asked; only which artifacts each names is kept."""

    def __init__(self, logs: Callable[[], Sequence[tuple[RunLog, str]]]) -> None:
        self._logs = logs
        self._named_in: dict[str, set[tuple[RunLog, str]]] | None = None

    def files(self, wanted: Sequence[tuple[str, list[str]]]) -> list[dict[str, Path] | None]:
        """For each (artifact, paths) the files that are still there; None for an artifact that no log names."""
        named_in = self._index()
        found: dict[str, dict[str, Path]] = {artifact: {} for artifact, _ in wanted if artifact in named_in}
        paths = {(artifact, path) for artifact, some in wanted for path in some}
        for log, run in {place for artifact in found for place in named_in[artifact]}:
            for artifact, path, place in artifacts.staged(log.path, run, frozenset(found)):
                if (artifact, path) in paths and Path(place).is_file():
                    found[artifact][path] = Path(place)
        return [found.get(artifact) for artifact, _ in wanted]

    def _index(self) -> dict[str, set[tuple[RunLog, str]]]:
        if self._named_in is None:
            self._named_in = {}
            for log, run in self._logs():
                for record in artifacts.records(log.path):
                    self._named_in.setdefault(artifacts.identity(record, run), set()).add((log, run))
        return self._named_in


def save(path: Path, out: Sink, *, resume: bool) -> int:
    """Copy a regular file, from where `out` stands if it is to go on there; returns how many bytes were copied."""
    copied = 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us up
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise TerminalSourceError(f"`{path}` is no file")
            if resume:
                file.seek(out.tell())
            else:
                out.seek(0)
                out.truncate()
            while piece := file.read(_PIECE):
                out.write(piece)
                copied += len(piece)
    except OSError as e:
        raise TerminalSourceError(f"`{path}` cannot be read: {e.strerror or e}", e) from e
    return copied
