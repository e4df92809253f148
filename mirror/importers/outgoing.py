"""What of a mirrored run goes out, where that depends on the kind of its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from mirror.importers.lines import RunLines
from mirror.importers.mlflow_config import typed_config
from mirror.importers.mlflow_lines import MlflowLines

if TYPE_CHECKING:
    from mirror.store import Reader

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Lines(Protocol):
    """The lines of one stream of one run; see `mirror.importers.lines`."""

    @property
    def shortened(self) -> int: ...

    def shifted(self, rows: int) -> int: ...

    def parts(self, first_row: int) -> Iterator[list[str]]: ...


def gathered(row: Mapping[str, Any]) -> bool:
    """Whether a run's rows are points, which become rows when they are sent."""
    return str(row["source"]).startswith("mlflow:")


def history_of(reader: Reader, row: Mapping[str, Any]) -> tuple[Lines, int]:
    """The lines of a run's history, and how many there are; `row` is its row of `runs_raw`."""
    if not gathered(row):
        return RunLines(reader, row["rid"], "history"), row["history_rows"]
    began = row.get("created_at")
    lines = MlflowLines(reader, row["rid"], None if began is None else (began - _EPOCH).total_seconds())
    return lines, lines.rows


def config_of(row: Mapping[str, Any]) -> str | None:
    """A run's config as it is sent, but for its origin."""
    return typed_config(row["config_raw"]) if gathered(row) else row["config_raw"]
