"""`Sweep`: runs that were made by one search."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from mirror.errors import AmbiguousError, NotFoundError, UsageError
from mirror.objects.attrs import Attrs, Name, Text, Time, Value, refusing
from mirror.objects.held import Held, Record, select
from mirror.objects.sequence import Listed
from mirror.query.text import safe

if TYPE_CHECKING:
    from mirror.objects.run import Run
    from mirror.objects.runs import Runs
    from mirror.objects.users import User

_COLUMNS = (
    "source, entity, project, sweep_id, storage_id, name, description, state, config_raw, "
    "best_loss, run_count, username, created_at, updated_at"
)


class Sweep(Attrs):
    """A sweep. One of which the mirror knows no more than its runs has an empty `config` and no state."""

    def __init__(self, held: Held, row: Record) -> None:
        self._held = held
        self._row = row

    id = Name("sweep_id")
    entity = Name("entity")
    project = Name("project")
    source = Name("source")

    @property
    def path(self) -> list[str]:
        return [quote_plus(part) for part in (self.entity, self.project, self.id)]

    @property
    def name(self) -> str:
        """The display name, else the name in the config, else the id."""
        return str(self._row["name"] or self.config.get("name") or self.id)

    display_name = Text("name")
    description = Text("description")
    state = Text("state")
    best_loss = Value("best_loss")
    run_count = Value("run_count")

    @property
    def user(self) -> User | None:
        from mirror.objects.users import User

        return None if self._row["username"] is None else User(self._row["username"])

    created_at = Time("created_at")
    updated_at = Time("updated_at")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the search."""
        import yaml

        try:
            found = yaml.safe_load(self._row["config_raw"] or "{}")
        except yaml.YAMLError as e:
            raise UsageError(f"the configuration of {'/'.join(self.path)} is no YAML: {str(e).splitlines()[0]}") from e
        return found if isinstance(found, dict) else {}

    @property
    def metric(self) -> dict[str, Any] | None:
        """What the sweep optimises: `{"name": .., "goal": ..}`."""
        found = self.config.get("metric")
        return found if isinstance(found, dict) else None

    @property
    def order(self) -> str | None:
        """The order of runs that puts the best first; None for a sweep without a metric."""
        if not self.metric or not isinstance(self.metric.get("name"), str):
            return None
        goal = self.metric.get("goal", "minimize")
        return _order(f"{'+' if goal == 'minimize' else '-'}{self.metric['name']}")

    @property
    def runs(self) -> Runs:
        """The sweep's runs, the oldest first."""
        return self._runs("+created_at")

    def best_run(self, order: str | None = None) -> Run | None:
        """The first run in `order`, or in the order of the sweep's metric; None for a sweep without runs.

        A sweep without a metric gives its oldest run and a warning, as in wandb. UsageError if the mirror does not
        hold the sweep's configuration."""
        wanted = self.order if order is None else _order(order)
        if wanted is None and self._row["config_raw"] is None:
            raise UsageError(
                f"the mirror does not hold the configuration of sweep `{'/'.join(self.path)}`: say what is best, "
                "e.g. best_run(order='-summary_metrics.val_acc')"
            )
        if wanted is None:
            warnings.warn(f"sweep {'/'.join(self.path)} names no metric: its first run is given", stacklevel=2)
        runs = self._runs(wanted or "+created_at")
        return runs[0] if runs else None

    def _runs(self, order: str) -> Runs:
        from mirror.objects.runs import Runs
        from mirror.paths import WandbPath
        from mirror.query.filters import parse as parse_filter
        from mirror.query.runs import Selection, rids

        path = WandbPath(self.entity, self.project)
        chosen = Selection([path], self.source, parse_filter({"sweep": self.id}), order)
        return Runs(self._held, rids(self._held.reader, chosen), name="/".join(self.path))

    def __repr__(self) -> str:
        return safe(f"<Sweep {'/'.join(self.path)} ({self.state or 'Unknown State'})>")

    stop = refusing("stop")
    update = refusing("update")
    enqueue_run = refusing("enqueue_run")


class Sweeps(Listed[Sweep]):
    """The sweeps of a project, the oldest first."""


_ATTRIBUTES = ("createdAt", "updatedAt", "name", "sweep")
_ROOTS = ("config", "summary_metrics", "tags")


def _order(order: str) -> str:
    """An order as wandb takes it here: a key that is neither an attribute nor in `config.` is the summary's, and
    without a sign the highest comes first."""
    sign, name = (order[0], order[1:]) if order[:1] in ("+", "-") else ("-", order)
    return sign + name if name in _ATTRIBUTES or name.partition(".")[0] in _ROOTS else f"{sign}summary_metrics.{name}"


def find(held: Held, entity: str, project: str, sweep_id: str, source: str | None = None) -> Sweep:
    """The sweep of that id. Raises NotFoundError, AmbiguousError if several sources have it."""
    found = _read(held, entity, project, source or held.source, sweep_id)
    if len(found) > 1:
        sources = ", ".join(f"`{row['source']}`" for row in found)
        raise AmbiguousError(f"sweep `{entity}/{project}/{sweep_id}` is held from {sources}: name one, Api(source=...)")
    if not found:
        names = ", ".join(f"`{row['sweep_id']}`" for row in _read(held, entity, project, source or held.source)[:5])
        hint = f"it has {names}" if names else "the mirror holds no sweeps of this project"
        raise NotFoundError(f"the mirror holds no sweep `{entity}/{project}/{sweep_id}`; {hint}")
    return Sweep(held, found[0])


def sweeps(held: Held, entity: str, project: str, source: str | None = None) -> Sweeps:
    """All sweeps of a project."""
    found = _read(held, entity, project, source)
    return Sweeps([Sweep(held, row) for row in found], f"{entity}/{project}")


def _read(
    held: Held, entity: str, project: str, source: str | None, sweep_id: str | None = None
) -> Sequence[dict[str, Any]]:
    """Rows of `sweeps`, and rows made up for sweeps that only their runs tell of."""
    # A sweep that was deleted at its source still has its place in a mirror.
    query = f"""
        with wanted as (select $1 as entity, $2 as project, $3::varchar as source, $4::varchar as sweep_id),
        told as (
          select {_COLUMNS} from sweeps s semi join wanted w on s.entity = w.entity and s.project = w.project
            and (w.source is null or s.source = w.source) and (w.sweep_id is null or s.sweep_id = w.sweep_id)
        )
        select * from told
        union all by name
        select r.source, r.entity, r.project, r.sweep as sweep_id, count(*) as run_count,
               min(r.created_at) as created_at
        from runs r semi join wanted w on r.entity = w.entity and r.project = w.project
          and (w.source is null or r.source = w.source) and (w.sweep_id is null or r.sweep = w.sweep_id)
        where r.sweep is not null and not exists (from told t where t.source = r.source and t.sweep_id = r.sweep)
        group by all
        order by created_at, sweep_id
    """
    return select(held.state(), query, [entity, project, source, sweep_id])
