"""Logs one run with config, rows, summary, tags, a file and an exit code, and prints what it handed in.

python log.py RUN_ID
"""

import json
import sys
from pathlib import Path

import wandb


def main(run_id):
    config = {"lr": 0.1, "layers": 3, "act": "relu", "opt": {"name": "adam", "betas": [0.9, 0.999]}, "none": None}
    rows = [{"loss": 1 / (i + 3), "n": i, "word": f"é{i}", "even": i % 2 == 0, "deep": {"x": i / 7}} for i in range(40)]
    run = wandb.init(
        entity="local", project="versions", id=run_id, name="run " + run_id, config=config, tags=["a", "ü"],
        notes="line one\nline two", group="g", job_type="train",
    )  # fmt: skip
    for row in rows:
        run.log(row)
    run.summary["best"] = 0.25
    file = Path(run.dir) / "notes.txt"
    file.write_text("kept " + run_id)
    run.save(str(file), base_path=run.dir)
    run.finish(exit_code=0)
    print(json.dumps({"config": config, "rows": rows, "best": 0.25}))


if __name__ == "__main__":
    main(*sys.argv[1:])
