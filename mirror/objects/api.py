"""`Api`: the way in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirror.objects.run import Run
from mirror.objects.runs import Runs
from mirror.store import Reader
from mirror.store.layout import default_root


class Api:
    """Reads one mirror: the one at `root`, else at `MIRROR_ROOT`, else at `./wandb-mirror`.

    `source` (a host, e.g. `api.wandb.ai`) narrows everything to runs mirrored from there, for mirrors that hold
    the same path from several. Raises StoreError if there is no mirror.
    """

    def __init__(self, root: str | Path | None = None, *, source: str | None = None) -> None:
        self.source = source
        self._reader = Reader(root if root is not None else default_root())

    def run(self, path: str) -> Run:
        """A run by `entity/project/run_id`, `project/run_id`, `run_id` or URL.

        Raises NotFoundError, or AmbiguousError with the sources (or full paths) that a path could mean."""
        from mirror.query.runs import find_run

        self._reader.refresh()
        return Run(self._reader, int(find_run(self._reader, path, self.source)["rid"]))

    def runs(
        self,
        path: str | None = None,
        filters: Mapping[str, Any] | str | None = None,
        order: str | None = "+created_at",
    ) -> Runs:
        """Runs of `entity/project` (of an entity, or of the whole mirror) that meet `filters`, in `order`.

        Filters and orders are those of `wandb.Api().runs`; docs/filters.md says what they mean. Which runs these
        are is settled here, their contents are read as they are asked for. Raises NotFoundError for a path the
        mirror holds nothing of, FilterError for a filter it cannot read.
        """
        from mirror.paths import parse
        from mirror.query.filters import parse as parse_filter
        from mirror.query.runs import Selection, check_held, rids

        self._reader.refresh()
        parsed = parse_filter(filters)
        for notice in parsed.notices:
            warnings.warn(notice, stacklevel=2)
        paths = [parse(path)] if path else []
        for one in paths:
            check_held(self._reader, one, self.source)
        return Runs(self._reader, rids(self._reader, Selection(paths, self.source, parsed, order)))

    def flush(self) -> None:
        """Look at the newest state of the mirror; `run` and `runs` do so by themselves."""
        self._reader.refresh()
