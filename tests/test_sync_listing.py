"""Listings as the real server has been seen to give them out: empty pages, cursors that stand still, time-outs."""

from __future__ import annotations

from typing import Any

from liar import Action, Answer, Liar, Request, Silence, liar

from mirror.credentials import Credential
from mirror.wandb.client import Client
from mirror.wandb.listing import list_runs
from mirror.wandb.transport import Transport


def client(server: Liar, timeout: float = 5.0) -> Client:
    return Client(Transport(server.url, Credential("k" * 40, "a test"), timeout=timeout))


def page(names: list[str], cursor: str | None, more: bool, count: int | None = None, **light: Any) -> Answer:
    edges = [{"cursor": cursor, "node": {"id": f"id-{n}", "name": n, "state": "finished"} | light} for n in names]
    info = {"endCursor": cursor, "hasNextPage": more}
    project = {"id": "P", "name": "p", "entityName": "e", "runCount": count}
    return Answer(body={"data": {"project": project | {"runs": {"edges": edges, "pageInfo": info}}}})


def test_an_empty_page_is_not_the_end() -> None:
    with liar([page(["a"], "1", True, 2), page([], "2", True, 2), page(["b"], "3", False, 2)]) as server:
        found = list_runs(client(server), "e", "p")
    assert [run.key.run_id for run in found.runs] == ["a", "b"]
    assert found.complete
    assert [r.json["variables"]["after"] for r in server.requests] == [None, "1", "2"]
    assert {r.json["variables"]["order"] for r in server.requests} == {"+created_at"}


def test_a_missing_end_cursor_is_taken_from_the_last_edge() -> None:
    first = page(["a", "b"], "edge", True, 3)
    first.body["data"]["project"]["runs"]["pageInfo"]["endCursor"] = None
    with liar([first, page(["c"], "x", False, 3)]) as server:
        assert list_runs(client(server), "e", "p").complete
    assert server.requests[1].json["variables"]["after"] == "edge"


def test_a_cursor_that_stands_still_ends_the_listing_and_spoils_it() -> None:
    with liar([page(["a"], "1", True, 5)]) as server:
        found = list_runs(client(server), "e", "p")
    assert not found.complete
    assert [run.key.run_id for run in found.runs] == ["a"]
    assert len(server.requests) == 4  # two, then the opposite order


def test_a_listing_is_complete_only_if_the_count_says_so() -> None:
    for count, complete in ((2, True), (3, False), (1, False), (None, False)):
        with liar([page(["a", "b", "a"], "1", False, count)]) as server:
            found = list_runs(client(server), "e", "p")
        assert len(found.runs) == 2
        assert found.complete is complete, count
        assert complete or count is None or f"counts {count}" in str(found.note)


def test_pages_that_time_out_are_halved() -> None:
    def reply(request: Request) -> Action:
        if "Viewer" in request.json["query"]:
            return Answer(body={"data": {"viewer": {"id": "1"}}})
        if request.json["variables"]["first"] > 300:
            return Silence(20)
        return page(["a"], "1", False, 1)

    with liar(reply) as server:
        assert list_runs(client(server, timeout=2), "e", "p").complete
    sizes = [r.json["variables"]["first"] for r in server.requests if "Runs(" in r.json["query"]]
    assert sizes[0] == 1000
    assert sizes[-1] == 250


def test_the_fingerprint_of_a_run_shows_every_light_field() -> None:
    seen = set()
    at = "2026-01-01T00:00:00Z"
    for light in ({}, {"state": "running"}, {"tags": ["x"]}, {"historyLineCount": 7}, {"heartbeatAt": at}):
        with liar([page(["a"], "1", False, 1, **light)]) as server:
            seen.add(list_runs(client(server), "e", "p").runs[0].fingerprint)
    assert len(seen) == 5


def test_runs_are_known_by_the_names_the_server_uses() -> None:
    with liar([page(["a"], "1", False, 1)]) as server:
        (run,) = list_runs(client(server), "E", "P").runs
    assert (run.key.entity, run.key.project, run.key.run_id, run.key.storage_id) == ("e", "p", "a", "id-a")
