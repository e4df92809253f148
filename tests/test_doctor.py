"""`mirror doctor`: what is wrong is found, said with what to do, and nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server, serving
from starting import run_mirror
from syncing import Copy, Done, log_run, logged

from mirror.store.layout import Layout
from mirror.store.locks import Lease


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "m") as server:
        log_run(server, "p", "r", logged(30))
        yield server


@pytest.fixture
def copy(server: Server, tmp_path: Path) -> Copy:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/p")
    return copy


def doctor(copy: Copy, *args: str, **env: str) -> Done:
    arguments = ["doctor", "--mirror", str(copy.root), *args]
    environ = {**os.environ, **copy.environ(), "COLUMNS": "400", **env}
    done = run_mirror(arguments, env=environ)
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def line(done: Done, *parts: str) -> str:
    """The line of a check."""
    found = [line for line in done.stdout.splitlines() if all(part in line for part in parts)]
    assert found, (parts, done)
    return found[0]


def test_all_is_well(copy: Copy, server: Server) -> None:
    before = copy.files()
    done = doctor(copy, "--deep")
    assert done.ok, done
    assert "from WANDB_API_KEY" in line(done, "key for", server.url)
    assert server.key not in done.stdout + done.stderr
    assert "logged in as local" in line(done, "answers")
    for name in ("python", "duckdb", "checksums", "snapshot", "disk"):
        assert line(done, name)
    assert "fail" not in done.stdout
    assert copy.files() == before


def test_damage_is_found_by_size_and_by_checksum(copy: Copy) -> None:
    segment = next((copy.root / "data").rglob("*.parquet"))
    content = segment.read_bytes()
    segment.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert doctor(copy, "--offline").ok
    done = doctor(copy, "--offline", "--deep")
    assert done.exit_code == 1
    assert "fail" in line(done, "checksums", "1 missing or damaged", "mirror repair")
    segment.unlink()
    assert "fail" in line(doctor(copy, "--offline"), "sizes", "1 missing or damaged")
    segment.write_bytes(content)
    segment.with_name("stray.parquet").write_bytes(b"x")
    done = doctor(copy, "--offline")
    assert done.ok and "warn" in line(done, "orphans", "1 files")
    Layout(copy.root).snapshot.write_text("{")
    done = doctor(copy, "--offline")
    assert done.exit_code == 1 and "mirror repair" in line(done, "is damaged")


def test_who_writes_is_said(copy: Copy) -> None:
    lease = Lease(Layout(copy.root).leases, "somewhere", "team", "busy")
    try:
        assert f"process {os.getpid()}" in line(doctor(copy, "--offline"), "being written", "team/busy")
    finally:
        lease.release()
    assert "being written" not in doctor(copy, "--offline").stdout


def test_keys_servers_and_configuration(copy: Copy, tmp_path: Path) -> None:
    done = doctor(copy, WANDB_API_KEY="")
    assert done.ok and "warn" in line(done, "key for", "no API key")
    done = doctor(copy, WANDB_API_KEY="0" * 40)
    assert done.exit_code == 1 and "fail" in line(done, "check address, network and key")
    done = doctor(copy, "--base-url", "http://127.0.0.1:1")
    assert done.exit_code == 1 and "fail" in line(done, "check address, network and key")
    (copy.root / "mirror.toml").write_text('[[sync]]\npath = ["a/b"]\n')
    done = doctor(copy, "--offline")
    assert done.exit_code == 1 and "fail" in line(done, "did you mean `paths`?")
    empty = Copy(tmp_path / "none", copy.url, copy.key)
    done = doctor(empty, "--offline")
    assert done.ok and "warn" in line(done, "nothing is mirrored yet")
    assert not empty.root.exists()
