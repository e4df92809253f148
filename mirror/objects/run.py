"""`Run`: one run's attributes, documents and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mirror.errors import NotFoundError, UsageError
from mirror.query.text import moment

if TYPE_CHECKING:
    from datetime import datetime

    from mirror.store import Reader

_MISSING = object()


def read(reader: Reader, rids: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    """Rows of `runs`, with the documents as they came over the wire, by rid."""
    found = reader.connect().execute("select * from runs_raw where list_contains(?, rid)", [list(rids)])
    names = [column[0] for column in found.description or []]
    return {row[names.index("rid")]: dict(zip(names, row, strict=True)) for row in found.fetchall()}


class Summary(dict[str, Any]):
    """A run's summary; `_json_dict` is the name under which wandb's own class keeps the same."""

    @property
    def _json_dict(self) -> dict[str, Any]:
        return dict(self)


class Run:
    """A run as the mirror holds it. Attributes have W&B's names: `id` is the run id, `name` the display name;
    times are ISO 8601 text in UTC. Contents are those at the time the object was made."""

    def __init__(self, reader: Reader, rid: int, row: Mapping[str, Any] | None = None) -> None:
        self._reader = reader
        self._rid = rid
        if row is None:
            row = read(reader, [rid]).get(rid)
        if row is None:
            raise NotFoundError(f"the mirror no longer holds the run with rid `{rid}`: `mirror runs` lists what it has")
        self._row = row

    def __repr__(self) -> str:
        return f"<Run {'/'.join(self.path)} ({self.state})>"

    # -- attributes -----------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return str(self._row["run_id"])

    @property
    def name(self) -> str | None:
        return self._text("name")

    @property
    def entity(self) -> str:
        return str(self._row["entity"])

    @property
    def project(self) -> str:
        return str(self._row["project"])

    @property
    def path(self) -> list[str]:
        return [self.entity, self.project, self.id]

    @property
    def source(self) -> str:
        """The host the run was mirrored from."""
        return str(self._row["source"])

    @property
    def storage_id(self) -> str:
        return str(self._row["storage_id"])

    @property
    def state(self) -> str | None:
        return self._text("state")

    @property
    def tags(self) -> list[str]:
        return list(self._row["tags"] or ())

    @property
    def group(self) -> str | None:
        return self._text("group")

    @property
    def job_type(self) -> str | None:
        return self._text("job_type")

    @property
    def notes(self) -> str | None:
        return self._text("notes")

    @property
    def username(self) -> str | None:
        return self._text("username")

    @property
    def commit(self) -> str | None:
        return self._text("commit")

    @property
    def url(self) -> str | None:
        return self._text("url")

    @property
    def created_at(self) -> str | None:
        return self._time("created_at")

    @property
    def heartbeat_at(self) -> str | None:
        return self._time("heartbeat_at")

    @property
    def lastHistoryStep(self) -> int:
        """The highest `_step` held, -1 without any."""
        last = self._row["history_last_step"]
        return -1 if last is None else int(last)

    # -- documents ------------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config, without `value` wrappers and W&B's own keys."""
        from mirror.store.documents import parse, unwrapped

        found = parse(self._text("config_raw"))
        return unwrapped(found) if isinstance(found, dict) else {}

    @cached_property
    def summary(self) -> Summary:
        """The summary, as it came."""
        from mirror.store.documents import parse

        found = parse(self._text("summary_raw"))
        return Summary(found if isinstance(found, dict) else {})

    @cached_property
    def metadata(self) -> dict[str, Any] | None:
        """wandb-metadata.json (program, args, git, hardware), None if the source had none."""
        from mirror.store.documents import parse

        found = parse(self._text("metadata"))
        return found if isinstance(found, dict) else None

    # -- rows -----------------------------------------------------------------------------------------------

    def scan_history(
        self,
        keys: Sequence[str] | None = None,
        page_size: int = 1000,
        min_step: int = 0,
        max_step: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Every row of the history, as logged, in logged order: nothing is sampled, repeated steps come twice.

        With `keys`, rows that have all of them, reduced to them (dots also reach nested values), as wandb has it.
        `min_step` is inclusive, `max_step` exclusive. `page_size` changes nothing here: memory is bounded anyway.
        """
        from mirror.query.rows import rows

        if isinstance(keys, str):
            raise UsageError(f"`keys` is a list of keys, got `{keys}`: write keys=[{keys!r}]")
        # Rows without a step have no place in a range, but the default range is everything.
        first = None if min_step <= 0 else min_step
        for row in rows(self._reader, self._rid, "history", first, max_step, keys):
            if keys is None:
                yield row
                continue
            found = {key: _at(row, key) for key in keys}
            if _MISSING not in found.values():
                yield found

    # -- helpers --------------------------------------------------------------------------------------------

    def _text(self, name: str) -> str | None:
        value = self._row[name]
        return None if value is None else str(value)

    def _time(self, name: str) -> str | None:
        value: datetime | None = self._row[name]
        return None if value is None else moment(value)


def _at(row: Mapping[str, Any], key: str) -> Any:
    """The value at a key, a literal one before a nested one."""
    if key in row:
        return row[key]
    first, dot, rest = key.partition(".")
    while dot:
        inner = row.get(first)
        if isinstance(inner, dict) and (found := _at(inner, rest)) is not _MISSING:
            return found
        more, dot, rest = rest.partition(".")
        first = f"{first}.{more}"
    return _MISSING
