"""Every error a user can meet, as one small tree.

Messages say what happened, the offending value in backticks and the next step to take. The CLI prints
the message of any `MirrorError` on one line and exits 1 (2 for a `UsageError`); a traceback shown to a
user is a bug. `Transient` and `Terminal` are mixed in to say whether asking again can help.
"""

from __future__ import annotations

from functools import cached_property


class MirrorError(Exception):
    """Anything this package reports to its user."""

    @cached_property
    def exc(self) -> BaseException | None:
        """The error behind it, if there is one."""
        return self.__cause__


class Transient:
    """Mixed into errors that may go away when the same thing is asked again (429, 5xx, a reset)."""


class Terminal:
    """Mixed into errors that asking again cannot mend (a wrong key, a refused query)."""


class UsageError(MirrorError, Terminal):
    """The call itself is wrong: a path that cannot be parsed, an unknown field, SQL with an error."""


class NotFoundError(MirrorError, Terminal):
    """A run, project or key that the mirror (or the source) does not hold."""


class AmbiguousError(MirrorError, Terminal):
    """A path that names runs of several sources; the message lists the sources."""


class SourceError(MirrorError):
    """A source (a W&B server, an MLflow server, a folder) could not be read; `exc` is the original error."""

    def __init__(self, message: str, exc: BaseException | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.exc = exc


class TransientSourceError(SourceError, Transient):
    """A source failed in a way that retries did not outlast."""


class TerminalSourceError(SourceError, Terminal):
    """A source refused, for good: wrong key, no access, a query it does not know."""


CommError = MirrorError
"""The name `wandb.Api()` users know (`wandb.errors.CommError`, with the original error in `.exc`): there, too, whatever
goes wrong is one, a run that is not found included."""


class StoreError(MirrorError):
    """The store could not be read or written: not a mirror, newer schema, full disk, damaged file."""


class LockedError(StoreError, Transient):
    """Somebody else holds the project's lease; the message names the holder."""


class QueryError(UsageError):
    """A statement was refused or failed: syntax, an attempt to write, an attempt to read other files."""
