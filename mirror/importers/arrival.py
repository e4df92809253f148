"""Whether runs that were sent are there: many of them are looked at in one request, and again if they are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from mirror.errors import MirrorError, SourceError, TransientSourceError
from mirror.importers.account import Account
from mirror.importers.files import RunFiles
from mirror.records import RunKey
from mirror.wandb.documents import Manifest, fetch_files, find_manifests
from mirror.wandb.held import HeldRun, held_runs

if TYPE_CHECKING:
    from mirror.wandb.client import Client

RUNS_AT_ONCE = 20
_SETTLING = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait for a server that says later what it took in."""
_NAMES = 50
"""Files up to which those of a run are asked for by their names."""


@dataclass(frozen=True, eq=False)
class SentRun:
    """A run all of which was sent: the lines of each stream and the files that the destination must hold now. `points`
    are those its rows were gathered of, if they were."""

    key: RunKey
    history: int
    system: int
    console: int
    files: RunFiles
    account: Account
    points: int | None = None

    def missing(self, held: HeldRun | None, listed: Manifest | None, source: str) -> MirrorError | None:
        """What the destination does not show of it."""
        if held is None:
            return TransientSourceError(f"`{source}` does not show run `{self.key.path}`, which was just sent")
        counts = {
            "rows of history": (self.history, held.history),
            "rows of system metrics": (self.system, held.system),
            "console lines": (self.console, held.logs),
        }
        if listed is not None:
            counts["files"] = (len(self.files.sent), self.files.arrived({file.name: file for file in listed.files}))
        for what, (sent, there) in counts.items():
            if there is not None and sent != there:
                return TransientSourceError(
                    f"of {sent} {what} that were sent, `{self.key.path}` shows {there}: run it again"
                )
        return None

    def arrived(self) -> None:
        """Note in its account what is there."""
        self.account.counts |= {
            "history": self.history, "system": self.system, "console": self.console,
            "files": len(self.files.sent), "bytes": self.files.nbytes,
        }  # fmt: skip
        if self.points is not None:
            self.account.counts["points"] = self.points


def check_arrival(client: Client, sent: Sequence[SentRun]) -> None:
    """See that everything that was sent is there, and note in the accounts of the runs what is, or stays missing."""
    waiting = list(sent)
    for n, wait in enumerate((*_SETTLING, None)):
        try:
            found = _look(client, waiting, by_name=n == 0)
        except SourceError as e:
            _check_each(client, waiting, e)
            return
        waiting = []
        for run, held, listed in found:
            error = run.missing(held, listed, client.source)
            if error is None:
                run.arrived()
            elif held is None or wait is None:
                run.account.failed(error)
            else:
                waiting.append(run)
        if not waiting or wait is None:
            return
        client.transport.budget.sleep(wait)


def _check_each(client: Client, sent: Sequence[SentRun], error: SourceError) -> None:
    """The server did not answer: about one of the runs, which the others need not fail with, or at all."""
    refused = 0
    for run in sent:
        if len(sent) == 1 or refused > 1:
            run.account.failed(error)
        else:
            check_arrival(client, [run])
            refused = 0 if run.account.ok else refused + 1


def _look(
    client: Client, sent: Sequence[SentRun], *, by_name: bool
) -> list[tuple[SentRun, HeldRun | None, Manifest | None]]:
    """What the destination shows of each run, and of its files if any were sent."""
    held: dict[RunKey, HeldRun | None] = {}
    listed: dict[RunKey, Manifest] = {}
    for (entity, project), group in groupby(sorted(sent, key=_place), key=_place):
        runs = list(group)
        counts = held_runs(client, entity, project, [run.key.run_id for run in runs])
        held |= {run.key: counts[run.key.run_id] for run in runs}
        few = [run for run in runs if by_name and 0 < len(run.files.sent) <= _NAMES]
        if few:
            wanted = [(run.key.run_id, list(run.files.sent)) for run in few]
            found = find_manifests(client, entity, project, wanted)
            listed |= {run.key: manifest for run, manifest in zip(few, found, strict=True)}
        listed |= {run.key: fetch_files(client, run.key) for run in runs if run.files.sent and run not in few}
    return [(run, held[run.key], listed.get(run.key)) for run in sent]


def _place(run: SentRun) -> tuple[str, str]:
    return run.key.entity, run.key.project
