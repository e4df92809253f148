"""The best runs of a sweep, or of any runs, by a value of their summary.

As W&B's `sweep.best_run` has it: runs are ordered by the metric and goal of the sweep's configuration (minimize, if it
names none), whatever their state; numbers come first, and runs whose value is NaN or missing last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirror.errors import AmbiguousError, NotFoundError, UsageError
from mirror.paths import WandbPath, canonical_source, parse
from mirror.query.columns import columns_of
from mirror.query.filters.fields import MAX_PARTS
from mirror.query.leaves import documents, label, leaves, same
from mirror.query.runs import Chosen, Selection, find_path, rids
from mirror.query.sql import Result, execute

if TYPE_CHECKING:
    from mirror.query.filters import Filter
    from mirror.store import Reader

_MOST_COLUMNS = 12
_GOALS = {"minimize": "+", "min": "+", "maximize": "-", "max": "-"}
_MISSING = object()


@dataclass(frozen=True)
class Contest:
    """Runs that are compared: the path that names them, and for a sweep its source and what its configuration says."""

    path: WandbPath
    source: str | None = None
    metric: str | None = None
    goal: str | None = None
    parameters: tuple[str, ...] = ()

    @property
    def is_sweep(self) -> bool:
        return self.path.sweep_id is not None


def contest(reader: Reader, text: str, source: str | None = None) -> Contest:
    """What a path names: a sweep (entity/project/sweeps/ID, entity/project/ID, project/ID, ID or a URL), a project or
    an entity. Raises NotFoundError, AmbiguousError, UsageError."""
    path = parse(text)
    if path.base_url is not None:
        source = canonical_source(path.base_url)
    if path.sweep_id is not None:
        found = _sweeps(reader, path.sweep_id, path.entity, path.project, source)
    else:
        short = parse(text, want="run")
        found = _sweeps(reader, short.run_id or "", short.entity, short.project, source)
        if not found or (path.run_id is None and _is_project(reader, path)):
            return Contest(_not_a_run(find_path(reader, text, source), text), source)
    if not found:
        raise NotFoundError(f"the mirror holds no sweep `{text}`; `mirror sql 'from sweeps'` lists what it holds")
    if len(found) > 1:
        names = ", ".join(f"`{s['entity']}/{s['project']}/sweeps/{s['sweep_id']}` from `{s['source']}`" for s in found)
        raise AmbiguousError(f"`{text}` may be {names}: write the whole path, and --source HOST if need be")
    sweep = found[0]
    return Contest(
        WandbPath(sweep["entity"], sweep["project"], None, sweep["sweep_id"]),
        sweep["source"], sweep["metric"], sweep["goal"], tuple(_parameters(sweep["config"])),
    )  # fmt: skip


def best(
    reader: Reader,
    among: Contest,
    metric: str,
    goal: str,
    *,
    limit: int = 5,
    filter: Filter | None = None,
    columns: Sequence[str] = (),
) -> Result:
    """The first `limit` runs, the best one first: path, name, state, the metric, and `columns` (default: the sweep's
    parameters, or the config keys in which these runs differ). NotFoundError if no run has the metric."""
    order = _GOALS[goal] + _field(metric)
    chosen = rids(reader, Selection([among.path], among.source, filter, order, limit))
    value = f"summary_metrics.{metric}"
    if chosen and columns_of(reader, Chosen(chosen[:1]), [value]).fetchall()[0][0] is None:
        raise NotFoundError(
            f"no run of `{_name(among)}` has `{metric}` in its summary; {_hint(reader, chosen, metric)}"
        )
    more = columns or [f"config.{key}" for key in among.parameters or _varying(reader, chosen)]
    return columns_of(reader, Chosen(chosen), list(dict.fromkeys(["path", "name", "state", value, *more])))


def _name(among: Contest) -> str:
    return among.path.text + (f"/sweeps/{among.path.sweep_id}" if among.is_sweep else "")


def _field(metric: str) -> str:
    """The metric as a key of an order: dots may lead to nested values, other odd names are meant literally."""
    parts = metric.split(".")
    if "" not in parts and len(parts) <= MAX_PARTS and not re.search(r"[,\[\]]|^\s|\s$", metric):
        return f"summary_metrics.{metric}"
    return f"summary_metrics[{json.dumps(metric)}]".replace(",", "\\u002c")


_SWEEPS = """
with held as (
  select source, entity, project, sweep_id, metric, goal, config from sweeps where deleted_at is null
)
select * from held where {where}
union all
select distinct source, entity, project, sweep as sweep_id, null, null, null from runs
where {of_runs} and not exists (
  select 1 from held h
  where h.source = runs.source and h.entity = runs.entity and h.project = runs.project and h.sweep_id = runs.sweep
)
"""


def _sweeps(
    reader: Reader, sweep_id: str, entity: str | None, project: str | None, source: str | None
) -> list[dict[str, Any]]:
    where = (
        "sweep_id = $id and coalesce(entity = $entity, true) and coalesce(project = $project, true) "
        "and coalesce(source = $source, true)"
    )
    params = {"id": sweep_id, "entity": entity, "project": project, "source": source}
    both = _SWEEPS.format(where=where, of_runs=where.replace("sweep_id", "sweep"))
    query = f"select * from ({both}) order by source, entity, project"
    found = execute(reader, query, params)
    return [dict(zip(found.columns, row, strict=True)) for row in found]


def _is_project(reader: Reader, path: WandbPath) -> bool:
    query = "select 1 from runs where entity = $entity and coalesce(project = $project, true) limit 1"
    return execute(reader, query, {"entity": path.entity, "project": path.project}).fetchone() is not None


def _not_a_run(path: WandbPath, text: str) -> WandbPath:
    if path.run_id is not None:
        raise UsageError(f"`{text}` is a run, not a sweep: name a sweep or a project")
    return path


def _parameters(config: str | None) -> list[str]:
    """Dotted config keys that a sweep chooses; nested ones stand under `parameters` of their own (W&B's sweep
    configuration)."""
    try:
        found = json.loads(config or "{}")
    except ValueError:
        return []
    names: list[str] = []
    waiting = [("", found.get("parameters") if isinstance(found, dict) else None)]
    while waiting:
        prefix, parameters = waiting.pop()
        for name, spec in parameters.items() if isinstance(parameters, dict) else ():
            if isinstance(spec, dict) and isinstance(spec.get("parameters"), dict):
                waiting.append((f"{prefix}{name}.", spec["parameters"]))
            elif not (isinstance(spec, dict) and "value" in spec):  # a fixed value tells runs not apart
                names.append(f"{prefix}{name}")
    return names[:_MOST_COLUMNS]


def _varying(reader: Reader, chosen: Sequence[int]) -> list[str]:
    """Config keys in which some runs differ; all keys if there is one run only."""
    configs = [leaves(config) for _, config, _ in documents(reader, chosen)]
    places = dict.fromkeys(place for config in configs for place in config)
    if len(configs) > 1:
        places = {
            p: None
            for p in places
            if any(not _alike(configs[0].get(p, _MISSING), config.get(p, _MISSING)) for config in configs[1:])
        }
    return [label(place) for place in places][:_MOST_COLUMNS]


def _alike(one: Any, other: Any) -> bool:
    return one is other or (one is not _MISSING and other is not _MISSING and same(one, other))


def _hint(reader: Reader, chosen: Sequence[int], metric: str) -> str:
    from difflib import get_close_matches

    known = dict.fromkeys(label(place) for _, _, summary in documents(reader, chosen) for place in leaves(summary))
    near = get_close_matches(metric, known, 1)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"there are {', '.join(f'`{key}`' for key in list(known)[:_MOST_COLUMNS])}" if known else "it is empty"
