"""`mirror sync --what`: only some parts are fetched, and what was left out is known to be missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server, serving
from syncing import Copy, log_run, logged, proxied, same, sampled
from test_sync_run import upload


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "m") as server:
        log_run(server, "p", "r", logged(30), system=sampled(4), summary={"loss": 1}, finish=False)
        upload(server, "p", "r", {"a.txt": b"a"})
        files = {"output.log": {"offset": 0, "content": ["hello"]}}
        assert server.stream("p", "r", files=files, complete=True, exitcode=0).ok
        yield server


def held(copy: Copy) -> tuple[int, int, int, int]:
    """Rows of history, of system metrics, files and console lines."""
    [(history, system)] = copy.sql("select history_rows, system_rows from runs")
    [(files,)] = copy.sql("select count(*) from files where name = 'a.txt'")
    [(lines,)] = copy.sql("select count(*) from logs")
    return history, system, files, lines


def test_what_was_left_out_is_fetched_later(server: Server, tmp_path: Path) -> None:
    with proxied(server) as proxy:
        copy = Copy(tmp_path / "m", proxy.url, server.key)
        copy.sync("local/p", "--what", "runs")
        assert proxy.operations["RunRows"] == 0
        assert held(copy) == (0, 0, 0, 0)
        run = copy.runs("p")["r"]
        assert not run["history_complete"] and run["history_total"] == 30
        assert run["summary"] is not None
        proxy.reset()
        copy.sync("local/p", "--what", "sweeps,reports")
        assert proxy.operations["RunDocuments"] == 0
        copy.sync("local/p", "--what", "system", "--what", "files")
        assert held(copy) == (0, 4, 1, 0)
        copy.sync("local/p")
        assert held(copy) == (30, 4, 1, 1)
        assert copy.runs("p")["r"]["history_complete"]
        same(copy.rows("p", "r"), logged(30))
        first = copy.files()
        done = copy.sync("local/p", "--what", "runs")
        assert "0 new, 0 changed" in done.stdout
        copy.sync("local/p")
        assert copy.files() == first
        assert copy.runs("p")["r"]["history_complete"]


def test_a_history_that_grew_while_it_was_left_out_is_not_called_complete(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    log_run(server, "grown", "r", logged(10))
    copy.sync("local/grown")
    server.upsert("grown", "r", "local")
    log_run(server, "grown", "r", logged(5, 10), offset=10)
    copy.sync("local/grown", "--what", "runs,logs")
    run = copy.runs("grown")["r"]
    assert (run["history_rows"], run["history_total"], run["history_complete"]) == (10, 15, False)
    copy.sync("local/grown")
    same(copy.rows("grown", "r"), logged(15))
    assert copy.runs("grown")["r"]["history_complete"]


def test_a_wrong_part_is_refused(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", "http://127.0.0.1:1", "k" * 40)
    done = copy.sync("local/p", "--what", "runs,histroy", ok=False)
    assert done.exit_code == 2 and "did you mean `history`?" in done.stderr
