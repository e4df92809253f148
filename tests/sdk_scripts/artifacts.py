"""The basic round trip of an artifact with whatever `wandb` is installed: logged, used, downloaded, listed.

python artifacts.py PROJECT FOLDER: the files come from FOLDER/in, which the caller made, and go to FOLDER/out. The last
line that is printed says in JSON what the SDK saw.
"""

import json
import sys
from pathlib import Path

import wandb

project, folder = sys.argv[1], Path(sys.argv[2])
seen = {}


def logged(run, extra=None, **options):
    artifact = wandb.Artifact("data", type="dataset", description="about", metadata={"n": 1, "deep": {"x": [1, None]}})
    artifact.add_dir(str(folder / "in"))
    if extra is not None:
        with artifact.new_file("extra.txt") as out:
            out.write(extra)
    artifact.add_reference("https://example.com/far.bin", name="far.bin", checksum=False)
    return run.log_artifact(artifact, **options).wait()


run = wandb.init(project=project, id="maker")
first = logged(run, aliases=["first", "best"])
seen["versions"] = [first.version, logged(run).version, logged(run, extra="more", aliases=["best"]).version]
seen["digest"] = first.digest
run.finish()

run = wandb.init(project=project, id="user")
used = run.use_artifact("data:first", type="dataset")
# A reference is not fetched: there is nothing behind it.
for name in used.manifest.entries:
    if name != "far.bin":
        used.get_path(name).download(root=str(folder / "out"))
seen["used"] = [used.version, used.description, used.metadata, used.size, sorted(used.aliases)]
run.finish()

api = wandb.Api()
name = f"{run.entity}/{project}/data"
latest = api.artifact(f"{name}:latest")
seen["latest"] = [latest.version, sorted(latest.aliases), latest.logged_by().id, latest.state]
seen["entries"] = {n: [e.digest, e.size, e.ref] for n, e in latest.manifest.entries.items()}
seen["used_by"] = [r.id for r in api.artifact(f"{name}:v0").used_by()]
seen["listed"] = sorted(a.version for a in api.artifacts("dataset", name))
seen["types"] = [t.name for t in api.artifact_types(f"{run.entity}/{project}")]
seen["logged_artifacts"] = sorted(a.name for a in api.run(f"{run.entity}/{project}/maker").logged_artifacts())
seen["used_artifacts"] = [a.name for a in api.run(f"{run.entity}/{project}/user").used_artifacts()]
seen["files"] = sorted(f.name for f in latest.files())
print(json.dumps(seen))
