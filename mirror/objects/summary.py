"""`Summary`: what a run ended with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Summary(dict[str, Any]):
    """A run's summary as a dictionary, whose nested dictionaries are summaries too. Names that are no attributes of
    a dictionary can be read as attributes (`run.summary.loss`). Changes stay in this object until `update`, which
    writes them to the run's server with `Api(online=True)` and is refused otherwise."""

    def __init__(self, values: Mapping[str, Any], write: Callable[[], None]) -> None:
        super().__init__()
        object.__setattr__(self, "_write", write)
        self._fill(values)

    def _fill(self, values: Mapping[str, Any]) -> None:
        """Be these values and nothing else."""
        self.clear()
        for key, value in values.items():
            self[key] = Summary(value, self._write) if type(value) is dict else value

    @property
    def _json_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, under the name wandb keeps it."""
        return {key: value._json_dict if isinstance(value, Summary) else value for key, value in self.items()}

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the summary has no key `{name}`") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take more values (none with None, as in wandb), and write everything that was changed to the server. Raises
        OfflineError offline."""
        before = dict(self)
        super().update(*(values for values in args if values is not None), **kwargs)
        try:
            self._write()
        except BaseException:
            self.clear()
            super().update(before)
            raise
