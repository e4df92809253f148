"""A server keeps the files of its root few, beside the requests."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mirror.records import Run, RunKey
from mirror.server.upkeep import Upkeep
from mirror.store import Reader, Writer
from mirror.store.catalog import peek
from mirror.store.compact import LARGE, Compacted, due


def test_files_that_became_many_are_merged_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "m"
    with monkeypatch.context() as patched:  # as if the files were too large to be merged along with a commit
        patched.setattr("mirror.store.commit.compact", lambda *args, **kwargs: Compacted())
        with Writer(root) as w:
            for n in range(25):
                w.put_run(Run(RunKey("s", f"id{n}", "e", "p", f"r{n}"), notes=f"note {n}"))
                w.commit()
    catalog = peek(root)
    assert catalog is not None
    assert sum(f.table == "runs" for f in catalog.files()) == 25
    upkeep = Upkeep(root, every=0.05)
    try:
        deadline = time.monotonic() + 300
        while due(catalog.files(), LARGE) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        upkeep.close()
    assert sum(f.table == "runs" for f in catalog.files()) < 10
    catalog.close()
    with Reader(root) as reader:
        found = reader.connect().execute("select run_id, notes from runs").fetchall()
    assert dict(found) == {f"r{n}": f"note {n}" for n in range(25)}
