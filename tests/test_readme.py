"""The README's blocks, run as a reader would run them, against a real server that holds `my-team/my-project`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server, serving
from syncing import log_run, logged

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run -->\n```(bash|python)\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("readme") / "server") as server:
        for n, lr in enumerate((0.01, 0.1, 0.2)):
            rows = [{**row, "val/loss": row["loss"] * 2} for row in logged(20 + n)]
            config = json.dumps({"lr": {"value": lr}})
            log_run(server, "my-project", f"run{n}", rows, entity="my-team", config=config, summary=rows[-1])
        yield server


def test_every_block_runs_in_order(server: Server, tmp_path: Path) -> None:
    assert len(BLOCKS) == 5
    command = Path(sys.executable).parent
    env = {**os.environ, **server.env, "PATH": f"{command}{os.pathsep}{os.environ['PATH']}", "NETRC": "/dev/null"}
    env.pop("MIRROR_ROOT", None)
    said = []
    for language, code in BLOCKS:
        run = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert "my-team/my-project" in said[0]
    assert all(f"run{n}" in said[1] for n in range(3))
    exported = (tmp_path / "losses.csv").read_text().splitlines()
    assert exported[0] == "run_id,key,n,last_v" and len(exported) == 1 + 6
    assert "run0" not in said[2] and "run1" in said[2] and "run2" in said[2]
    assert f"'loss': {1 / 22!r}" in said[3]
    rows = sum(20 + n for n in range(3))
    assert "3 runs sent" in said[4] and said[4].count("no difference") == 2
    assert said[4].count(f"{rows} rows") == 3  # sent, read back, held


def test_the_readme_says_what_a_newcomer_needs() -> None:
    assert "mirror demo" in README and "pytest" in README
    for target in re.findall(r"\]\(([\w/.-]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
