"""The client against servers that refuse, stumble and lie."""

from __future__ import annotations

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from liar import Action, Answer, Liar, Request, Reset, Silence, liar

from mirror.credentials import Credential
from mirror.errors import SourceError, TerminalSourceError, TransientSourceError
from mirror.wandb.budget import Budget, Stopped
from mirror.wandb.client import Client
from mirror.wandb.transport import Patience, RefusedQuery, Transport

KEY = "0123456789abcdef0123456789abcdef01234567"
OK = Answer(body={"data": {"n": 1}})
QUICK = Patience(tries=4, first_wait=0.02, longest_wait=0.1)


def transport(server: Liar | str, budget: Budget | None = None, timeout: float = 5.0) -> Transport:
    url = server if isinstance(server, str) else server.url
    return Transport(url, Credential(KEY, "WANDB_API_KEY"), budget=budget, timeout=timeout)


def ask(t: Transport, patience: Patience = QUICK) -> dict[str, object]:
    return t.graphql("query { n }", {}, patience=patience)[0]


def test_a_query_carries_the_key_and_counts() -> None:
    with liar([OK]) as server:
        t = transport(server)
        assert ask(t) == {"n": 1}
        token = base64.b64encode(f"api:{KEY}".encode()).decode()
        assert server.requests[0].headers["Authorization"] == f"Basic {token}"
        assert server.requests[0].json == {"query": "query { n }", "variables": {}}
        assert (t.traffic.queries, t.traffic.bytes) == (1, len(OK.bytes))


@pytest.mark.parametrize(
    "trouble",
    [
        Reset(),
        Answer(body={"data": {"n": 1}}, promise=10_000),
        Answer(body='{"data": {"n": 1'),
        *(Answer(status=status, body={"error": "x"}) for status in (408, 425, 500, 502, 503, 504)),
        Answer(status=502, body="<html>bad gateway</html>", headers={"Content-Type": "text/html"}),
    ],
    ids=lambda a: f"{a.status} {a.body}"[:20] if isinstance(a, Answer) else "reset",
)
def test_passing_troubles_are_outlasted(trouble: Action) -> None:
    with liar([trouble, trouble, OK]) as server:
        assert ask(transport(server)) == {"n": 1}
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (Reset(), "cannot reach .*check the address, the network"),
        (Answer(status=503, body={"errors": [{"message": "later"}]}), r"answers 503 \(later\).*try again"),
        (Answer(body='{"data": {'), "breaks off"),
        (Answer(body={"data": {}}, promise=9999), "cannot reach"),
    ],
)
def test_lasting_troubles_end_in_a_transient_error(trouble: Action, message: str) -> None:
    with liar([trouble]) as server, pytest.raises(TransientSourceError, match=message):
        ask(transport(server))
    assert len(server.requests) == QUICK.tries


def test_a_silent_server_is_a_transient_error() -> None:
    with liar([Silence(20)]) as server, pytest.raises(TransientSourceError, match="did not answer within"):
        ask(transport(server, timeout=1), Patience(tries=1))


def test_an_unreachable_host_says_so() -> None:
    with liar([OK]) as server:
        url = server.url
    with pytest.raises(TransientSourceError, match=r"cannot reach `http://127.*[Rr]efused"):
        ask(transport(url), Patience(tries=2, first_wait=0.01))
    with pytest.raises(TransientSourceError, match=r"cannot reach `http://nowhere\.invalid`"):
        ask(transport("http://nowhere.invalid"), Patience(tries=1))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(status=401, body={"errors": [{"message": "x"}]}), "does not accept the API key"),
        (Answer(body={"errors": [{"message": "user is not logged in"}]}), "does not accept the API key"),
        (Answer(status=401, body="nope"), "does not accept the API key from WANDB_API_KEY.*wandb login"),
        (Answer(status=404, body="not found"), "is no W&B server.*check the address"),
        (Answer(body="<html>hello</html>"), "is no W&B server .its answer is no JSON"),
        (Answer(body={"hello": 1}), "is no W&B server"),
        (Answer(body=[1]), "is no W&B server"),
        (
            Answer(status=302, headers={"Location": "https://other.example/x"}),
            "sends us on to `https://other.ex",
        ),
        (Answer(status=400, body={"errors": [{"message": "bad filter"}]}), "refused a query: bad filter"),
        (Answer(body={"data": None, "errors": [{"message": "boom"}]}), "refused a query: boom"),
        (Answer(status=400, body={"error": "plain"}), "refused a query: plain"),
        (Answer(status=422, body={"error": {"message": "deep"}}), "refused a query: deep"),
    ],
)
def test_refusals_are_final_and_asked_once(answer: Answer, message: str) -> None:
    with liar([answer]) as server, pytest.raises(TerminalSourceError, match=message) as e:
        ask(transport(server))
    assert len(server.requests) == 1
    assert KEY not in str(e.value)


