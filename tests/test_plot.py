"""`mirror plot` and the curves behind it: exact where they are short, bucketed in SQL where they are long."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

import asking
import pytest
from commanding import call, ok
from PIL import Image
from test_runs import HOSTILE_KEYS

import mirror
from mirror.cli.figures import Plot, on_terminal
from mirror.errors import NotFoundError
from mirror.query.curves import Curve, curves, grouped
from mirror.query.keys import main_metrics, stream_of
from mirror.records import Run
from mirror.store import Reader

LONG = 20_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = asking.fill(tmp_path_factory.mktemp("plot") / "m")
    with mirror.open(root, write=True) as m:
        for n in (1, 2, 3, 4):
            run = Run(
                asking.key(f"long{n}", "long"), name="same", config=asking.wire({"lr": n % 2, "$x$": "$\\alpha$"})
            )
            m.put_runs([run])
            m.put_history(run, ({"_step": i * 3, "y": value(n, i), "_runtime": i / 2} for i in range(LONG)))
        odd = Run(asking.key("odd", "odd"))
        m.put_runs([odd, Run(asking.key("none", "odd"))])
        m.put_history(odd, [{"_step": 0, "a": {"b": 1}, "a.b": 5}, {"_step": 0, "a": {"b": 2}, "a.b": 6},
                            {"vast": 1e308}, {"vast": -1e308, "one": 1, "text": "x", "big": 2**60},
                            {"all": math.nan}])  # fmt: skip
        m.put_system_metrics(odd, [{"_runtime": i / 1, "_timestamp": 1.7e9 + i, "system.cpu": i} for i in range(4)])
        keys = Run(asking.key("keys", "keys"), name="_$e^x$ [red]\x1b[31m</text>")
        m.put_runs([keys])
        m.put_history(keys, [{"_step": s} | {k: s + i for i, k in enumerate(HOSTILE_KEYS)} for s in range(3)])
    return root


def value(n: int, i: int) -> float:
    return math.nan if n == 4 and 5000 <= i < 6000 else n * math.sin(i / 1000)


@pytest.fixture(scope="module")
def reader(root: Path) -> Reader:
    return Reader(root)


def rid(reader: Reader, run: str) -> int:
    found = reader.connect().execute("select rid from runs where run_id = ?", [run]).fetchone()
    assert found is not None
    return int(found[0])


def test_a_short_curve_is_what_was_logged(reader: Reader) -> None:
    curve = curves(reader, [3], "loss")[3]
    assert curve.x == list(range(50)) and curve.values == 50 and curve.nonfinite == 10
    assert [str(v) for v in curve.mean] == [str(asking.loss(3, step)) for step in range(50)]
    assert str(curve.low) == str(curve.high) == str(curve.mean)
    assert curves(reader, [3], "nothing") == {} and list(curves(reader, [2, 1], "loss")) == [2, 1]


def test_a_long_curve_is_bucketed(reader: Reader) -> None:
    who = rid(reader, "long4")
    curve = curves(reader, [who], "y", points=100)[who]
    assert len(curve.x) == 100 and curve.values == LONG and curve.nonfinite == 1000
    last = (LONG - 1) * 3
    parts: list[list[float]] = [[] for _ in range(100)]
    for i in range(LONG):
        parts[min(int(i * 3 / last * 100), 99)].append(value(4, i))
    for n, part in enumerate(parts):
        finite = [v for v in part if v == v]
        if finite:
            assert curve.mean[n] == pytest.approx(fmean(finite))
            assert (curve.low[n], curve.high[n]) == (min(finite), max(finite))
        else:
            assert math.isnan(curve.mean[n]) and math.isnan(curve.low[n])
    assert sum(v != v for v in curve.mean) == 5


def test_x_may_be_another_key(reader: Reader) -> None:
    who = rid(reader, "long1")
    curve = curves(reader, [who], "y", x="_runtime", points=10)[who]
    assert curve.x[0] == pytest.approx(fmean(i / 2 for i in range(2000)), abs=1)
    odd = rid(reader, "odd")
    assert curves(reader, [odd], "system.cpu", x="_timestamp", stream="system")[odd].x == [1.7e9 + i for i in range(4)]
    assert curves(reader, [odd], "system.cpu", stream="system")[odd].x == [0, 1, 2, 3]
    assert curves(reader, [odd], "one", x="all") == {}


def test_odd_values(reader: Reader) -> None:
    odd = rid(reader, "odd")
    assert curves(reader, [odd], "a.b")[odd].mean == [5, 6]  # the literal key, not the nested one
    assert curves(reader, [odd], "big")[odd].mean == [2.0**60]
    assert curves(reader, [odd], "text") == {}
    assert [math.isnan(v) for v in curves(reader, [odd], "all")[odd].mean] == [True]


def test_groups(reader: Reader) -> None:
    members = {rid(reader, f"long{n}"): n % 2 for n in (1, 2, 3)}
    found = grouped(reader, members, "y", points=50)
    assert list(found) == [0, 1] and found[1].runs == 2 and found[0].runs == 1
    one, two, three = (
        curves(reader, [rid(reader, f"long{n}")], "y", points=50)[rid(reader, f"long{n}")] for n in (1, 2, 3)
    )
    assert found[0].mean == pytest.approx(two.mean)
    assert found[1].mean == pytest.approx([(a + b) / 2 for a, b in zip(one.mean, three.mean, strict=True)])
    assert found[1].low == pytest.approx([min(a, b) for a, b in zip(one.mean, three.mean, strict=True)])
    short = grouped(reader, {1: 0, 2: 0, 3: 0}, "loss")[0]
    assert short.x == list(range(50)) and short.runs == 3
    assert short.mean[45] == pytest.approx((asking.loss(1, 45) + asking.loss(2, 45)) / 2)


def test_smoothing() -> None:
    curve = Curve(x=[0, 1, 2, 3], mean=[1.0, math.nan, 3.0, 5.0])
    assert curve.smooth(0).mean[2:] == [3.0, 5.0]
    smooth = curve.smooth(0.5).mean
    assert smooth[0] == 1.0 and math.isnan(smooth[1])
    assert smooth[2] == pytest.approx((0.5 * 1 + 3) / 1.5) and smooth[3] == pytest.approx(
        (0.25 * 1 + 0.5 * 3 + 5) / 1.75
    )


def test_which_metrics_matter(reader: Reader, tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r"))])
        rows = [
            {"_step": i, "epoch": i, "const": 1, "lr": 1 / (i + 1), "val/acc": i, "train/loss": 9 - i, "s": "x"}
            for i in range(9)
        ]
        m.put_history(asking.key("r"), rows)
    fresh = Reader(tmp_path / "m")
    assert main_metrics(fresh, 1, 3) == ["val/acc", "train/loss", "lr"]
    assert main_metrics(fresh, 1, 9)[3:] == ["const", "epoch"]
    assert main_metrics(reader, rid(reader, "none")) == []


def test_where_a_key_is(reader: Reader) -> None:
    odd = rid(reader, "odd")
    assert stream_of(reader, [odd], "one") == "history" and stream_of(reader, [odd], "system.cpu") == "system"
    with pytest.raises(NotFoundError, match="did you mean `loss`"):
        stream_of(reader, [1], "Loss")
    with pytest.raises(NotFoundError, match="these runs logged no numbers"):
        stream_of(reader, [rid(reader, "none")], "x")


def test_a_plot_on_the_terminal(root: Path) -> None:
    out = ok("plot", "team/digits", "--metric", "loss", root=root)
    assert "loss over _step" in out and "run 1" in out and "\x1b" not in out
    out = ok("plot", "digits/run1", "--metric", "loss", "--metric", "n", "--smooth", "0.9", "--log-y", root=root)
    assert "loss over _step" in out and "n over _step" in out
    done = call("plot", "digits/run3", "--metric", "loss", root=root)
    assert "10 of 50 values of loss are NaN or infinite" in done.err


def test_the_axes_of_a_terminal_plot_tell_the_truth() -> None:
    for color in (False, True):
        lines = on_terminal(
            Plot("┌└", "x", {"a": Curve([0, 0.5], [1, 0.5])}), width=40, height=8, color=color
        ).splitlines()
        assert len(lines) == 12 and lines[0].split() == ["┌└", "over", "x"]
        assert lines[2].endswith(" 1") and lines[9].endswith(" 0.5") and lines[11].split() == ["0", "0.5"]
    lines = on_terminal(Plot("t", "x", {"a": Curve([3], [0.25])}), width=40, height=8).splitlines()
    assert lines[2].endswith(" 0.75") and lines[9].endswith(" -0.25")


def test_extreme_values_are_drawn_or_said(root: Path) -> None:
    assert "vast: no finite numbers to draw" in ok("plot", "odd/odd", "--metric", "vast", root=root)
    assert "all: no finite numbers to draw" in ok("plot", "odd/odd", "--metric", "all", root=root)
    for curve in (Curve([0], [1]), Curve([0, 1], [0, 0]), Curve([0, 1], [1e-300, 1]),
                  Curve([1e140, -1e140], [1e140, -1e140]), Curve([0, 1], [math.inf, 1]),
                  Curve([5, 5], [1, 2])):  # fmt: skip
        for log_y in (False, True):
            assert on_terminal(Plot("t", "x", {"a": curve, "b": curve}, log_y=log_y))


def test_pictures(root: Path, tmp_path: Path) -> None:
    ok("plot", "team/long", "--metric", "y", "-o", tmp_path / "y.png", root=root)
    picture = Image.open(tmp_path / "y.png")
    assert picture.size == (1200, 750) and len(picture.convert("RGB").getcolors(100_000) or []) > 20
    ok(
        "plot",
        "team/long",
        "--metric",
        "y",
        "--by",
        "config.lr",
        "--x",
        "_runtime",
        "-o",
        tmp_path / "by.svg",
        root=root,
    )
    texts = words(tmp_path / "by.svg")
    assert {"y", "_runtime", "config.lr", "0", "1"} <= texts
    ok("plot", "odd/odd", "--metric", "system.cpu", "--x", "_timestamp", "-o", tmp_path / "t.svg", root=root)
    done = call("plot", "odd/odd", "--metric", "one", "-o", tmp_path / "t.svg", root=root)
    assert done.code == 2 and "would be written over: add --force" in done.err
    ok("plot", "odd/odd", "--metric", "vast", "--log-y", "-o", tmp_path / "t.svg", "--force", root=root)


def words(svg: Path) -> set[str]:
    return {"".join(e.itertext()) for e in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}


def test_names_are_no_markup(root: Path, tmp_path: Path) -> None:
    ok("plot", "keys/keys", "long/long1", "--metric", "_step", "--x", "_step", "-o", tmp_path / "a.svg", root=root)
    assert "_$e^x$ [red]\\x1b[31m</text>" in words(tmp_path / "a.svg")
    ok("plot", "team/long", "--metric", "y", "--by", "config.$x$", "-o", tmp_path / "b.svg", root=root)
    for i, key in enumerate(HOSTILE_KEYS):
        if "\0" in key:
            continue
        out = tmp_path / f"{i}.svg"
        ok("plot", "keys/keys", "--metric", key, "-o", out, root=root)
        if key.isprintable() and 0 < len(key) < 80:
            assert key in words(out)
        text = ok("plot", "keys/keys", "--metric", key, root=root)
        assert all(c.isprintable() or c == "\n" for c in text)


def test_many_curves_have_marks_of_their_own_without_colours(root: Path) -> None:
    text = on_terminal(Plot("loss", "_step", {f"run {n}": Curve([0.0, 1.0], [n, n + 1.0]) for n in range(100)}))
    legend = text.split("└")[1]
    marks = re.findall(r"(\S)\1 run \d+", legend)
    assert len(marks) == 100 and len(set(marks[:66])) == 66


def test_not_too_many_curves(root: Path) -> None:
    done = call("plot", "--metric", "y", "--metric", "n", "--limit", "2", root=root)
    assert done.err.count("Only the first 2 runs are drawn") == 2 and "--by groups them" in done.err
    done = call("plot", "--metric", "y", "--by", "run_id", "--limit", "3", root=root)
    assert "Only the first 3 groups are drawn" in done.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["team/digits", "--metric", "los"], 1, "no run has numbers under the key `los`; did you mean `loss`?"),
        (["team/digits", "--metric", "loss", "--by", "config..x y"], 0, ""),
        (["team/digits", "--metric", "loss", "--by", "nmae"], 2, "unknown column `nmae`; did you mean `name`?"),
        (["team/digits", "--metric", "loss", "--x", "nothing"], 2, "choose another --x"),
        (["team/digits", "--metric", "loss", "-o", "x.pdf"], 2, "name the picture"),
        (["team/digits", "--metric", "loss", "--smooth", "1"], 2, "0<=x<1"),
        (["team/digits", "--metric", "'; drop view runs; --"], 1, "no run has numbers under the key"),
        (["team/digits", "--metric", "loss", "--by", "name) from runs; --"], 2, "unknown column"),
        (["team/digits", "--metric", "loss", "--order", "run_id; select 1"], 2, "unknown field"),
        (["team/digits", "--metric", "loss", "--filter", '{"state": "no"}'], 0, "No runs"),
        (["team/nothing", "--metric", "loss"], 1, "the mirror holds nothing of `team/nothing`"),
    ],
)
def test_bad_calls(root: Path, args: list[str], code: int, message: str) -> None:
    done = call("plot", *args, root=root)
    assert (done.code, message in done.err) == (code, True), done.err


def test_without_matplotlib(root: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import mirror.cli; mirror.cli.main()"
    args = ["plot", "digits/run1", "--metric", "loss", "--mirror", str(root)]
    run = [sys.executable, "-c", code, *args]
    assert "loss over _step" in subprocess.run(run, capture_output=True, text=True, check=True, timeout=300).stdout
    done = subprocess.run([*run, "-o", str(tmp_path / "x.png")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "pip install 'wandb-mirror[plot]'" in done.stderr
    assert [*tmp_path.iterdir()] == []
