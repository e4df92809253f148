"""Curves drawn: on a terminal with uniplot, as PNG or SVG with matplotlib (the extra `plot`).

Names come from strangers: in a picture they are never read as mathematics or markup, on a terminal they go through
`safe`.
"""

from __future__ import annotations

import math
import string
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from mirror.errors import MirrorError
from mirror.query.text import safe

if TYPE_CHECKING:
    from mirror.query.curves import Curve

_LONGEST = 48  # characters of a name in a legend
_LONGEST_TITLE = 80
_MARKS = [*dict.fromkeys("+xo*~." + string.ascii_letters + string.digits)]
"""What tells curves apart without colours; uniplot has the first six alone, and fails on a seventh curve."""
_WIDEST = 1e150  # numbers beyond it overflow where axes are made


@dataclass(frozen=True)
class Plot:
    """Curves by label, and what they show."""

    title: str
    x: str
    curves: Mapping[str, Curve]
    by: str | None = None
    """What the curves are groups of; their band is drawn, too."""
    log_y: bool = False


def short(text: str, longest: int = _LONGEST) -> str:
    """A name in harmless characters, cut in the middle if it is long."""
    text = safe(text)
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest - longest // 2 - 1) :]}"


def on_terminal(plot: Plot, *, width: int = 80, height: int = 14, color: bool = False) -> str:
    """The curves with a legend if there are several; without colours, each is drawn in a character of its own."""
    from uniplot import plot_to_string

    xs, ys, labels = [], [], []
    for label, curve in plot.curves.items():
        points = [(x, y) for x, y in zip(curve.x, _drawn(curve.mean, plot.log_y), strict=True) if abs(x) < _WIDEST]
        if any(y == y for _, y in points):
            xs.append([x for x, _ in points])
            ys.append([y for _, y in points])
            labels.append(short(label))
    if not xs:
        return f"{short(plot.title, _LONGEST_TITLE)}: no finite numbers to draw"
    title = f"{short(plot.title, _LONGEST_TITLE)} over {short(plot.x)}"
    if plot.by is not None:
        title += f", by {short(plot.by)}"
    x_low, x_high = _bounds([x for line in xs for x in line])
    y_low, y_high = _bounds([y for line in ys for y in line if y == y], plot.log_y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text: str = plot_to_string(
            xs=xs, ys=ys, legend_labels=labels if len(labels) > 1 else None, lines=True, width=width, height=height,
            title=title, color=color, character_set="braille" if color or len(labels) == 1 else "ascii",
            force_ascii_characters=[_MARKS[i % len(_MARKS)] for i in range(len(labels))],
            x_labels=False, y_labels=False, x_min=x_low, x_max=x_high, y_min=y_low, y_max=y_high, y_as_log=plot.log_y,
        )  # fmt: skip
    lines = [line.rstrip() for line in text.splitlines()]
    # uniplot rounds its labels as long as they differ, 0.5 to 0: these are the ends of the axes.
    top = next(i for i, line in enumerate(lines) if i and "┌" in line)  # the first line is the title
    bottom = next(i for i, line in enumerate(lines) if i and "└" in line)
    lines[top + 1] += f" {y_high:.5g}"
    lines[bottom - 1] += f" {y_low:.5g}"
    left, right = (f"{value:,.0f}" if value.is_integer() else f"{value:.5g}" for value in (x_low, x_high))
    lines.insert(bottom + 1, f" {left}{right:>{max(width - len(left), 1)}}")
    return "\n".join(lines)


def _bounds(values: list[float], log: bool = False) -> tuple[float, float]:
    """Least and greatest value, a little apart."""
    low, high = float(min(values)), float(max(values))
    if low < high:
        return low, high
    return (low / 2, low * 2) if log else (low - max(abs(low) / 2, 0.5), low + max(abs(low) / 2, 0.5))


def _drawn(values: list[float], log_y: bool) -> list[float]:
    """Values with NaN for those that no axis can show."""
    return [v if abs(v) < _WIDEST and (v > 1 / _WIDEST or not log_y) else math.nan for v in values]


def picture(plot: Plot, out: IO[bytes], format: str) -> None:
    """Write the curves as `png` or `svg`. MirrorError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MirrorError(
            "pictures need matplotlib: pip install 'wandb-mirror[plot]', or leave -o out for a plot on the terminal"
        ) from None
    style = {
        "svg.hashsalt": "mirror",
        "svg.fonttype": "none",
        "text.usetex": False,
        "axes.formatter.use_mathtext": False,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        _draw(axes, plot)
        figure.savefig(out, format=format, dpi=150, metadata={"Date": None} if format == "svg" else {"Software": None})


def _draw(axes: Any, plot: Plot) -> None:
    lines = []
    for i, curve in enumerate(plot.curves.values()):
        x: Any = curve.x
        if plot.x == "_timestamp":
            x = _times(curve.x)
        color = f"C{i % 10}"
        style = ("-", "--", ":", "-.")[i // 10 % 4]
        mark = "." if len(curve.x) == 1 else ""
        lines += axes.plot(x, _drawn(curve.mean, plot.log_y), color=color, linestyle=style, linewidth=1.4, marker=mark)
        if plot.by is not None:
            low, high = _drawn(curve.low, plot.log_y), _drawn(curve.high, plot.log_y)
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    if plot.log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(short(plot.title, _LONGEST_TITLE), parse_math=False)
    axes.set_xlabel(short(plot.x), parse_math=False)
    if len(plot.curves) > 1:
        # Labels that begin with `_` would be left out, so they are put in afterwards.
        legend = axes.legend(lines, [str(i) for i in range(len(lines))], fontsize="small", frameon=False)
        if plot.by is not None:
            legend.set_title(short(plot.by))
            legend.get_title().set_parse_math(False)
        for text, label in zip(legend.get_texts(), plot.curves, strict=True):
            text.set_parse_math(False)
            text.set_text(short(label))


def _times(seconds: list[float]) -> Any:
    import numpy as np

    return np.array([int(s * 1e6) if abs(s) < 2**32 else "NaT" for s in seconds], "datetime64[us]")