def test_graphql_errors_name_the_parts_of_a_query_that_failed() -> None:
    error = {"message": "x", "path": ["project", "r1", "history", 3]}
    body = {"data": {"project": {"r0": 1}}, "errors": [error]}
    with liar([Answer(body=body)]) as server, pytest.raises(RefusedQuery) as e:
        ask(transport(server))
    assert e.value.aliases == {"project", "r1", "history"}


def test_nan_tokens_and_odd_text_in_answers_are_read() -> None:
    with liar([Answer(body=b'{"data": {"x": [NaN, -Infinity, "\xc3\xa9\\ud800"]}}')]) as server:
        x = ask(transport(server))["x"]
    assert isinstance(x, list)
    assert x[0] != x[0]
    assert x[1:] == [float("-inf"), "é\ud800"]


# -- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "1"}, 1.0, 1.6),
        ({"RateLimit-Reset": "1", "RateLimit-Remaining": "0"}, 1.0, 1.6),
        ({"Retry-After": "DATE"}, 0.4, 2.6),
        ({}, 1.0, 1.9),
        ({"Retry-After": "soon"}, 1.0, 1.9),
    ],
    ids=["seconds", "reset", "date", "nothing", "nonsense"],
)
def test_a_429_waits_as_long_as_told(headers: dict[str, str], least: float, most: float) -> None:
    def reply(request: Request) -> Action:
        if len(server.requests) > 1:
            return OK
        date = datetime.now(timezone.utc) + timedelta(seconds=2)  # dates have whole seconds
        told = {name: format_datetime(date, usegmt=True) if text == "DATE" else text for name, text in headers.items()}
        return Answer(status=429, body="Rate limit exceeded", headers=told)

    for _ in range(10):  # until the machine lets it go on in time
        with liar(reply) as server:
            ask(transport(server), Patience(tries=1))
            waited = server.requests[1].at - server.requests[0].at
        assert least <= waited
        if waited <= most:
            return
    raise AssertionError(f"it waits longer than told: {waited} s")


def test_nothing_remaining_makes_the_next_request_wait() -> None:
    spent = Answer(body={"data": {}}, headers={"RateLimit-Remaining": "0", "RateLimit-Reset": "0.7"})
    with liar([spent, OK]) as server:
        t = transport(server)
        ask(t)
        ask(t)
        assert server.requests[1].at - server.requests[0].at >= 0.69


def test_one_429_stops_all_workers() -> None:
    """Eight workers, a window of 5 requests each half second: the refused are few, nothing is lost."""
    window = 0.5
    seen: list[float] = []
    lock = threading.Lock()

    def reply(request: Request) -> Action:
        with lock:
            now = time.monotonic()
            seen[:] = [t for t in seen if now - t < window]
            if len(seen) >= 5:
                left = window - (now - seen[0])
                return Answer(status=429, body="Rate limit exceeded", headers={"RateLimit-Reset": f"{left:.3f}"})
            seen.append(now)
            return OK

    with liar(reply) as server:
        t = transport(server)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(t), range(40)))
        assert answers == [{"n": 1}] * 40
        refused = len(server.requests) - 40
    # Seven refills; without a shared budget each of the idle workers would be refused over and over.
    assert refused <= 8 * 8
    assert t.traffic.queries == len(server.requests)


def test_unexplained_429s_back_off_once_for_all_requests_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget()
    sent_at = budget.wait()
    for _ in range(8):  # eight requests of one moment are refused: one pause, not eight doublings
        budget.heard(429, {}, sent_at)
    assert 0.9 <= budget.pause <= 1.3
    later = time.monotonic() + 10
    monkeypatch.setattr(time, "monotonic", lambda: later)
    budget.heard(429, {}, later)
    assert 1.9 <= budget.pause <= 2.6
    budget.heard(200, {}, later)
    budget._until = 0
    budget.heard(429, {}, later)
    assert 0.9 <= budget.pause <= 1.3


