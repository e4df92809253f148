"""Edits of a query's text that remember where everything came from, so that errors point into what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """`text` in the place of the characters from `start` to before `end`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Statement:
    """A statement: what runs, and what the user wrote."""

    text: str
    written: str
    stages: tuple[tuple[Edit, ...], ...] = ()
    """Edits that led from `written` to `text`, stage by stage, each in order of place."""

    def edited(self, edits: Sequence[Edit]) -> Statement:
        parts, place = [], 0
        stage = tuple(sorted(edits, key=lambda edit: (edit.start, edit.end)))
        for edit in stage:
            parts += [self.text[place : edit.start], edit.text]
            place = edit.end
        return Statement("".join(parts) + self.text[place:], self.written, (*self.stages, stage))

    def origin(self, place: int) -> int | None:
        """Where in `written` a place of `text` lies; None if that was put in."""
        for stage in reversed(self.stages):
            shift = 0
            for edit in stage:
                if place < edit.start + shift:
                    break
                if place < edit.start + shift + len(edit.text):
                    return None
                shift += len(edit.text) - (edit.end - edit.start)
            place -= shift
        return place
