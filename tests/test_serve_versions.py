"""Older SDKs, each in a virtual environment of its own: what one logs, all of them read, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Server, serving

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "sdk_scripts"
OLD = ["0.26.1", "0.19.11"]
INSTALLED = "0.31.0"
VERSIONS = [INSTALLED, *OLD]
Script = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The interpreter that has each version of `wandb`."""
    place = tmp_path_factory.mktemp("sdks")

    def make(version: str) -> str:
        folder = place / version
        # This environment's pip installs into the other one, and compiles nothing: most of wandb is never imported.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=300)
        python = str(folder / "bin" / "python")
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-compile", "--quiet"]
        pip += ["--disable-pip-version-check", f"wandb=={version}"]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return python

    with ThreadPoolExecutor(2) as pool:
        return {INSTALLED: sys.executable} | dict(zip(OLD, pool.map(make, OLD), strict=True))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("versions") / "mirror") as found:
        yield found


@pytest.fixture(scope="module")
def script(server: Server, pythons: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Runs a script with a version of the SDK; gives what it printed last."""

    def run(version: str, name: str, *args: str) -> dict[str, Any]:
        caches = {"WANDB_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
        done = subprocess.run(
            [pythons[version], SCRIPTS / name, *args],
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | server.env | caches,
            cwd=server.env["WANDB_DIR"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{version}: {done.stdout[-1000:]}\n{done.stderr[-4000:]}"
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    return run


def name_of(version: str) -> str:
    return "by" + version.replace(".", "-")


@pytest.fixture(scope="module")
def logged(script: Script) -> dict[str, dict[str, Any]]:
    """What each version handed in, by run id."""
    return {name_of(version): script(version, "log.py", name_of(version)) for version in VERSIONS}


@pytest.fixture(scope="module")
def read(
    script: Script, logged: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What each version reads of the runs of all of them."""
    return {version: script(version, "read.py", str(tmp_path_factory.mktemp("files"))) for version in VERSIONS}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_any_version_logged_every_version_reads(
    version: str, logged: dict[str, dict[str, Any]], read: dict[str, dict[str, Any]]
) -> None:
    found = read[version]
    assert found["version"] == version
    assert (found["count"], found["filtered"]) == (len(VERSIONS), sorted(logged))
    assert "versions" in found["projects"]
    assert found["missing"] in ("CommError", "ValueError")
    assert list(found["runs"]) == list(logged)
    for run_id, truth in logged.items():
        run = found["runs"][run_id]
        rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in run["scan"]]
        assert rows == truth["rows"]
        assert [row["_step"] for row in run["scan"]] == list(range(40))
        assert all(row["_timestamp"] > 1.7e9 and row["_runtime"] >= 0 for row in run["scan"])
        assert run["keys"] == [{"loss": row["loss"], "_step": n} for n, row in enumerate(truth["rows"])]
        assert len(run["history"]) == 7 and all(row in run["scan"] for row in run["history"])
        assert run["config"] == truth["config"]
        summary = {k: v for k, v in run["summary"].items() if not k.startswith("_")}
        assert summary == truth["rows"][-1] | {"best": truth["best"]}
        assert (run["name"], run["notes"], run["tags"]) == (f"run {run_id}", "line one\nline two", ["a", "ü"])
        assert (run["group"], run["job_type"], run["state"]) == ("g", "train", "finished")
        assert run["path"] == f"local/versions/{run_id}"
        assert {"config.yaml", "wandb-metadata.json", "wandb-summary.json", "notes.txt"} <= set(run["files"])
        assert run["text"] == f"kept {run_id}"


@pytest.mark.parametrize("version", OLD)
def test_all_versions_read_the_same(version: str, read: dict[str, dict[str, Any]]) -> None:
    assert read[version]["runs"] == read[INSTALLED]["runs"]


@pytest.mark.parametrize("version", OLD)
def test_artifacts_go_round_in_older_versions(version: str, script: Script, tmp_path: Path) -> None:
    files = {"a.txt": b"alpha", "deep/b.bin": bytes(range(256)), "empty": b""}
    for name, data in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    seen = script(version, "artifacts.py", name_of(version), str(tmp_path))
    assert seen["versions"] == ["v0", "v0", "v1"]
    assert seen["used"][:3] == ["v0", "about", {"n": 1, "deep": {"x": [1, None]}}]
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files
    assert seen["latest"][0] == "v1" and {"latest", "best"} <= set(seen["latest"][1])
    assert seen["latest"][2:] == ["maker", "COMMITTED"]
    assert set(seen["entries"]) == {*files, "extra.txt", "far.bin"}
    assert seen["entries"]["far.bin"][2] == "https://example.com/far.bin"
    assert (seen["used_by"], seen["listed"]) == (["user"], ["v0", "v1"])
    assert "dataset" in seen["types"]
    assert seen["logged_artifacts"][-1].startswith("data:v") and seen["used_artifacts"] == ["data:v0"]