def test_stopping_ends_every_wait() -> None:
    stop = threading.Event()
    budget = Budget(stop)
    budget.heard(429, {"Retry-After": "600"}, 0)
    threading.Timer(0.2, stop.set).start()
    before = time.monotonic()
    with pytest.raises(Stopped):
        budget.wait()
    assert time.monotonic() - before < 60  # of the 600


# -- where the key goes -----------------------------------------------------------------------------------


def test_netrc_never_replaces_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password " + "f" * 40)
    monkeypatch.setenv("NETRC", str(netrc))
    with liar([OK]) as server, liar([Answer(body=b"bytes")]) as bucket:
        t = transport(server)
        ask(t)
        assert KEY in base64.b64decode(server.requests[0].headers["Authorization"].split()[1]).decode()
        signed = Answer(status=302, headers={"Location": f"{bucket.url}/signed?sig=1"}, body=b"")
        server.reply = lambda r: signed
        assert t.download("/files/e/p/r/x") == b"bytes"
        assert "Authorization" in server.requests[1].headers
        assert "Authorization" not in bucket.requests[0].headers
        assert t.download(f"{bucket.url}/direct") == b"bytes"
        assert "Authorization" not in bucket.requests[1].headers
        assert t.traffic.downloads == 2


def test_downloads_that_are_gone_too_large_or_refused() -> None:
    with liar([Answer(status=404)]) as server:
        assert transport(server).download("/x") is None
    with liar([Answer(body=b"x" * 1001)]) as server:
        assert transport(server).download("/x", limit=1001) == b"x" * 1001
        with pytest.raises(TerminalSourceError, match="more than 1000 bytes"):
            transport(server).download("/x?signature=secret", limit=1000)
    with liar([Answer(status=403)]) as server, pytest.raises(SourceError, match="answers 403") as e:
        transport(server).download("/x?signature=secret")
    assert "secret" not in str(e.value)


# -- who and what -----------------------------------------------------------------------------------------


def test_a_wrong_key_is_a_null_viewer() -> None:
    message = "does not accept the API key from WANDB_API_KEY"
    with liar([Answer(body={"data": {"viewer": None}})]) as server:
        client = Client(transport(server))
        with pytest.raises(TerminalSourceError, match=message):
            client.viewer()


def test_fields_a_server_does_not_know_are_left_out() -> None:
    def reply(request: Request) -> Action:
        query = request.json["query"]
        missing = [f for f in ("username", "teams") if f in query]
        if missing:
            messages = [f'Cannot query field "{f}" on type "User". Did you mean "x"?' for f in missing]
            return Answer(status=400, body={"errors": [{"message": m} for m in messages]})
        return Answer(body={"data": {"viewer": {"id": "1", "entity": "me"}}})

    with liar(reply) as server:
        client = Client(transport(server))
        assert client.viewer().entities == ("me",)
        assert len(server.requests) == 2
        client.viewer()
        assert len(server.requests) == 3


def test_a_server_without_what_a_mirror_needs_is_refused() -> None:
    body = {"errors": [{"message": 'Cannot query field "viewer" on type "Query".'}]}
    with liar([Answer(status=400, body=body)]) as server:
        client = Client(transport(server))
        with pytest.raises(TerminalSourceError, match=r"does not know `Query\.viewer`"):
            client.viewer()


def test_projects_are_paged_to_the_end_and_cursors_must_advance() -> None:
    def page(names: list[str], cursor: str, more: bool) -> Answer:
        made = "2026-01-02T03:04:05Z"
        edges = [{"cursor": cursor, "node": {"id": n, "name": n, "createdAt": made}} for n in names]
        info = {"endCursor": cursor, "hasNextPage": more}
        return Answer(body={"data": {"models": {"edges": edges, "pageInfo": info}}})

    with liar([page(["a"], "1", True), page([], "2", True), page(["b"], "3", False)]) as server:
        found = list(Client(transport(server)).projects("me"))
    assert [(p.entity, p.name) for p in found] == [("me", "a"), ("me", "b")]
    assert found[0].created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    with liar([page(["a"], "1", True)]) as server:
        assert len(list(Client(transport(server)).projects("me"))) == 2
