"""Questions to a server about itself, by which a sync asks better: read-only, few, and told beforehand.

W&B documents neither its largest page nor how many runs may be asked for in one request, nor from which number on it
gives out samples; installations differ. So each is searched for by halves, with what a sync would ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mirror.errors import SourceError, TransientSourceError
from mirror.records import RunKey
from mirror.wandb.client import PAGE_SIZE, Client, Fields, nodes
from mirror.wandb.exports import find_exports
from mirror.wandb.limits import Limits
from mirror.wandb.listing import LIGHT
from mirror.wandb.ranges import END, SPARE_ROWS, Range
from mirror.wandb.rows import RowsAsk, fetch_rows
from mirror.wandb.transport import BRIEF, RefusedQuery, TooLarge

MOST_QUESTIONS = 40
"""A probe never asks more; the searches need about 25 where a server refuses what is asked for first."""
MOST_ALIASES = 200
MOST_ROWS = 20_000
"""About what a sync asks for at once at most."""
_ANSWER_LIMIT = 64 << 20
_LONG_ONES = ("-summary_metrics._step", "-created_at")
"""Orders in which runs with many rows come early, or at least others than the oldest."""


class _Enough(Exception):
    """All questions are asked."""


@dataclass
class Probe:
    """Asks about one project. `pause` is called before each question; `note` hears what is found."""

    client: Client
    entity: str
    project: str
    pause: Callable[[], None]
    questions: int = 0
    limits: Limits = field(default_factory=Limits)

    def run(self) -> Limits:
        """What could be found out. Raises a SourceError if the server cannot be asked at all."""
        runs: list[dict[str, Any]] = []
        try:
            self._find(page=self._largest(PAGE_SIZE, lambda n: self._page(n, runs)))
            if not runs:
                return self.limits
            for order in _LONG_ONES if self.limits.page and len(runs) >= self.limits.page else ():
                self._page(self.limits.page or 1, runs, order)
            self._find(updated_at=any(run.get("updatedAt") for run in runs))
            self._find(aliases=self._largest(MOST_ALIASES, lambda n: self._aliases(n, runs)))
            self._rows_and_exports(runs)
            self._events(runs)
        except _Enough:
            pass
        return self.limits

    def _find(self, **found: Any) -> None:
        self.limits = replace(self.limits, **found)

    def _asking(self) -> None:
        if self.questions >= MOST_QUESTIONS:
            raise _Enough
        self.questions += 1
        self.pause()

    # -- how many at once ---------------------------------------------------------------------------------

    def _largest(self, most: int, try_out: Callable[[int], int]) -> int | None:
        """The largest number up to `most` that the server takes; `try_out` says how many came of so many, 0 if it was
        refused. None if not even one was taken."""
        good, bad, ask = 0, most + 1, most
        while bad - good > 1:
            came = try_out(ask)
            if came == ask:
                good = ask
            elif came:
                return came  # it gives out fewer than are asked for, and that many
            else:
                bad = ask
            ask = (good + bad) // 2
        return good or None

    def _page(self, first: int, runs: list[dict[str, Any]], order: str = "+created_at") -> int:
        """How many runs came of so many; those that were not seen before are added to `runs`."""

        def build(f: Fields) -> str:
            return (
                "query ProbePage($entity: String!, $project: String!, $first: Int!, $order: String) {"
                " project(name: $project, entityName: $entity) { name entityName"
                " runs(first: $first, order: $order) { edges { node {"
                f" id name {f.of('Run', LIGHT)} }} }} pageInfo {{ hasNextPage }} }} }} }}"
            )

        connection = self._ask(build, {"first": first, "order": order}).get("runs") or {}
        found = list(nodes(connection))
        seen = {run["id"] for run in runs}
        runs += [run for run in found if run["id"] not in seen]
        more = (connection.get("pageInfo") or {}).get("hasNextPage")
        return len(found) if more else first if connection else 0

    def _aliases(self, n: int, runs: list[dict[str, Any]]) -> int:
        def build(f: Fields) -> str:
            declared = "".join(f", $n{i}: String!" for i in range(n))
            asked = " ".join(f"r{i}: run(name: $n{i}) {{ id name }}" for i in range(n))
            return (
                f"query ProbeAliases($entity: String!, $project: String!{declared}) {{"
                f" project(name: $project, entityName: $entity) {{ name entityName {asked} }} }}"
            )

        found = self._ask(build, {f"n{i}": str(runs[i % len(runs)]["name"]) for i in range(n)})
        return n if all(found.get(f"r{i}") for i in range(n)) else 0

    def _ask(self, build: Callable[[Fields], str], variables: dict[str, Any]) -> dict[str, Any]:
        """The project in the answer; nothing if it was refused."""
        self._asking()
        try:
            where = {"entity": self.entity, "project": self.project}
            data, _ = self.client.ask(build, where | variables, patience=BRIEF, limit=_ANSWER_LIMIT)
        except (TransientSourceError, RefusedQuery, TooLarge):
            self.client.viewer(patience=BRIEF)  # is it there at all?
            return {}
        project = data.get("project")
        return project if isinstance(project, dict) else {}

    # -- rows ---------------------------------------------------------------------------------------------

    def _key(self, run: dict[str, Any]) -> RunKey:
        return RunKey(self.client.source, str(run["id"]), self.entity, self.project, str(run["name"]))

    def _rows_and_exports(self, runs: list[dict[str, Any]]) -> None:
        ended = _by_lines(runs, "historyLineCount")
        if not ended:
            return
        exported = None
        for run in ended[:3]:
            self._asking()
            if find_exports(self.client, self._key(run)).urls:
                exported = run
                break
        self._find(exports=exported is not None)
        lines = int(ended[0]["historyLineCount"])
        got = self._rows(ended[0])
        if got is None:
            return
        most = min(lines, MOST_ROWS)
        # A sample may well be a little smaller than what was asked for.
        if got < (most if lines <= MOST_ROWS else 0.9 * most):
            self._find(rows=got or None)
        elif lines <= MOST_ROWS:
            self._find(counts_rows=got == lines)
        if exported is not None:
            if exported is not ended[0]:
                got, lines = self._rows(exported), int(exported["historyLineCount"])
            if got is not None and not self.limits.rows:
                self._find(rows_of_exports=got > 0 if lines > MOST_ROWS else got >= lines)

    def _rows(self, run: dict[str, Any]) -> int | None:
        self._asking()
        samples = min(int(run["historyLineCount"]), MOST_ROWS) + SPARE_ROWS
        answer = self._fetch(RowsAsk(str(run["name"]), Range(0, END, samples)))
        return None if answer is None else len(answer.rows)

    def _events(self, runs: list[dict[str, Any]]) -> None:
        ended = _by_lines(runs, "eventsLineCount")
        if not ended:
            return
        self._asking()
        lines = min(int(ended[0]["eventsLineCount"]), MOST_ROWS)
        answer = self._fetch(RowsAsk(str(ended[0]["name"]), events=lines + SPARE_ROWS))
        if answer is not None and 0 < len(answer.events) < 0.9 * lines:
            self._find(events=len(answer.events))

    def _fetch(self, ask: RowsAsk) -> Any:
        try:
            return fetch_rows(
                self.client, self.entity, self.project, [ask], patience=BRIEF, limit=_ANSWER_LIMIT
            )[0]  # fmt: skip
        except SourceError:
            return None


def _by_lines(runs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Runs that have ended and have such lines: first the longest of those that can be read at once."""
    ended = [r for r in runs if r.get("state") in ("finished", "failed", "crashed", "killed")]
    some = [r for r in ended if isinstance(r.get(name), int) and r[name] > 0]
    return sorted(some, key=lambda r: (r[name] > MOST_ROWS, -r[name] if r[name] <= MOST_ROWS else r[name]))
