"""What a sync tells whoever watches. This one is silent; the command line draws bars."""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """Called from the thread that runs the sync."""

    def listing(self, project: str, listed: int, total: int | None) -> None:
        """So many runs of a project are listed, of so many."""

    def fetching(self, project: str, runs: int, rows: int) -> None:
        """So many runs are to be fetched, with about so many new rows."""

    def fetched(self, *, runs: int = 0, rows: int = 0) -> None:
        """That much more has arrived."""

    def downloading(self, project: str, files: int, nbytes: int) -> None:
        """So many files are to be downloaded, with so many bytes as far as their sizes are known."""

    def downloaded(self, *, files: int = 0, nbytes: int = 0) -> None:
        """That much more has arrived."""

    def asking(self, pause: Callable[[], float]) -> None:
        """A server is asked from now on; `pause` tells how many seconds its rate limit makes us wait."""

    def notice(self, message: str) -> None:
        """Something a user who asked for details wants to read."""
