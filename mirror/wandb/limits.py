"""What one server was found to allow and to do, by asking it (see probe.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Limits:
    """None: not known. Of the numbers, a sync keeps to the first four."""

    page: int | None = None
    """Runs in a page of a listing."""
    aliases: int | None = None
    """Runs in one request."""
    rows: int | None = None
    """Rows that one `history` gives out, if it was found to give out fewer than were asked for."""
    events: int | None = None
    """Samples of system metrics that one `events` gives out, if it gave out fewer than there are."""
    updated_at: bool | None = None
    """Whether runs tell when they were last changed."""
    counts_rows: bool | None = None
    """Whether `historyLineCount` is the number of rows that come."""
    exports: bool | None = None
    """Whether a run was seen that has an export."""
    rows_of_exports: bool | None = None
    """Whether rows that are exported are still given out as rows."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Limits:
        """Out of a file that another release, or a person, may have written: what makes no sense is not known."""
        kept: dict[str, Any] = {}
        for field in fields(cls):
            value = found.get(field.name)
            kind = int if "int" in str(field.type) else bool
            if type(value) is kind and (kind is bool or value > 0):
                kept[field.name] = value
        return cls(**kept)

    def said(self) -> Iterator[str]:
        """In words, a finding each."""
        if self.page:
            yield f"pages of {self.page:,} runs"
        if self.aliases:
            yield f"{self.aliases:,} runs in one request"
        if self.rows:
            yield f"at most {self.rows:,} rows at once"
        if self.events:
            yield f"at most {self.events:,} system metrics of a run"
        for value, yes, no in (
            (self.updated_at, "tells when runs were changed", "does not tell when runs were changed"),
            (self.counts_rows, "counts rows as they come", "counts rows otherwise than they come"),
            (self.exports, "has exports", "no export seen"),
            (self.rows_of_exports, "exported rows come as rows, too", "exported rows do not come as rows"),
        ):
            if value is not None:
                yield yes if value else no
