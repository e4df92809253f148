"""Which logs there are in a folder, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mirror.errors import SourceError, TerminalSourceError
from mirror.sources.offline.framing import Log
from mirror.sources.offline.protobuf import decoded

SUFFIX = ".wandb"
_OFFLINE, _ONLINE = "offline-run-", "run-"
_RECORDS_BEFORE_RUN = 1000


@dataclass(frozen=True)
class RunLog:
    """A log and what its run record says. `entity` and `project` are empty where the SDK was not told any;
    `rewound_to` is the last step that is kept of the logs before, if the log begins by going back; a log that
    `resumes` a run counts its steps from 0, and means that they follow the last step before."""

    path: Path
    entity: str
    project: str
    run_id: str
    started: tuple[int, int]
    rewound_to: float | None = None
    resumes: bool = False

    @property
    def name(self) -> str:
        """Tells the logs of a run apart: they have one name, in folders named by time."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def files(self) -> Path:
        """The folder of the run's files."""
        return self.path.parent / "files"


@dataclass
class Found:
    """The logs of some paths; `errors` are what could not be read, `notices` what a user may want to know."""

    logs: list[RunLog] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def find(paths: list[Path], *, online: bool = False) -> Found:
    """The logs below these paths: logs themselves, run folders, or folders of run folders (`wandb`).

    Logs of runs that were sent to a server while they ran are left out of folders unless `online`.
    """
    found = Found()
    seen: set[Path] = set()
    for path in paths:
        try:
            for log in _logs(path.expanduser(), online):
                real = log.resolve()  # `latest-run` and other links lead to logs that are there already
                if real not in seen:
                    seen.add(real)
                    _add(log, found)
        except (SourceError, OSError) as e:
            found.errors.append(str(e) if isinstance(e, SourceError) else f"`{path}` cannot be read: {e.strerror or e}")
    found.logs.sort(key=lambda log: (log.started, str(log.path)))
    return found


def _logs(path: Path, online: bool) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise TerminalSourceError(f"there is no file or folder `{path}`")
    if own := _own(path):
        yield from own
        return
    for place in (path, path / "wandb"):
        if not place.is_dir():
            continue
        folders = sorted(p for p in place.iterdir() if p.is_dir() and not (p.is_symlink() and p.name == "latest-run"))
        runs = [p for p in folders if p.name.startswith(_OFFLINE) or (online and p.name.startswith(_ONLINE))]
        others = sum(p.name.startswith(_ONLINE) for p in folders) if not online else 0
        if runs:
            for folder in runs:
                yield from _own(folder)
            return
        if others:
            raise TerminalSourceError(
                f"`{place}` holds no offline runs, but {others} of runs that were sent to a server while they ran: "
                "sync them from there, or read their logs with --include-online"
            )
    raise TerminalSourceError(f"`{path}` holds no run folders (`offline-run-...`) and no `.wandb` log")


def _own(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIX) and p.is_file())


def _add(path: Path, found: Found) -> None:
    try:
        log = _head(path)
    except SourceError as e:
        found.errors.append(str(e))
        return
    if log is None:
        found.notices.append(f"`{path}` names no run yet")
    else:
        found.logs.append(log)


def _head(path: Path) -> RunLog | None:
    """Whose log it is; None if it has just begun. Raises TerminalSourceError if it is none or names no run."""
    seen = 0
    for records in Log(path, blocks_at_once=1):
        for data in records:
            seen += 1
            record = decoded(data)
            if record is not None and record.WhichOneof("record_type") == "run":
                return _run_log(path, record.run)
        if seen > _RECORDS_BEFORE_RUN:
            raise TerminalSourceError(f"`{path}` holds no run record: its beginning is lost, and so is whose it is")
    return None


def _run_log(path: Path, run: Any) -> RunLog:
    if not run.run_id:
        raise TerminalSourceError(f"`{path}` names a run without an id")
    point = run.branch_point if run.HasField("branch_point") and run.branch_point.run == run.run_id else None
    return RunLog(
        path=path,
        entity=run.entity,
        project=run.project,
        run_id=run.run_id,
        started=(run.start_time.seconds, run.start_time.nanos),
        rewound_to=point.value if point is not None else None,
        resumes=run.resume or run.resumed,
    )
