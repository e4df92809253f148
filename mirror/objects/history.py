"""A run's rows: sampled as a data frame, or all of them one after another."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mirror.errors import UsageError
from mirror.objects.attrs import ArgumentError
from mirror.objects.held import select
from mirror.query.text import safe
from mirror.records import Stream

if TYPE_CHECKING:
    from mirror.objects.run import Run
    from mirror.objects.runs import Runs

Row = dict[str, Any]
_EXACT = 1 << 53


def history(
    run: Run, samples: int | None, keys: Sequence[str] | None, x_axis: str, pandas: bool, stream: str
) -> list[Row] | Any:
    """See `Run.history`."""
    from mirror.query.samples import sampled

    which, together = _asked(samples, keys, x_axis, stream)
    more = ["_timestamp"] if pandas and together and "_timestamp" not in together else []
    rows, total = sampled(run._held.reader, run._rid, which, together, samples, more)
    _tell(run, samples, together, len(rows), total, (run._rid, which))
    return frame(rows) if pandas else rows


def histories(
    runs: Runs, samples: int | None, keys: Sequence[str] | None, x_axis: str, stream: str
) -> Iterator[tuple[Run, list[Row]]]:
    """Each run with its rows; that they are samples is told of once."""
    from mirror.query.samples import sampled_each

    which, together = _asked(samples, keys, x_axis, stream)
    found = sampled_each(runs._held.reader, runs._rids, which, together, samples)
    for run, (rows, total) in zip(runs, found, strict=True):
        _tell(run, samples, together, len(rows), total, ("histories", id(runs)))
        yield run, rows


def _asked(
    samples: int | None, keys: Sequence[str] | None, x_axis: str, stream: str
) -> tuple[Stream, list[str] | None]:
    """The stream, and the keys that rows must have."""
    wanted = _keys(keys)
    which: Stream = "history" if stream == "default" else "system"
    if wanted and which == "system":
        raise ArgumentError("`keys` can be given for the default stream only: select columns of the system metrics")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int)):
        raise ArgumentError(f"`samples` is a number of rows, or None for all, got `{samples!r}`")
    return which, list(dict.fromkeys([x_axis, *wanted])) if wanted else None


def _tell(run: Run, samples: int | None, together: list[str] | None, given: int, total: int, once: object) -> None:
    """Say that rows are a sample, once for each value of `once`, and why there are none."""
    if samples is not None and total > max(samples, 0):
        run._held.tell_once(
            once,
            f"history() gives {given} of {total} rows of {run._where}, evenly chosen and always the same: "
            "ask for all with history(samples=None) or scan_history()",
            stacklevel=5,
        )
    if together and not total:
        _why_none(run, together)


class HistoryScan:
    """All rows of a run, one after another; going over it again starts again. `keys`, `min_step` (inclusive) and
    `max_step` (exclusive) narrow it."""

    def __init__(
        self, run: Run, keys: Sequence[str] | None, page_size: int, min_step: int, max_step: int | None
    ) -> None:
        self.run = run
        self.keys = None if keys is None else _keys(keys)
        self.page_size = page_size
        self.min_step = min_step
        self.max_step = max_step
        self._rows = self._read()

    def __iter__(self) -> HistoryScan:
        self._rows = self._read()
        return self

    def __next__(self) -> Row:
        return next(self._rows)

    def _read(self) -> Iterator[Row]:
        from mirror.query.rows import rows
        from mirror.query.samples import having

        # Rows without a step have no place in a range, but the default range is everything.
        first = None if self.min_step <= 0 else self.min_step
        found = rows(self.run._held.reader, self.run._rid, "history", first, self.max_step, self.keys or None)
        return having(found, self.keys) if self.keys else found

    def __repr__(self) -> str:
        return safe(f"<HistoryScan {'/'.join(self.run.path)}>")


def frame(rows: Sequence[Row]) -> Any:
    """Rows as a pandas data frame, as wandb makes it: a column per key in order of appearance, NaN where a row lacks
    it. Integers that a float cannot hold stay Python's."""
    pandas = _imported("pandas", "pandas=False")
    made = pandas.DataFrame.from_records(list(rows))
    for i, (name, kind) in enumerate(zip(made.columns, made.dtypes, strict=True)):
        if str(kind) == "float64":
            values = [row.get(name) for row in rows]
            if any(type(v) is int and abs(v) > _EXACT for v in values):
                made.isetitem(i, pandas.Series(values, index=made.index, dtype=object))
    return made


def polars_frame(rows: Sequence[Row]) -> Any:
    """Rows as a polars data frame, likewise."""
    polars = _imported("polars", 'format="default"')
    return polars.DataFrame(list(rows), infer_schema_length=None, strict=False)


def _imported(name: str, instead: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise UsageError(
            f"{name} is not installed: pip install 'wandb-mirror[{name}]', or ask for dictionaries with {instead}"
        ) from None


def _keys(keys: Sequence[str] | None) -> list[str]:
    if isinstance(keys, str):
        raise ArgumentError(f"`keys` is a list of keys, got `{keys}`: write keys=[{keys!r}]")
    if keys is None:
        return []
    wanted = list(keys)
    for key in wanted:
        if not isinstance(key, str):
            raise ArgumentError(f"`keys` is a list of strings, got `{key!r}` in it")
    return wanted


def _why_none(run: Run, keys: Sequence[str]) -> None:
    """Say why there is no row with all of `keys`: nothing else does."""
    query = "select distinct key from metrics where rid = ?"
    logged = [row["key"] for row in select(run._held.state(), query, [run._rid])]
    if not logged:
        return
    known = set(logged) | {key[:i] for key in logged for i, c in enumerate(key) if c == "."}
    path = run._where
    for key in keys:
        if key not in known:
            near = get_close_matches(key, logged, 1)
            hint = f"did you mean `{near[0]}`?" if near else "`run.history_keys` lists its keys"
            warnings.warn(f"{path} never logged `{key}`; {hint}", stacklevel=5)
            return
    names = ", ".join(f"`{key}`" for key in keys)
    warnings.warn(f"no row of {path} has all of {names}: ask for keys logged at other steps one by one", stacklevel=5)
