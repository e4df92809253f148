"""Runs that the mirror holds from a log on disk and from a server, and shows as one: compared with the server, which
has less than the log. Nothing it has may be missing or different here, and what the log alone has is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commanding import call
from serving import Server
from syncing import Proxy
from test_offline_twins import Case, line, logged, sample, samples, values


def verified(case: Case, proxy: Proxy, *options: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", case.server.key)
        path = f"local/{case.project}"
        done = call("verify", path, "--against", proxy.url, "--format", "json", *options, root=case.copy.root)
    assert "Traceback" not in done.err, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found | {"code": done.code}


def put(proxy: Proxy, old: str, new: str) -> None:
    """Have the server say another thing."""
    proxy.after = lambda request, body: json.loads(json.dumps(body).replace(old, new))


def test_streams_of_a_log_are_compared_with_what_the_server_has(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    case = Case(server, tmp_path, "twin", proxy.url)
    case.write(logged(values(80)) + [sample(i) for i in range(6)] + [line(i) for i in range(7)])
    case.post(values(50), system=samples(4), finish=False)
    lines = [f"line {i}" for i in range(3)]
    assert server.stream(case.project, case.name, files={"output.log": {"offset": 0, "content": lines}}).ok
    assert server.stream(case.project, case.name, complete=True, exitcode=0).ok
    case.sync_server(), case.sync_folder()
    assert set(json.loads(case.only()["origin"])) == {"history", "system", "logs"}

    found = verified(case, proxy, "--deletable")
    compared = found["against"]["compared"]
    assert found["code"] == 0 and found["against"]["not_compared"] == {}, found
    assert (compared["rows"], compared["rows of a log on disk alone"]) == (86, 30 + 2)
    assert (compared["console lines"], compared["console lines of a log on disk alone"]) == (7, 4)
    assert [one["reasons"] for one in found["deletable"]] == [[]]

    put(proxy, str(2**60 + 7), str(2**60 + 8))
    found = verified(case, proxy, "--deletable")
    (one,) = found["against"]["listed"]
    assert (one["stream"], one["row"], one["key"], one["there"]) == ("history", 7, "big", str(2**60 + 8))
    assert found["deletable"][0]["reasons"] == ["1 differences were found"]

    put(proxy, "line 2", "line two")
    (one,) = verified(case, proxy)["against"]["listed"]
    assert (one["stream"], one["row"], json.loads(one["there"])[2]) == ("console", 2, "line two")

    proxy.reset()
    server.stream(case.project, case.name, files={"wandb-history.jsonl": {"offset": 50, "content": ['{"_step": 99}']}})
    assert server.stream(case.project, case.name, complete=True, exitcode=0).ok
    (one,) = verified(case, proxy)["against"]["listed"]
    assert (one["stream"], one["step"], one["here"]) == ("history", 99, "(nothing)")


def test_rows_that_the_server_lost_since_are_told(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """It had 50 rows when the log was compared with it, and shows 40 of them now."""
    case = Case(server, tmp_path, "less", proxy.url)
    case.write(logged(values(80)))
    case.post(values(50))
    case.sync_server(), case.sync_folder()

    def less(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: 40 if key == "historyLineCount" else less(one) for key, one in value.items()}
        if isinstance(value, list):
            return [less(one) for one in value if not isinstance(one, str) or json.loads(one).get("_step", 0) < 40]
        return value

    proxy.after = lambda request, body: less(body)
    found = verified(case, proxy)
    (one,) = found["against"]["listed"]
    assert found["code"] == 1 and (one["stream"], one["there"]) == ("history", "40 rows")
