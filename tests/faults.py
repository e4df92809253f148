"""A proxy before a real server that fails in every way a network and a server can, by chance and by seed.

What happens to a request depends on the seed, on what is asked and on how often it was asked before, not on which
thread came first, so that a seed can be looked into.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from liar import Action, Answer, Request, Reset, Silence
from serving import Server
from syncing import Proxy, operation_of

from mirror.wandb.budget import Budget
from mirror.wandb.transport import Patience

Fault = Callable[[Request, Answer, random.Random], "Action | None"]
"""Makes something else of the server's answer; None where it cannot."""


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Let retries in this process wait hundredths of a second. What a server asks to wait is waited as ever."""
    patch.setattr(Patience, "pause", lambda self, attempt: 0.01 * 2**attempt)
    patch.setattr(Budget, "FIRST_PAUSE", 0.05)


# -- the faults -------------------------------------------------------------------------------------------


def _refused(headers: Callable[[], dict[str, str]]) -> Fault:
    return lambda request, answer, rnd: Answer(429, "Rate limit exceeded", headers())


def _in_a_second() -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=1), usegmt=True)


def _status(status: int, body: Any) -> Fault:
    return lambda request, answer, rnd: Answer(status, body)


def _cut(request: Request, answer: Answer, rnd: random.Random) -> Action | None:
    """Breaks off before the Content-Length is reached."""
    whole = answer.bytes
    return (
        Answer(answer.status, whole[: rnd.randrange(len(whole))], answer.headers, promise=len(whole)) if whole else None
    )


def _cut_and_counted(request: Request, answer: Answer, rnd: random.Random) -> Action | None:
    """Half a document, with the Content-Length of the half."""
    whole = answer.bytes
    return Answer(answer.status, whole[: rnd.randrange(1, len(whole))], answer.headers) if len(whole) > 1 else None


def _slow(request: Request, answer: Answer, rnd: random.Random) -> Action | None:
    time.sleep(rnd.uniform(0.05, 0.3))
    return answer


def _json(answer: Answer) -> Any:
    return json.loads(answer.bytes)


def _errors(request: Request, answer: Answer, rnd: random.Random) -> Action | None:
    return Answer(body={"data": None, "errors": [{"message": "internal system error"}]}) if is_query(request) else None


def _error_in_part(request: Request, answer: Answer, rnd: random.Random) -> Action | None:
    """The data of all but one part, and an error that names it."""
    if not is_query(request) or not isinstance(project := (_json(answer).get("data") or {}).get("project"), dict):
        return None
    parts = [name for name, value in project.items() if isinstance(value, dict)]
    if not parts:
        return None
    hit = rnd.choice(parts)
    error = {"message": "context deadline exceeded", "path": ["project", hit]}
    return Answer(body={"data": {"project": project | {hit: None}}, "errors": [error]})


def _no_project(request: Request, answer: Answer, rnd: random.Random) -> Action | None:
    """As if there were no project, or no access to it."""
    if not is_query(request) or not isinstance((_json(answer).get("data") or {}).get("project"), dict):
        return None
    return Answer(body={"data": {"project": None}})


def _empty(request: Request, answer: Answer, rnd: random.Random) -> Action | None:
    """Rows, samples or a connection without anything in them."""
    if not is_query(request):
        return None
    body = _json(answer)
    places = [place for place in _places(body) if place[0][place[1]]]
    if not places:
        return None
    for holder, name in places if rnd.random() < 0.3 else [rnd.choice(places)]:
        holder[name] = []
    return Answer(body=body)


def _places(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every list of edges, rows or samples in an answer."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("edges", "history", "events") and isinstance(inner, list):
                yield value, name
            yield from _places(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _places(inner)


def _muddled(request: Request, answer: Answer, rnd: random.Random) -> Action | None:
    """A listing in which runs come twice, or not at all."""
    if operation_of(request) != "Runs":
        return None
    body = _json(answer)
    runs = (body["data"].get("project") or {}).get("runs") or {"edges": []}
    edges = [e for e in runs["edges"] for _ in range(rnd.choice([0, 1, 1, 1, 2]))]
    rnd.shuffle(edges)
    runs["edges"] = edges
    return Answer(body=body)


FAULTS: dict[str, Fault] = {
    "429": _refused(dict),
    "429 in seconds": _refused(lambda: {"Retry-After": "0.2"}),
    "429 by date": _refused(lambda: {"Retry-After": _in_a_second()}),
    "429 with reset": _refused(lambda: {"RateLimit-Reset": "0.2", "RateLimit-Remaining": "0"}),
    "500": _status(500, {"errors": [{"message": "internal"}]}),
    "502": _status(502, "<html>bad gateway</html>"),
    "reset": lambda request, answer, rnd: Reset(),
    "cut": _cut,
    "cut and counted": _cut_and_counted,
    "slow": _slow,
    "too slow": lambda request, answer, rnd: Silence(2.5),
    "errors": _errors,
    "error in part": _error_in_part,
    "no project": _no_project,
    "empty": _empty,
    "muddled": _muddled,
    "empty page first": lambda request, answer, rnd: None,  # made by the proxy, which has to mend cursors
    "wrong project": lambda request, answer, rnd: None,  # made by the proxy, which has to ask for it
}
PASSING = [name for name in FAULTS if name.startswith("429") or name in ("500", "502", "reset", "cut", "slow")]
"""Those that a client outlasts by asking again, and that leave no doubt that they are faults."""


def is_query(request: Request) -> bool:
    return request.path == "/graphql" and operation_of(request) != "Viewer"


# -- the proxy --------------------------------------------------------------------------------------------


class Faulty(Proxy):
    """Passes on what `server` says, but for a part (`rate`) of the requests, which meet one of `faults`.
    `other` is a project whose answers may come instead of the right ones. `injected` counts what was done."""

    def __init__(self, server: Server, *, other: str | None = None) -> None:
        self.faults: list[str] = []
        self.rate = 0.0
        self.seed = 0
        self.injected: Counter[str] = Counter()
        self._other = other
        self._seen: Counter[str] = Counter()
        self._cursors: dict[str, Any] = {}
        self._guard = threading.Lock()
        super().__init__(server)

    def go_wrong(self, seed: int, rate: float, *faults: str) -> None:
        self.seed, self.rate, self.faults = seed, rate, list(faults)
        self._seen.clear()
        self.injected.clear()

    def calm(self) -> None:
        self.rate = 0.0

    def _pass_on(self, request: Request) -> Action:
        rnd, fault = self._drawn(request)
        if fault == "empty page first" and (action := self._empty_page(request)) is not None:
            return self._note(fault, action)
        asked = self._mended(request)
        if fault == "wrong project" and (elsewhere := self._elsewhere(asked)) is not None:
            return self._note(fault, super()._pass_on(elsewhere))
        answer = super()._pass_on(asked)
        if fault is not None and isinstance(answer, Answer):
            action = FAULTS[fault](request, answer, rnd)
            if action is not None:
                return self._note(fault, action)
        return answer

    def _drawn(self, request: Request) -> tuple[random.Random, str | None]:
        what = f"{request.method} {request.path.split('?')[0]} {request.body!r}"
        with self._guard:
            self._seen[what] += 1
            rnd = random.Random(f"{self.seed} {self._seen[what]} {what}")
        return rnd, rnd.choice(self.faults) if self.faults and rnd.random() < self.rate else None

    def _note(self, fault: str, action: Action) -> Action:
        with self._guard:
            self.injected[fault] += 1
        return action

    def _empty_page(self, request: Request) -> Action | None:
        """A page of a listing without anything on it, from which the listing goes on where it was."""
        if operation_of(request) != "Runs" or str(request.json["variables"].get("after")) in self._cursors:
            return None
        cursor = f"nothing yet {len(self._cursors)}"
        self._cursors[cursor] = request.json["variables"].get("after")
        answer = super()._pass_on(request)
        assert isinstance(answer, Answer)
        body = _json(answer)
        body["data"]["project"]["runs"] = {"edges": [], "pageInfo": {"endCursor": cursor, "hasNextPage": True}}
        return Answer(body=body)

    def _mended(self, request: Request) -> Request:
        """The request with the server's own cursor."""
        if request.path != "/graphql":
            return request
        body = request.json
        after = (body.get("variables") or {}).get("after")
        if after not in self._cursors:
            return request
        body["variables"]["after"] = self._cursors[after]
        return Request(request.method, request.path, request.headers, json.dumps(body).encode())

    def _elsewhere(self, request: Request) -> Request | None:
        """The same asked of the other project."""
        if not self._other or not is_query(request) or "project" not in (request.json.get("variables") or {}):
            return None
        body = request.json
        body["variables"]["project"] = self._other
        return Request(request.method, request.path, request.headers, json.dumps(body).encode())
