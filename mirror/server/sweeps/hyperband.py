"""Hyperband, W&B's `early_terminate`: a run that reaches a bracket (a number of logged values of the metric) without
being among the best 1/eta of the runs that did is told to stop."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mirror.errors import UsageError
from mirror.server.history import reading as history
from mirror.server.live import ENDED
from mirror.server.look import Found, Look
from mirror.server.rows import parse_row

_MOST_ROWS = 1 << 31


@dataclass(frozen=True)
class Hyperband:
    """`brackets` are numbers of values, ascending; `eta` is how many runs go in for one that goes on."""

    brackets: tuple[int, ...]
    eta: float


def read(spec: Any) -> Hyperband | None:
    """`early_terminate` of a sweep's configuration: {type: hyperband, min_iter: 3, eta: 3} or {max_iter: 27, s: 2}."""
    if spec is None:
        return None
    if not isinstance(spec, dict) or spec.get("type") != "hyperband":
        raise UsageError(f"the sweep's `early_terminate` must be a dictionary with `type: hyperband`, not `{spec}`")
    eta = spec.get("eta", 3)
    if not isinstance(eta, (int, float)) or not 1 < eta < 1e6:
        raise UsageError(f"`early_terminate.eta` is `{eta}`: use a number above 1")
    lowest, highest, s = spec.get("min_iter"), spec.get("max_iter"), spec.get("s")
    if lowest is not None:
        brackets = _ascending(_whole("min_iter", lowest), eta)
    elif highest is not None and s is not None:
        top = _whole("max_iter", highest)
        brackets = sorted({int(top / eta**k) for k in range(1, min(_whole("s", s), 64) + 1)} - {0})
    else:
        raise UsageError("`early_terminate` needs `min_iter`, or `max_iter` and `s`")
    if not brackets:
        raise UsageError("`early_terminate` has no bracket: `max_iter` is too small for `eta`")
    return Hyperband(tuple(brackets), eta)


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"`early_terminate.{name}` is `{value}`: use a whole number above 0")
    return value


def _ascending(first: int, eta: float) -> list[int]:
    found = [first]
    while (after := max(found[-1] + 1, int(found[0] * eta ** len(found)))) < _MOST_ROWS:
        found.append(after)
    return found


Reached = dict[int, float]
"""The best value (smaller is better) a run had when it reached each of its brackets."""


def losers(
    rule: Hyperband,
    metric: str,
    minimize: bool,
    runs: Mapping[str, Found],
    going_on: set[str],
    look: Look,
    kept: dict[str, Reached],
) -> list[str]:
    """Those of the runs that go on which should stop. `kept` is the memory of runs that have ended."""
    if all(history.count(look, runs[r], "history") < rule.brackets[0] for r in going_on & runs.keys()):
        return []
    reached: dict[str, Reached] = {}
    for name, found in runs.items():
        if name not in kept:
            made = _reached(rule, metric, minimize, found, look)
            if found.run.state in ENDED:
                kept[name] = made
            reached[name] = made
        else:
            reached[name] = kept[name]
    stopped = []
    for name in sorted(going_on & runs.keys()):
        if not reached[name]:
            continue
        bracket = max(reached[name])
        values = sorted(r[bracket] for r in reached.values() if bracket in r)
        if reached[name][bracket] > values[math.ceil(len(values) / rule.eta) - 1]:
            stopped.append(name)
    return stopped


def _reached(rule: Hyperband, metric: str, minimize: bool, found: Found, look: Look) -> Reached:
    best, made, n = math.inf, {}, 0
    for text in history.rows(look, found, "history", samples=_MOST_ROWS):
        value = parse_row(text).get(metric)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
            continue
        n += 1
        best = min(best, value if minimize else -value)
        at = bisect_right(rule.brackets, n) - 1
        if at >= 0 and rule.brackets[at] == n:
            made[n] = best
    return made
