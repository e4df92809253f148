"""Many runs of one project in one query: each is asked for by its name, and answered under an alias of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Named:
    """Runs by their names (their ids). `declared` goes behind the variables that a query declares, `variables` among
    their values."""

    def __init__(self, run_ids: Sequence[str]) -> None:
        self.declared = "".join(f", $n{i}: String!" for i in range(len(run_ids)))
        self.variables = {f"n{i}": run_id for i, run_id in enumerate(run_ids)}

    def asked(self, fields: str, lookup: str = "run(name: {})") -> str:
        """The same fields of every run; `lookup` is the field that finds one, with `{}` for its name."""
        names = enumerate(self.variables)
        return " ".join(f"r{i}: {lookup.format(f'${name}')} {{ {fields} }}" for i, name in names)

    def answers(self, parent: Mapping[str, Any]) -> list[Any]:
        """What was answered for each run below `parent`, in order; None for those that are not there."""
        return [parent.get(f"r{i}") for i in range(len(self.variables))]
