"""`Summary`: what a run ended with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirror.objects.attrs import refused


class Summary(dict[str, Any]):
    """A run's summary as a dictionary, whose nested dictionaries are summaries too. Names that are no attributes of
    a dictionary can be read as attributes (`run.summary.loss`). Changes stay in this object."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        for key, value in values.items():
            if type(value) is dict:
                self[key] = Summary(value)

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
        """Refused: wandb's sends the summary to the server."""
        raise refused("`Summary.update()`")
