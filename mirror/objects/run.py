"""A mirrored run, shaped like `wandb.apis.public.Run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from mirror.store import Reader
from mirror.store.documents import INTERNAL_KEYS, parse

COLUMNS = (
    'rid, source, entity, project, run_id, storage_id, name, state, tags, "group", job_type, notes, '
    "user_name, username, created_at, heartbeat_at, commit, sweep, url, config_raw, summary_raw, metadata, history_rows, history_last_step, "
    "config, summary"
)


class Summary(dict[str, Any]):
    """A run's summary. `_json_dict` is the plain dictionary under the name W&B's SDK gives it."""

    @property
    def _json_dict(self) -> dict[str, Any]:
        return dict(self)


class Run:
    """One run. Attributes carry W&B's names: `id` is the run id, `name` the display name, `storage_id` the server's.

    `config` and `summary` come as they were logged (integers stay integers, NaN where the source kept it); times
    are ISO-8601 text in UTC, as in W&B's SDK.
    """

    def __init__(self, reader: Reader, row: Mapping[str, Any]) -> None:
        self._reader = reader
        self._row = row
        self.source: str = row["source"]
        self.entity: str = row["entity"]
        self.project: str = row["project"]
        self.id: str = row["run_id"]
        self.storage_id: str = row["storage_id"]
        self.name: str | None = row["name"]
        self.state: str | None = row["state"]
        self.tags: list[str] = list(row["tags"] or [])
        self.group: str | None = row["group"]
        self.job_type: str | None = row["job_type"]
        self.notes: str | None = row["notes"]
        self.commit: str | None = row["commit"]
        self.url: str | None = row["url"]
        self.created_at: str | None = _iso(row["created_at"])
        self.heartbeat_at: str | None = _iso(row["heartbeat_at"])
        self.lastHistoryStep: int = -1 if row["history_last_step"] is None else row["history_last_step"]

    @property
    def path(self) -> list[str]:
        """[entity, project, run id]."""
        return [self.entity, self.project, self.id]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Hyperparameters, without the keys that W&B keeps there for itself."""
        found = parse(self._row["config_raw"]) or {}
        return {
            key: value["value"] if isinstance(value, dict) and "value" in value else value
            for key, value in found.items()
            if key not in INTERNAL_KEYS
        }

    @cached_property
    def summary(self) -> Summary:
        """The summary: last values, or what the run set."""
        return Summary(parse(self._row["summary_raw"]) or {})

    @cached_property
    def metadata(self) -> dict[str, Any] | None:
        """wandb-metadata.json: program, arguments, git, hardware. None if the run has none."""
        found: dict[str, Any] | None = parse(self._row["metadata"])
        return found

    def scan_history(
        self,
        keys: Sequence[str] | None = None,
        page_size: int = 1000,
        min_step: int | None = None,
        max_step: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Every row as it was logged, in logged order: nothing sampled, repeated steps repeated.

        `keys` keeps the rows that have all of these keys, and nothing else of them; `min_step` is inclusive,
        `max_step` exclusive. `page_size` is accepted for compatibility and means nothing here.
        """
        from mirror.query.rows import rows

        found = rows(self._reader, self._row["rid"], "history", min_step, max_step, keys)
        return found if keys is None else (row for row in found if all(_has(row, key) for key in keys))

    def __repr__(self) -> str:
        return f"<Run {'/'.join(self.path)} ({self.state})>"


class Runs(Sequence[Run]):
    """The runs a query found, in its order."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: Any) -> Any:
        return self._runs[index]

    def __repr__(self) -> str:
        return f"<Runs {len(self)}>"


def _iso(at: Any) -> str | None:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ") if at is not None else None


def _has(row: Mapping[str, Any], key: str) -> bool:
    """Whether a row has a key, literally or as dotted path into nested dictionaries."""
    if key in row:
        return True
    return any(
        isinstance(row.get(key[:i]), Mapping) and _has(row[key[:i]], key[i + 1 :])
        for i, c in enumerate(key)
        if c == "."
    )
