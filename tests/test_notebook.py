"""docs/tutorial.ipynb runs from top to bottom, and shows what was logged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

import mirror
from mirror.demo.training import ENTITY, PROJECT, train, trials
from mirror.records import Run, RunKey

pytest.importorskip("ipykernel")
manager = pytest.importorskip("jupyter_client.manager")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
STEPS = 60
Logged = dict[str, list[dict[str, float]]]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Logged]]:
    """The demo's trials, trained for fewer steps and put into a mirror without a server."""
    root = tmp_path_factory.mktemp("notebook") / "mirror"
    rows: Logged = {}
    with mirror.open(root, write=True) as m:
        for trial in trials():
            found = []
            try:
                for row in train(trial, STEPS if trial.crash_at is None else trial.crash_at + 1):
                    found.append(row)
            except RuntimeError:
                pass
            rows[trial.name] = found
            last = {key: value for row in found for key, value in row.items()}
            config = {"lr": trial.lr, "width": trial.width, "seed": trial.seed}
            run = Run(
                RunKey("lab", trial.run_id, ENTITY, PROJECT, trial.run_id), name=trial.name,
                state="finished" if trial.crash_at is None else "failed", summary=json.dumps(last),
                config=json.dumps({k: {"value": v} for k, v in config.items()}),
            )  # fmt: skip
            m.put_runs([run])
            m.put_history(run, ({"_step": i} | row for i, row in enumerate(found)))
    yield root, rows


@pytest.fixture(scope="module")
def shown(logged: tuple[Path, Logged], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of every code cell, by its tag."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    there = tmp_path_factory.mktemp("there")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MIRROR", "WANDB"))}
    env |= {
        "MIRROR_ROOT": str(logged[0]),
        "IPYTHONDIR": str(there),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    ports = {f"{name}_port": free_port() for name in ("shell", "iopub", "stdin", "hb", "control")}
    kernel = manager.AsyncKernelManager(kernel_name="python3", **ports)
    client = nbclient.NotebookClient(
        notebook, km=kernel, timeout=300, startup_timeout=300, resources={"metadata": {"path": str(there)}}
    )
    client.execute(env=env)
    return {cell.metadata.tags[0]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text(outputs: list[Any]) -> str:
    return "\n".join(out.get("text") or out["data"]["text/plain"] for out in outputs)


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_the_notebook_shows_what_was_logged(logged: tuple[Path, Logged], shown: dict[str, list[Any]]) -> None:
    rows = logged[1]
    assert f"{sum(map(len, rows.values())) - len(rows['lr0.1-width16-seed0'])}" in text(shown["overview"])
    accuracy = {name: [r["val/acc"] for r in found if "val/acc" in r][-1] for name, found in rows.items()}
    top = max(accuracy.values())
    assert str(top)[:6] in text(shown["runs"])
    wanted = {t.name for t in trials() if t.crash_at is None and t.lr >= 0.1 and t.width in (8, 32)}
    count, best = text(shown["filter"]).split()[0], text(shown["filter"]).split()[5]
    assert int(count) == len(wanted) and accuracy[best] == max(accuracy[name] for name in wanted)
    assert str(rows[best][-1]["loss"])[:6] in text(shown["history"]) and str(STEPS - 1) in text(shown["history"])
    diverged = {n: [math.isnan(r["loss"]) for r in found].index(True) for n, found in rows.items()
                if any(math.isnan(r["loss"]) for r in found)}  # fmt: skip
    assert diverged and all(f"{name}  {step:>9}" in text(shown["diverged"]) for name, step in diverged.items())
    assert "26.0" in text(shown["export"]) and f"{STEPS}.0" in text(shown["export"])


def test_the_picture(shown: dict[str, list[Any]]) -> None:
    (png,) = [out["data"]["image/png"] for out in shown["curves"] if "image/png" in out.get("data", {})]
    assert len(png) > 10_000
