"""What became of one thing that was sent: kept, changed or lost, and how much of it."""

from __future__ import annotations

import os
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from mirror.errors import MirrorError

Kind = Literal["changed", "lost"]

INTERRUPTED = "interrupted: what was sent is noted; run the same command again to go on"


@dataclass(frozen=True)
class Note:
    """Something that is not at the destination as it was at the source. `what` is a word of WHATS or the name of an
    attribute; `count` says how many things it is about."""

    kind: Kind
    what: str
    detail: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.what} {self.kind}: {self.detail}"


@dataclass
class Account:
    """One run (artifact, report): where it went, what arrived, what did not. `error` is set if it is not done."""

    path: str
    destination: str
    fingerprint: str
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[Note] = field(default_factory=list)
    error: str | None = None
    skipped: bool = False

    def changed(self, what: str, detail: str, count: int = 1) -> None:
        self.notes.append(Note("changed", what, detail, count))

    def lost(self, what: str, detail: str, count: int = 1) -> None:
        self.notes.append(Note("lost", what, detail, count))

    def failed(self, error: Exception) -> None:
        """Note why it is not done."""
        if os.environ.get("MIRROR_DEBUG"):
            traceback.print_exception(error)
        known = isinstance(error, MirrorError)
        self.error = str(error) if known else f"unexpected {type(error).__name__}: {error} (a bug: please report it)"

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass
class Totals:
    """The accounts of many runs, added up: how many there were of each outcome, what arrived, and for every kind and
    word of the notes how many runs have one, how many things they are about, and an example."""

    done: int = 0
    skipped: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    notes: dict[tuple[Kind, str], tuple[int, int, str]] = field(default_factory=dict)
    failures: list[Account] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    renamed: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """(entity, project, run id) of runs that are called otherwise there -> their ids there."""

    @property
    def ok(self) -> bool:
        return not self.failures and not self.errors

    def add(self, account: Account) -> None:
        if account.skipped:
            self.skipped += 1
        elif account.error is not None:
            self.failures.append(account)
            return
        else:
            self.done += 1
        self.counts.update(account.counts)
        self.note(account)

    def note(self, account: Account) -> None:
        """Add the notes of an account, and nothing else of it."""
        for pair in {(note.kind, note.what) for note in account.notes}:
            about = [note for note in account.notes if (note.kind, note.what) == pair]
            runs, things, example = self.notes.get(pair, (0, 0, about[0].detail))
            self.notes[pair] = runs + 1, things + sum(note.count for note in about), example

    def merge(self, other: Totals) -> None:
        """Add what other totals hold."""
        self.done += other.done
        self.skipped += other.skipped
        self.counts.update(other.counts)
        self.failures += other.failures
        self.errors += other.errors
        self.renamed |= other.renamed
        for pair, (runs, things, example) in other.notes.items():
            held = self.notes.get(pair, (0, 0, example))
            self.notes[pair] = held[0] + runs, held[1] + things, held[2]
