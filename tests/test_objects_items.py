"""Sweeps, artifacts, reports, projects, files and histograms as objects, on records put into a mirror."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asking
import numpy as np
import pytest
import wandb

import mirror
from mirror.errors import AmbiguousError, NotFoundError, UsageError
from mirror.objects.attrs import ArgumentError, OfflineError
from mirror.records import (
    Artifact,
    ArtifactCollection,
    ArtifactEntry,
    ArtifactUse,
    FileEntry,
    ItemKey,
    Project,
    Report,
    Run,
    Sweep,
)

T0 = datetime(2025, 1, 31, 12, tzinfo=timezone.utc)
WEIGHTS = b"weights \x00\xff\xfe"
SHA = hashlib.sha256(WEIGHTS).hexdigest()
CONFIG = (
    "method: grid\nmetric:\n  name: val/acc\n  goal: maximize\nname: by hand\nparameters:\n  lr:\n    values: [1, 2]\n"
)


def item(name: str, source: str = "lab.example") -> ItemKey:
    return ItemKey(source, f"{source}-{name}", "team", "digits")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("items") / "m"
    blob = root / "blobs" / "sha256" / SHA[:2] / SHA
    with mirror.open(root, write=True) as m:
        m.put_projects([Project("lab.example", "team", "digits", "P1", "what it is about", T0)])
        m.put_projects([Project("lab.example", "team", "empty", created_at=T0)])
        for n in range(4):
            summary = json.dumps({"val/acc": [0.5, 0.9, 0.7, 2.0][n]})
            created = T0 + timedelta(minutes=n)
            run = Run(
                asking.key(f"run{n}"),
                name=f"run {n}",
                summary=summary,
                sweep="sw" if n < 3 else "bare",
                created_at=created,
            )
            m.put_runs([run])
        m.put_runs([Run(asking.key("gone"), sweep="sw")])
        m.put_files(
            asking.key("run0"),
            [
                FileEntry("model.h5", len(WEIGHTS), "q83v", "application/x-hdf5", T0, "F1", sha256=SHA),
                FileEntry("media/images/x_1.png", 5, "bWQ1", "image/png", T0, "F2", "https://lab.example/x_1.png"),
                FileEntry("media/images/x11.png", 5),
                FileEntry("../outside.txt", 5, sha256=SHA),
                FileEntry("100%.json", 1),
            ],
        )
        put = m.writer.put_item
        put(
            Sweep(
                item("S1"),
                "sw",
                config=CONFIG,
                state="FINISHED",
                best_loss=0.9,
                run_count=3,
                username="ada",
                created_at=T0,
            )
        )
        put(Sweep(item("S2"), "plain", name="shown", config="method: random\nparameters: {}\n"))
        put(Sweep(item("S3", "other.example"), "plain", config="method: random\n"))
        put(ArtifactCollection(item("C1"), "model", "net", "the nets", ("best",), T0))
        put(ArtifactCollection(item("C2"), "dataset", "data"))
        for n, aliases in enumerate([(), ("v-old", "latest")]):
            entries = [
                ArtifactEntry("net/model.h5", "q83v", len(WEIGHTS), sha256=SHA),
                ArtifactEntry("readme.md", "bWQ1", 7, sha256=SHA),
            ]
            used = [ArtifactUse("team", "digits", "run3", "input"), ArtifactUse("team", "digits", "unknown")]
            put(
                Artifact(
                    item(f"A{n}"),
                    "model",
                    "net",
                    n,
                    "COMMITTED",
                    f"digest{n}",
                    aliases,
                    ("t",) if n else (),
                    "about",
                    '{"acc": 0.9, "deep": {"a": [1, null]}}',
                    len(WEIGHTS) + 7,
                    2,
                    17,
                    -1,
                    f"hash{n}",
                    run_entity="team",
                    run_project="digits",
                    run_id=f"run{n}",
                    username="ada",
                    created_at=T0 + timedelta(hours=n),
                    entries=entries,
                    uses=used if n else [],
                )
            )
        put(
            Artifact(
                item("A9"),
                "dataset",
                "data",
                0,
                "COMMITTED",
                aliases=("latest",),
                entries=[ArtifactEntry("far", "etag", 3, ref="s3://bucket/far"), ArtifactEntry("near", "bWQ1", 3)],
            )
        )
        put(Artifact(item("A8"), "model", "net", None, "PENDING"))
        spec = {"blocks": [{"type": "heading"}], "panelGroups": [{"x": 1}]}
        put(Report(item("R1"), "abc", title="What we found", spec=json.dumps(spec), username="ada", created_at=T0))
        put(Report(item("R2"), "xyz", title="More", created_at=T0 + timedelta(1)))
    with mirror.open(root, write=True) as m:
        m.writer.drop_item("reports", item("R2"))
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WEIGHTS)
    return root


@pytest.fixture
def api(root: Path) -> mirror.Api:
    return mirror.Api(root, overrides={"project": "digits"})


# -- sweeps --------------------------------------------------------------------------------------------------------


def test_a_sweep(api: mirror.Api) -> None:
    sweep = api.sweep("team/digits/sw")
    assert (sweep.id, sweep.name, sweep.state, sweep.entity, sweep.project) == (
        "sw",
        "by hand",
        "FINISHED",
        "team",
        "digits",
    )
    assert sweep.config["parameters"] == {"lr": {"values": [1, 2]}} and sweep.metric == {
        "name": "val/acc",
        "goal": "maximize",
    }
    assert (sweep.best_loss, sweep.run_count, sweep.created_at) == (0.9, 3, "2025-01-31T12:00:00Z")
    assert sweep.user is not None and sweep.user.username == "ada"
    assert sweep.order == "-summary_metrics.val/acc"
    assert [run.id for run in sweep.runs] == ["run0", "run1", "run2", "gone"]
    best = sweep.best_run()
    assert best is not None and best.id == "run1"
    worst = sweep.best_run(order="+val/acc")
    assert worst is not None and worst.id == "run0"
    again = best.sweep
    assert best.sweep_name == "sw" and again is not None and again.path == sweep.path == ["team", "digits", "sw"]
    assert repr(sweep) == "<Sweep team/digits/sw (FINISHED)>"


@pytest.mark.parametrize("path", ["sw", "digits/sw", "digits:sw", "team/digits/sweeps/sw", "https://lab.example/team/digits/sweeps/sw"])  # fmt: skip # noqa: E501
def test_a_sweep_by_its_paths(api: mirror.Api, path: str) -> None:
    assert api.sweep(path).id == "sw"


def test_sweeps_of_a_project_with_those_that_only_runs_tell_of(api: mirror.Api, root: Path) -> None:
    found = mirror.Api(root, source="lab.example").project("digits").sweeps()
    assert {sweep.id: (sweep.name, sweep.state) for sweep in found} == {
        "sw": ("by hand", "FINISHED"),
        "plain": ("shown", None),
        "bare": ("bare", None),
    }
    bare = api.sweep("bare")
    assert bare.config == {} and bare.run_count == 1 and [run.id for run in bare.runs] == ["run3"]
    with pytest.raises(UsageError, match=r"best_run\(order="):
        bare.best_run()


def test_a_sweep_without_a_metric_gives_its_first_run(root: Path) -> None:
    sweep = mirror.Api(root, source="lab.example").sweep("team/digits/plain")
    with pytest.warns(UserWarning, match="names no metric"):
        assert sweep.best_run() is None
    assert sweep.order is None and len(sweep.runs) == 0


def test_sweeps_that_are_not_there(api: mirror.Api) -> None:
    with pytest.raises(NotFoundError, match=r"no sweep `team/digits/nope`; it has"):
        api.sweep("team/digits/nope")
    with pytest.raises(AmbiguousError, match=r"`lab.example`, `other.example`|`other.example`, `lab.example`"):
        api.sweep("team/digits/plain")
    for path in ("", "a/b/c/d"):
        with pytest.raises(ArgumentError, match="path of no sweep"):
            api.sweep(path)


# -- artifacts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["team/digits/net:latest", "net", "digits/net:v1", "team/digits/net:v-old"])
def test_an_artifact(api: mirror.Api, name: str) -> None:
    art = api.artifact(name)
    named = f"net:{name.partition(':')[2] or 'v1'}"
    assert (art.name, art.version, art.type, art.qualified_name) == (named, "v1", "model", f"team/digits/{named}")
    assert (art.aliases, art.tags, art.description, art.digest) == (["v-old", "latest"], ["t"], "about", "digest1")
    assert art.metadata == {"acc": 0.9, "deep": {"a": [1, None]}}
    assert (art.size, art.file_count, art.history_step, art.ttl, art.state) == (
        len(WEIGHTS) + 7,
        2,
        16,
        None,
        "COMMITTED",
    )
    assert art.created_at == "2025-01-31T13:00:00Z" and art.source_name == "net:v1" and art.commit_hash == "hash1"
    assert list(art.manifest.entries) == ["net/model.h5", "readme.md"]
    assert [(f.name, f.size, f.digest) for f in art.files(["readme.md"])] == [("readme.md", 7, "bWQ1")]
    maker = art.logged_by()
    assert maker is not None and maker.id == "run1" and [run.id for run in art.used_by()] == ["run3"]
    assert repr(art) == f"<Artifact team/digits/{named}>" and art.source_qualified_name == "team/digits/net:v1"


def test_artifacts_of_a_run(api: mirror.Api) -> None:
    assert [a.name for a in api.run("team/digits/run0").logged_artifacts()] == ["net:v0"]
    assert [a.name for a in api.run("team/digits/run3").used_artifacts()] == ["net:v1"]
    assert len(api.run("team/digits/run3").logged_artifacts()) == 0


def test_collections_types_and_versions(api: mirror.Api) -> None:
    assert [t.name for t in api.artifact_types("team/digits")] == ["dataset", "model"]
    assert [c.name for c in api.artifact_type("model", "digits").collections()] == ["net"]
    assert [c.name for c in api.project("digits", "team").collections()] == ["data", "net"]
    net = api.artifact_collection("model", "team/digits/net")
    assert (net.type, net.description, net.tags, net.aliases) == ("model", "the nets", ["best"], ["latest", "v-old"])
    assert [a.version for a in net.artifacts()] == ["v1", "v0"]
    assert [a.version for a in api.artifacts("model", "digits/net", order="+created_at")] == ["v0", "v1"]
    assert [a.version for a in api.artifact_versions("model", "digits/net")] == ["v1", "v0"]
    assert [a.version for a in api.artifacts("model", "digits/net", tags=["t"])] == ["v1"]
    assert api.artifact_exists("digits/net:v0") and not api.artifact_exists("digits/net:v7")
    assert api.artifact_collection_exists("digits/net", "model")
    assert not api.artifact_collection_exists("digits/net", "dataset")


def test_artifact_bytes(api: mirror.Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_ARTIFACT_DIR", raising=False)
    folder = Path(api.artifact("net").download())
    assert folder == tmp_path / "artifacts" / "net:v1"
    assert (folder / "net" / "model.h5").read_bytes() == WEIGHTS == (folder / "readme.md").read_bytes()
    only = Path(api.artifact("net").download(tmp_path / "only", path_prefix="net/"))
    assert [str(p.relative_to(only)) for p in only.rglob("*") if p.is_file()] == ["net/model.h5"]
    one = api.artifact("net").get_entry("readme.md").download(tmp_path / "one")
    assert Path(one).read_bytes() == WEIGHTS


def test_artifact_bytes_that_are_elsewhere(api: mirror.Api, tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"`far` of team/digits/data:v0 is a reference to `s3://bucket/far`"):
        api.artifact("data").download(tmp_path / "x")
    with pytest.raises(OfflineError, match=r"mirror sync team/digits --artifacts [a-z]+/data:v0`"):
        api.artifact("data").download(tmp_path / "x", allow_missing_references=True)
    assert not (tmp_path / "x").exists()
    with pytest.raises(NotFoundError, match=r"did you mean `readme\.md`"):
        api.artifact("net").get_entry("readme.m")


def test_artifacts_that_are_not_there(api: mirror.Api) -> None:
    with pytest.raises(NotFoundError, match=r"net:v9`; it has `v0`, `v1`, `v-old`, `latest`"):
        api.artifact("net:v9")
    with pytest.raises(NotFoundError, match="did you mean `net`"):
        api.artifact("nett")
    with pytest.raises(ArgumentError, match="is of type `model`, not `dataset`"):
        api.artifact("net", type="dataset")
    with pytest.raises(NotFoundError, match="of type `dataset`"):
        api.artifacts("dataset", "net")
    with pytest.raises(ArgumentError, match="not ordered by `colour`"):
        api.artifacts("model", "net", order="-colour")
    with pytest.raises(OfflineError, match=r"Artifact.delete\(\)"):
        api.artifact("net").delete()


# -- reports and projects ------------------------------------------------------------------------------------------


def test_reports(api: mirror.Api) -> None:
    (found,) = api.reports("team/digits")
    assert (found.name, found.display_name, found.title, found.id) == (
        "abc",
        "What we found",
        "What we found",
        "lab.example-R1",
    )
    assert found.spec["blocks"] == found.blocks == [{"type": "heading"}] and found.sections == [{"x": 1}]
    assert found.user is not None and found.user.username == "ada" and found.created_at == "2025-01-31T12:00:00Z"
    assert len(api.reports("team/digits", name="What we found")) == 1 and len(api.reports("team/digits", "no")) == 0
    assert api.from_path("/".join(found.path)).id == found.id  # type: ignore[union-attr]


def test_projects(api: mirror.Api) -> None:
    found = {project.name: project for project in api.projects("team")}
    assert found.keys() == {"digits", "empty"}
    digits = found["digits"]
    assert (digits.id, digits.description, digits.created_at, digits.run_count) == (
        "P1",
        "what it is about",
        "2025-01-31T12:00:00Z",
        5,
    )
    assert digits.path == ["team", "digits"] and len(digits.runs()) == 5 and found["empty"].run_count == 0
    assert api.project("digits").id == "P1"  # the mirror's only entity is meant
    with pytest.raises(NotFoundError, match="did you mean `team/digits`"):
        api.project("digit")
    with pytest.raises(NotFoundError, match="did you mean `team`"):
        api.projects("tam")
    assert len(api.runs("digits")) == 5  # as in wandb, one name may be a project
    assert api.default_entity == "team"
    assert type(api.from_path("team/digits/runs/run1")).__name__ == "Run"
    assert type(api.from_path("team/digits")).__name__ == "Project"
    assert type(api.from_path("team/digits/sweeps/sw")).__name__ == "Sweep"
    with pytest.raises(OfflineError, match=r"Api\(online=True\)"):
        _ = api.viewer
    with pytest.raises(OfflineError, match="create_run"):
        api.create_run(project="x")


# -- files ---------------------------------------------------------------------------------------------------------


def test_files(api: mirror.Api, tmp_path: Path) -> None:
    run = api.run("team/digits/run0")
    assert [f.name for f in run.files()] == [
        "../outside.txt",
        "100%.json",
        "media/images/x11.png",
        "media/images/x_1.png",
        "model.h5",
    ]
    assert [f.name for f in run.files(["model.h5", "nope"])] == ["model.h5"]
    assert [f.name for f in run.files(pattern="%.PNG")] == ["media/images/x11.png", "media/images/x_1.png"]
    assert [f.name for f in run.files(pattern=r"media/%x\_1%")] == ["media/images/x_1.png"]
    assert [f.name for f in run.files(pattern=r"100\%.json")] == ["100%.json"] and len(run.files(pattern="x\\")) == 0
    file = run.file("media/images/x_1.png")
    assert (file.size, file.sizeBytes, file.md5, file.mimetype) == (5, 5, "bWQ1", "image/png")
    assert (file.updated_at, file.updatedAt, file.url) == ("2025-01-31T12:00:00Z",) * 2 + (
        "https://lab.example/x_1.png",
    )
    with pytest.raises(ArgumentError, match="not both"):
        run.files(names=["a"], pattern="b")
    with pytest.raises(ArgumentError, match=r"names=\['a'\]"):
        run.files("a")
    with pytest.raises(NotFoundError, match=r"did you mean `model\.h5`"):
        run.file("modle.h5")


def test_downloads(api: mirror.Api, tmp_path: Path) -> None:
    file = api.run("team/digits/run0").file("model.h5")
    with file.download(root=tmp_path / "new" / "folder") as opened:
        assert Path(opened.name).read_bytes() == WEIGHTS
    with pytest.raises(ValueError, match="replace=True"):
        file.download(root=tmp_path / "new" / "folder")
    target = tmp_path / "new" / "folder" / "model.h5"
    target.write_bytes(b"mine")
    file.download(root=tmp_path / "new" / "folder", exist_ok=True).close()
    assert target.read_bytes() == b"mine"
    file.download(root=tmp_path / "new" / "folder", replace=True).close()
    assert target.read_bytes() == WEIGHTS and [p.name for p in target.parent.iterdir()] == ["model.h5"]


def test_a_name_that_leads_out_of_the_folder_is_not_written(api: mirror.Api, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match="leads out of the folder"):
        api.run("team/digits/run0").file("../outside.txt").download(root=tmp_path / "in")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_link_does_not_lead_a_download_out_of_its_folder(api: mirror.Api, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "net").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads out of the folder"):
        api.artifact("net").download(tmp_path / "in")
    assert not (tmp_path / "model.h5").exists()


# -- histograms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"sequence": [1, 2, 3]},
        {"sequence": np.arange(1000.0) ** 2, "num_bins": 512},
        {"sequence": []},
        {"sequence": [5]},
        {"np_histogram": np.histogram([1, 2, 2.5], bins=3)},
        {"np_histogram": ([1, 2], [0, 1, 2])},
    ],
)
def test_a_histogram_is_that_of_wandb(arguments: dict[str, Any]) -> None:
    ours, theirs = mirror.Histogram(**arguments), wandb.Histogram(**arguments)
    assert ours.to_json() == theirs.to_json()
    assert (ours.histogram, ours.bins) == (theirs.histogram, theirs.bins)


@pytest.mark.parametrize("arguments", [{"sequence": [1], "num_bins": 513}, {"np_histogram": ([1], [0])}, {"np_histogram": ([1],)}])  # fmt: skip # noqa: E501
def test_histograms_that_are_none(arguments: dict[str, Any]) -> None:
    for kind in (wandb.Histogram, mirror.Histogram):
        with pytest.raises(ValueError, match=r"."):
            kind(**arguments)


def test_no_name_takes_effect_on_a_terminal(tmp_path: Path) -> None:
    bad = "\x1b]0;x\x07\u202e"
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r"), state=bad, sweep=bad)])
        m.put_files(asking.key("r"), [FileEntry(bad, 1, mimetype=bad)])
        m.writer.put_item(Report(item("R"), bad, title=bad))
        m.writer.put_item(Artifact(item("A"), bad, bad, 0, "COMMITTED", entries=[ArtifactEntry(bad)]))
        m.writer.put_item(ArtifactCollection(item("C"), bad, bad))
    api = mirror.Api(tmp_path / "m")
    run = api.run("r")
    (art,) = api.artifacts(bad, f"digits/{bad}")
    things = [run, run.file(bad), run.files(), run.sweep, api.reports("digits")[0], art, art.collection, art.manifest]
    things += [art.get_entry(bad), api.artifact_types("digits")[0], api.project("digits"), run.scan_history()]
    for thing in things:
        assert repr(thing).isprintable(), type(thing)


def test_messages_name_runs_as_commands_take_them(tmp_path: Path) -> None:
    key = dataclasses.replace(asking.key("r"), project="pro ject ü%20")
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(key)])
        m.put_files(key, [FileEntry("it's.txt", 1)])
    run = mirror.Api(tmp_path / "m").runs(f"{key.entity}/{key.project}")[0]
    with pytest.raises(NotFoundError, match=f"^{key.entity}/pro ject ü%20/r has no file `x`"):
        run.file("x")
    with pytest.raises(OfflineError) as told:
        run.file("it's.txt").download(root=tmp_path)
    command = shlex.split(str(told.value).split("`")[3])
    assert command == ["mirror", "sync", f"{key.entity}/pro ject ü%20/r", "--files", "it's.txt"]


def test_filters_are_a_name_of_the_package() -> None:
    assert mirror.filters.to_sql({"state": "finished"})  # type: ignore[attr-defined]


def test_projects_that_are_gone_are_not_listed(tmp_path: Path) -> None:
    """But found by name, since what is held of them stays."""
    with mirror.open(tmp_path / "m", write=True) as m:
        kept, gone = (mirror.Project("lab", "team", name, storage_id=name) for name in ("kept", "gone"))
        m.put_projects([kept, gone])
        m.commit()
        m.writer.drop_project(gone)
    api = mirror.Api(tmp_path / "m")
    assert [project.name for project in api.projects("team")] == ["kept"]
    assert api.project("gone", "team").run_count == 0
