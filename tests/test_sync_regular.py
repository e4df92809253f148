"""`mirror sync` without a PATH: what `mirror.toml` in the mirror's folder lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server, serving
from syncing import Copy, log_run, logged


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "m") as server:
        for n in range(4):
            log_run(server, "p", f"r{n}", logged(3), config=json.dumps({"lr": {"value": n / 10}}), finish=n % 2 == 0)
        log_run(server, "scratch-1", "x", logged(1))
        log_run(server, "q", "y", logged(1))
        yield server


def written(copy: Copy, text: str) -> Copy:
    copy.root.mkdir()
    (copy.root / "mirror.toml").write_text(text, encoding="utf-8")
    return copy


def names(copy: Copy) -> set[str]:
    return {f"{project}/{run_id}" for project, run_id in copy.sql("select project, run_id from runs")}


def test_every_entry_is_synced_with_what_it_selects(server: Server, tmp_path: Path) -> None:
    text = f"""
[[sync]]
paths = ["local/p"]
filter = {{"config.lr" = {{"$gte" = 0.1}}}}
state = "finished"

[[sync]]   # of another server, as it were
paths = ["local"]
base_url = "{server.url}"
exclude = ["local/p", "local/scratch*"]
since = "1d"
what = ["runs", "history"]
"""
    copy = written(Copy(tmp_path / "m", server.url, server.key), text)
    done = copy.sync()
    assert names(copy) == {"p/r2", "q/y"}
    assert done.stdout.count("Synced 1 project ") == 2
    done = copy.sync("--dry-run")
    assert done.stdout.count("local/p ") == 1
    copy.sync("local/scratch-1")  # a PATH goes before the file
    assert names(copy) == {"p/r2", "q/y", "scratch-1/x"}


def test_an_entry_that_fails_does_not_stop_the_next(server: Server, tmp_path: Path) -> None:
    text = '[[sync]]\npaths = ["local/nowhere"]\n[[sync]]\npaths = ["local/q"]\n'
    copy = written(Copy(tmp_path / "m", server.url, server.key), text)
    done = copy.sync(ok=False)
    assert done.exit_code == 1
    assert "no project `local/nowhere`" in done.stderr
    assert names(copy) == {"q/y"}


WRONG = {
    '[[sync]]\npaths = ["a/b"\n': ["is no TOML", "Unclosed array"],
    "": ["nothing to sync"],
    "[sync]\n": ["line 1", "[[sync]]"],
    "other = 1\n": ["line 1", "unknown key `other`"],
    '[[sync]]\nbase_url = "https://x.org"\n': ["line 1", "names no `paths`"],
    '[[sync]]\npaths = ["a/b"]\n\n[[sync]]\npaths = ["a/c"]\nexlude = ["x"]\n': [
        "line 6",
        "`exlude`; did you mean",
    ],
    '[[sync]]\npaths = ["a/b"]\nwhat = ["run"]\n': ["line 3", "did you mean `runs`?"],
    "[[sync]]\npaths = [1]\n": ["line 2", "`paths` is no list of texts"],
    '[[sync]]\npaths = ["a/b/c/d/e"]\n': ["line 2", "`a/b/c/d/e`"],
    '[[sync]]\npaths = ["a/b"]\nsince = 7\n': ["line 3", "`since` is no text"],
    '[[sync]]\npaths = ["a/b"]\n[[sync]]\npaths = ["a/b"]\nsince = "yesterday"\n': ["line 5", "`yesterday` is no time"],
    '[[sync]]\npaths = ["a/b"]\nfilter = {"config.a" = {"$near" = 1}}\n': ["line 3", "$near"],
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said_with_its_line_before_anything_is_asked(tmp_path: Path, text: str) -> None:
    copy = written(Copy(tmp_path / "m", "http://127.0.0.1:1", "k" * 40), text)
    done = copy.sync(ok=False)
    assert done.exit_code == 2, done
    for part in ["mirror.toml`", *WRONG[text]]:
        assert part in done.stderr
    assert [path.name for path in copy.root.iterdir()] == ["mirror.toml"]


def test_without_path_and_file_it_is_said_how_to_write_one(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", "http://127.0.0.1:1", "k" * 40)
    done = copy.sync(ok=False)
    assert done.exit_code == 2
    assert "[[sync]]" in done.stderr and "mirror.toml" in done.stderr and "PATH" in done.stderr
    written(copy, '[[sync]]\npaths = ["a/b"]\n')
    done = copy.sync("--since", "7d", ok=False)
    assert done.exit_code == 2 and "--since needs a PATH" in done.stderr
