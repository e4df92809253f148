"""The code of W&B's guides "Import and export data" and "Data Export API Examples", one function an example.

Each takes the module that the guide imports as `wandb`: the real one, or this package. What the guide prints is
returned. Run as a script it does all of them with the real one: guide_examples.py PATHS.json prints {name: result}.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES: dict[str, Callable[..., Any]] = {}
EDITS: dict[str, Callable[..., Any]] = {}
Paths = dict[str, str]


def example(function: Callable[..., Any]) -> Callable[..., Any]:
    EXAMPLES[function.__name__] = function
    return function


def edit(function: Callable[..., Any]) -> Callable[..., Any]:
    EDITS[function.__name__] = function
    return function


@example
def export_run_data(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["short"])
    history = run.history()
    return {
        "config": run.config,
        "history": {name: history[name].tolist() for name in sorted(history.columns)},
        "summary": dict(run.summary._json_dict),
    }


@example
def querying_multiple_runs(wandb: Any, paths: Paths) -> Any:
    import pandas as pd

    api = wandb.Api()
    entity, project = paths["project"].split("/")
    runs = api.runs(entity + "/" + project)

    summary_list, config_list, name_list = [], [], []
    for run in runs:
        summary_list.append(run.summary._json_dict)
        config_list.append({k: v for k, v in run.config.items() if not k.startswith("_")})
        name_list.append(run.name)

    runs_df = pd.DataFrame({"summary": summary_list, "config": config_list, "name": name_list})
    runs_df.to_csv("project.csv")
    return {
        "names": name_list,
        "configs": config_list,
        "losses": [s.get("loss") for s in summary_list],
        "csv": pd.read_csv("project.csv")["name"].tolist(),
    }


@example
def mongodb_style_filters(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    runs = api.runs(
        paths["project"],
        {"$or": [{"config.experiment_name": "foo"}, {"config.experiment_name": "bar"}]},
    )
    return [f"Found {len(runs)} runs", sorted(run.id for run in runs)]


@example
def order_of_runs(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    where = {"config.experiment_name": {"$in": ["foo", "bar", "baz"]}}
    orders = ["-created_at", "+created_at", "+summary_metrics.loss", "-config.batch_size", "+config.experiment_name"]
    return {order: [run.id for run in api.runs(paths["project"], where, order=order)] for order in orders}


@example
def page_by_page(wandb: Any, paths: Paths) -> Any:
    runs = wandb.Api().runs(paths["project"], per_page=2)
    return [len(runs), [run.id for run in runs], runs[1].id, [run.id for run in runs[1:3]]]


@example
def error_handling(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    try:
        api.run(f"{paths['project']}/no-such-run")
    except wandb.errors.CommError as e:
        return hasattr(e, "exc")
    return "no error"


@example
def flush_the_cache(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    before = api.run(paths["short"]).state
    api.flush()
    return [before, api.run(paths["short"]).state]


@example
def get_the_latest_git_commit(wandb: Any, paths: Paths) -> Any:
    return wandb.Api().run(paths["short"]).commit


@example
def get_a_runs_name_and_id(wandb: Any, paths: Paths) -> Any:
    run = wandb.Api().run(paths["short"])
    return [run.id, run.name, run.notes, run.tags]


@example
def read_metrics_from_a_run(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    printed = []
    run = api.run(paths["cnn"])
    if run.state == "finished":
        for _, row in run.history().iterrows():
            printed.append([row["_timestamp"], row["accuracy"]])
    return printed


@example
def filter_runs_by_date(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    found = []
    for low, high in (("2020-01-01T00", paths["tomorrow"]), ("2020-01-01T00", "2021-01-01T00")):
        runs = api.runs(
            paths["project"],
            {"$and": [{"created_at": {"$lt": high, "$gt": low}}]},
        )
        found.append(len(runs))
    return found


@example
def read_specific_metrics_from_a_run(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    printed = []
    run = api.run(paths["cnn"])
    if run.state == "finished":
        for _, row in run.history(keys=["accuracy"]).iterrows():
            # The guide reads row["_timestamp"] too; with `keys`, wandb's frames have no such column.
            printed.append([row["_step"], row["accuracy"]])
    return printed


@example
def compare_two_runs(wandb: Any, paths: Paths) -> Any:
    import pandas as pd

    api = wandb.Api()
    run1 = api.run(paths["cnn"])
    run2 = api.run(paths["mlp"])
    df = pd.DataFrame([run1.config, run2.config]).transpose()
    df.columns = pd.Index([run1.name, run2.name])
    return json.loads(df[df[run1.name] != df[run2.name]].to_json(orient="index"))


@example
def export_metrics_from_a_single_run_to_csv(wandb: Any, paths: Paths) -> Any:
    import pandas as pd

    api = wandb.Api()
    run = api.run(paths["cnn"])
    metrics_dataframe = run.history()
    metrics_dataframe.to_csv("metrics.csv")
    read = pd.read_csv("metrics.csv", index_col=0)
    return [sorted(read.columns), read["accuracy"].tolist(), read["_step"].tolist()]


@example
def export_system_metrics_to_csv(wandb: Any, paths: Paths) -> Any:
    import pandas as pd

    run = wandb.Api().run(paths["short"])
    system_metrics = run.history(stream="events")
    system_metrics.to_csv("sys_metrics.csv")
    read = pd.read_csv("sys_metrics.csv", index_col=0)
    return [sorted(read.columns), read["_timestamp"].tolist(), read["system.cpu"].tolist()]


@example
def get_unsampled_metric_data(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["long"])
    history = run.scan_history()
    return [row["loss"] for row in history]


@example
def sampled_metric_data(wandb: Any, paths: Paths) -> Any:
    run = wandb.Api().run(paths["long"])
    frame = run.history()
    return [len(frame), frame["_step"].tolist(), len(run.history(samples=10)), len(run.history(samples=10**6))]


@example
def get_paginated_data_from_history(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["long"])
    cols = {"loss", "accuracy", "_step"}
    return list(run.scan_history(keys=sorted(cols), page_size=100))


@example
def export_metrics_from_all_runs_to_csv(wandb: Any, paths: Paths) -> Any:
    import pandas as pd

    api = wandb.Api()
    runs = api.runs(paths["project"])
    rows = []
    for run in runs:
        rows.append({"name": run.name} | run.config | run.summary._json_dict)
    pd.DataFrame.from_records(rows).to_csv("all.csv")
    read = pd.read_csv("all.csv", index_col=0).sort_values("name")
    return [read["name"].tolist(), [None if v != v else v for v in read["loss"].tolist()]]


@example
def get_the_starting_time_of_a_run(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["short"])
    return run.created_at


@example
def download_a_file_from_a_run(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["short"])
    with run.file("model-best.h5").download() as f:
        return [f.read(), Path("model-best.h5").read_text()]


@example
def download_all_files_from_a_run(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["short"])
    names = []
    for file in run.files():
        file.download(root="all")
        names.append(file.name)
    return {name: (Path("all") / name).stat().st_size for name in sorted(names)}


@example
def get_runs_from_a_sweep(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    sweep = api.sweep(paths["sweep"])
    sweep_runs = sweep.runs
    return sorted(run.name for run in sweep_runs)


@example
def get_the_best_run_from_a_sweep(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    sweep = api.sweep(paths["sweep"])
    best_run = sweep.best_run()
    return [best_run.name, sweep.order, sweep.config["metric"], sweep.name]


@example
def download_the_best_model_file_from_a_sweep(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    sweep = api.sweep(paths["sweep"])
    runs = sorted(sweep.runs, key=lambda run: run.summary.get("val_acc", 0), reverse=True)
    val_acc = runs[0].summary.get("val_acc", 0)
    printed = f"Best run {runs[0].name} with {val_acc}% val accuracy"
    with runs[0].file("model.h5").download(replace=True) as f:
        return [printed, f.read()]


@example
def download_system_metrics_data(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["short"])
    system_metrics = run.history(stream="events")
    system_metrics.to_csv("sys_metrics.csv")
    return [len(system_metrics), sorted(system_metrics.columns)]


@example
def get_the_command_that_ran_the_run(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["short"])
    with run.file("wandb-metadata.json").download(replace=True) as f:
        meta = json.load(f)
    program = ["python"] + [meta["program"]] + meta["args"]
    return [program, run.metadata["program"]]


# -- further calls, which must agree -------------------------------------------------------------------------------

HOSTILE = [
    "a.b", "a/b", 'quo"te', "it's", "tab\tkey", "two\nlines", "\U0001f642", "Loss", "loss", "", " ", "k" * 300, "row",
    "rid", "key", "step", "value", "kind", "ts", "source", "entity", "project", "run_id", "metric:loss", "%", "a.b.",
    ".", "..", "select 1; --", "$x", "\\",
]  # fmt: skip
"""Keys that would break SQL, paths or JSON put together by hand."""


@example
def attributes(wandb: Any, paths: Paths) -> Any:
    found = {}
    for run in wandb.Api().runs(paths["project"]):
        names = ["id", "name", "state", "tags", "group", "job_type", "notes", "entity", "project", "path", "commit"]
        names += ["created_at", "heartbeat_at", "lastHistoryStep", "sweep_name", "display_name", "createdAt"]
        names += ["historyLineCount", "history_line_count", "description"]
        found[run.id] = {name: getattr(run, name) for name in names}
        found[run.id]["config"] = run.config
        found[run.id]["raw"] = sorted(run.rawconfig)
        found[run.id]["metadata"] = run.metadata
        found[run.id]["system_metrics"] = run.system_metrics
        found[run.id]["summary"] = run.summary._json_dict
        found[run.id]["repr"] = repr(run)
        found[run.id]["user"] = run.user.username
    return found


@example
def a_summary(wandb: Any, paths: Paths) -> Any:
    summary = wandb.Api().run(paths["odd"]).summary
    return [
        sorted(summary.keys()),
        summary["deep"]["er"]["x"],
        summary.deep.er.x,
        summary.get("nothing"),
        summary.get("nothing", 3),
        "deep" in summary,
        dict(summary.deep.er.items()),
        [summary[key] for key in sorted(HOSTILE) if key and key.strip() == key],
    ]


@example
def histories_as_lists(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run, long = api.run(paths["cnn"]), api.run(paths["long"])
    return {
        "all": run.history(pandas=False),
        "keys": run.history(keys=["loss", "accuracy"], pandas=False),
        "one key": long.history(keys=["accuracy"], pandas=False, samples=7),
        "x": run.history(keys=["loss"], x_axis="_timestamp", pandas=False),
        "key of none": run.history(keys=["nothing"], pandas=False),
        "samples": long.history(samples=13, pandas=False),
        "one sample": long.history(samples=1, pandas=False),
        "system": api.run(paths["short"]).history(stream="system", pandas=False),
        "no system metrics": len(run.history(stream="events")),
    }


@example
def scans(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    run = api.run(paths["long"])
    scan = run.scan_history(keys=["_step", "accuracy"], min_step=10, max_step=21)
    return {
        "range": list(scan),
        "again": len(list(scan)),
        "small pages": len(list(run.scan_history(page_size=7, min_step=500))),
        "odd": list(api.run(paths["odd"]).scan_history()),
    }


@example
def odd_keys(wandb: Any, paths: Paths) -> Any:
    run = wandb.Api().run(paths["odd"])
    return {
        "each": {key: run.history(keys=[key], pandas=False) for key in HOSTILE},
        "all": run.history(keys=[key for key in HOSTILE if key], pandas=False),
        "nested": run.history(keys=["n.in.ner"], pandas=False),
        "config": run.config,
        "frame": sorted(run.history().columns),
    }


@example
def frames(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    frame = api.run(paths["cnn"]).history()
    keyed = api.run(paths["cnn"]).history(keys=["accuracy", "loss"])
    odd = api.run(paths["odd"]).history()
    return [
        {name: str(kind) for name, kind in frame.dtypes.items()},
        {name: str(kind) for name, kind in keyed.dtypes.items() if name != "_timestamp"},
        list(keyed.columns)[:3],
        {name: str(kind) for name, kind in odd.dtypes.items() if name != "big"},
        frame.shape,
    ]


@example
def histories_of_many_runs(wandb: Any, paths: Paths) -> Any:
    runs = wandb.Api().runs(paths["project"], {"config.experiment_name": {"$in": ["foo", "bar"]}})
    frame = runs.histories(keys=["loss"], format="pandas")
    return [runs.histories(samples=2), sorted(set(frame.columns) - {"_timestamp"}), frame["loss"].tolist()]


@example
def files(wandb: Any, paths: Paths) -> Any:
    run = wandb.Api().run(paths["short"])
    return [
        [(f.name, f.size, f.md5, f.mimetype) for f in run.files()],
        [f.name for f in run.files(pattern="%.json")],
        [f.name for f in run.files(names=["model-best.h5"])],
        len(run.files()),
    ]


@example
def projects(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    entity = paths["project"].split("/")[0]
    project = api.project("guide", entity)
    return [[p.name for p in api.projects(entity)], project.path, project.created_at, api.default_entity]


@example
def artifacts(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    artifact = api.artifact(paths["project"] + "/net:best")
    names = ["name", "version", "type", "tags", "description", "metadata", "digest", "size", "file_count"]
    names += ["entity", "project", "qualified_name", "state", "source_name", "created_at", "history_step"]
    return [
        {name: getattr(artifact, name) for name in names},
        sorted(artifact.aliases),
        sorted(artifact.manifest.entries),
        artifact.logged_by().id,
        [run.id for run in artifact.used_by()],
        [a.name for a in api.artifacts("model", paths["project"] + "/net")],
        [a.name for a in api.run(paths["cnn"]).logged_artifacts() if a.type == "model"],
        [a.name for a in api.run(paths["mlp"]).used_artifacts()],
        [c.name for c in api.artifact_collections(paths["project"], "model")],
        api.artifact_exists(paths["project"] + "/net:v9"),
    ]


@example
def artifact_bytes(wandb: Any, paths: Paths) -> Any:
    artifact = wandb.Api().artifact(paths["project"] + "/net:v0", type="model")
    folder = artifact.download(root="net")
    return [Path(folder, "model.h5").read_text(), [file.name for file in artifact.files()]]


@example
def sweeps(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    (sweep,) = api.project("guide", paths["project"].split("/")[0]).sweeps()
    run = api.run(paths["project"] + "/s0.9")
    names = ["id", "name", "state", "order", "path", "entity", "project", "config"]
    return [{name: getattr(sweep, name) for name in names}, run.sweep.id, run.sweep_name, len(sweep.runs), repr(sweep)]


@example
def from_paths(wandb: Any, paths: Paths) -> Any:
    api = wandb.Api()
    return [type(api.from_path(path)).__name__ for path in (paths["project"], paths["short"])]


# -- the examples that change a run: `paths["edited"]` ------------------------------------------------------------


@edit
def update_metrics_for_a_run_after_the_run_has_finished(wandb: Any, paths: Paths) -> None:
    api = wandb.Api()
    run = api.run(paths["edited"])
    run.summary["accuracy"] = 0.9
    run.summary.update()


@edit
def rename_a_metric_in_a_run(wandb: Any, paths: Paths) -> None:
    api = wandb.Api()
    run = api.run(paths["edited"])
    run.summary["new_name"] = run.summary["old_name"]
    del run.summary["old_name"]
    run.summary.update()


@edit
def update_config_for_an_existing_run(wandb: Any, paths: Paths) -> None:
    api = wandb.Api()
    run = api.run(paths["edited"])
    run.config["foo"] = 32
    run.update()


@edit
def update_the_summary_with_a_dictionary(wandb: Any, paths: Paths) -> None:
    api = wandb.Api()
    run = api.run(paths["edited"])
    run.summary.update({"key": 1, "nested": {"deep": [1.5, None]}})


@edit
def a_histogram_in_the_summary(wandb: Any, paths: Paths) -> None:
    api = wandb.Api()
    run = api.run(paths["edited"])
    run.summary.update({"histogram": wandb.Histogram([1, 2, 2, 5], num_bins=2)})


@edit
def name_notes_tags_and_group(wandb: Any, paths: Paths) -> None:
    api = wandb.Api()
    run = api.run(paths["edited"])
    run.name, run.notes, run.group = "a new name", "a note", "a group"
    run.tags.append("new")
    run.update()


@edit
def upload_files_to_a_finished_run(wandb: Any, paths: Paths) -> None:
    Path("file_name.extension").write_text("the content")
    Path("folder").mkdir(exist_ok=True)
    Path("folder", "picture.png").write_bytes(b"not a picture")
    api = wandb.Api()
    run = api.run(paths["edited"])
    run.upload_file("file_name.extension")
    run.upload_file("folder/picture.png")


@edit
def delete_files_with_a_given_extension_from_a_run(wandb: Any, paths: Paths) -> None:
    api = wandb.Api()
    run = api.run(paths["edited"])
    extension = ".png"
    files = run.files()
    for file in files:
        if file.name.endswith(extension):
            file.delete()


if __name__ == "__main__":
    import wandb

    given = json.loads(Path(sys.argv[1]).read_text())
    results: dict[str, Any] = {}
    for name, run_example in (EDITS if "edited" in given else EXAMPLES).items():
        try:
            results[name] = run_example(wandb, given)
        except Exception as e:
            results[name] = "".join(traceback.format_exception(e))
    print(json.dumps(results))
