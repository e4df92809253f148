"""What a sweep tries next: W&B's search spaces, and the searches grid, random and bayes over them.

A search space is a list of `Dimension`s, one for each parameter that varies; a nested parameter is one with a longer
path. Every dimension turns a number in [0, 1) into a value (the inverse of its distribution function), so that drawing
is the same for all of them and a search can be made in the unit cube.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from mirror.errors import UsageError

METHODS = ("grid", "random", "bayes")
_MOST_CHOICES = 100_000
_CANDIDATES = 1000
_OBSERVED = 300
_TINY = 1e-12


@dataclass(frozen=True)
class Dimension:
    """`choices` are all values of a parameter that has finitely many, in order; `draw` is used for the others.
    `weights` are the probabilities of the choices, equal ones if None."""

    path: tuple[str, ...]
    choices: Sequence[Any] | None = None
    weights: tuple[float, ...] | None = None
    draw: Callable[[float], Any] | None = None
    ordered: bool = True
    """Whether near values do nearly the same: numbers do, names do not."""

    def value(self, u: float) -> Any:
        if self.choices is None:
            assert self.draw
            return self.draw(min(max(u, _TINY), 1 - _TINY))
        if self.weights is None:
            return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]
        at = int(np.searchsorted(np.cumsum(self.weights), u, side="right"))
        return self.choices[min(at, len(self.choices) - 1)]


Params = dict[str, Any]
"""Parameters of a run by name; nested ones are dictionaries."""


class Space:
    """The search space of a sweep's `parameters`. `UsageError` says which parameter is wrong."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.dimensions = list(_dimensions(parameters, ()))

    def params(self, values: Sequence[Any]) -> Params:
        """The parameters with these values, in the order of the dimensions."""
        made: Params = {}
        for dimension, value in zip(self.dimensions, values, strict=True):
            place = made
            for name in dimension.path[:-1]:
                place = place.setdefault(name, {})
            place[dimension.path[-1]] = value
        return made

    def at(self, point: Sequence[float]) -> Params:
        """The parameters at a point of the unit cube."""
        return self.params([d.value(float(u)) for d, u in zip(self.dimensions, point, strict=True)])

    # -- grid ---------------------------------------------------------------------------------------------

    def check_grid(self) -> None:
        for dimension in self.dimensions:
            if dimension.choices is None:
                raise UsageError(
                    f"parameter `{'.'.join(dimension.path)}` has infinitely many values, which a grid cannot try: "
                    "list its `values`, use q_uniform or int_uniform, or choose `method: random`"
                )

    @property
    def size(self) -> int:
        """How many combinations a grid has."""
        return math.prod(len(d.choices) for d in self.dimensions if d.choices is not None)

    def combination(self, number: int) -> Params:
        """The grid's combination of that number; the last parameter varies fastest."""
        values: list[Any] = []
        for dimension in reversed(self.dimensions):
            assert dimension.choices is not None
            number, at = divmod(number, len(dimension.choices))
            values.append(dimension.choices[at])
        return self.params(values[::-1])

    # -- bayes --------------------------------------------------------------------------------------------

    def features(self, points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Points (n, d) as the model sees them: choices without an order become one column each."""
        columns = []
        for i, dimension in enumerate(self.dimensions):
            u = points[:, i]
            if dimension.choices is None or dimension.ordered:
                columns.append(u)
            else:
                at = [dimension.choices.index(dimension.value(x)) for x in u]
                columns += list(np.eye(len(dimension.choices))[at].T * math.sqrt(0.5))
        return np.stack(columns, axis=1)


def next_by_model(
    space: Space, points: Sequence[Sequence[float]], losses: Sequence[float], rng: np.random.Generator
) -> list[float]:
    """The point of the unit cube with the highest expected improvement on the losses seen so far, by a Gaussian
    process with a Matérn 5/2 kernel whose length is fitted. Random while too little is known."""
    d = len(space.dimensions)
    known = [(p, y) for p, y in zip(points, losses, strict=True) if math.isfinite(y)][-_OBSERVED:]
    if len(known) < 3:
        return [float(u) for u in rng.random(d)]
    seen = np.array([p for p, _ in known], dtype=float)
    y = np.array([v for _, v in known], dtype=float)
    spread = float(y.std())
    y = (y - y.mean()) / (spread if spread > 0 else 1.0)
    best = seen[np.argsort(y)[:5]]
    near = np.repeat(best, _CANDIDATES // 10, axis=0) + rng.normal(0, 0.05, (len(best) * (_CANDIDATES // 10), d))
    candidates = np.concatenate([rng.random((_CANDIDATES, d)), np.clip(near, 0, 1 - _TINY)])
    x, c = space.features(seen), space.features(candidates)
    mean, deviation = min((_posterior(x, y, c, length) for length in (0.1, 0.2, 0.4, 0.8)), key=lambda f: f[0])[1:]
    z = (y.min() - mean) / deviation
    normal = NormalDist()
    cdf = np.array([normal.cdf(v) for v in z])
    gain = (y.min() - mean) * cdf + deviation * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return [float(u) for u in candidates[int(np.argmax(gain))]]


def _posterior(x: Any, y: Any, candidates: Any, length: float) -> tuple[float, Any, Any]:
    """Negative log likelihood of the model with this length, and its mean and deviation at the candidates."""

    def kernel(a: Any, b: Any) -> Any:
        r = np.sqrt(np.maximum(((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2), 0)) * math.sqrt(5) / length
        return (1 + r + r * r / 3) * np.exp(-r)

    factor = np.linalg.cholesky(kernel(x, x) + 1e-4 * np.eye(len(x)))
    weights = np.linalg.solve(factor.T, np.linalg.solve(factor, y))
    across = kernel(candidates, x)
    half = np.linalg.solve(factor, across.T)
    fit = 0.5 * float(y @ weights) + float(np.log(np.diag(factor)).sum())
    return fit, across @ weights, np.sqrt(np.maximum(1 - (half**2).sum(axis=0), 1e-10))


# -- parameters of the configuration ----------------------------------------------------------------------


def _dimensions(parameters: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[Dimension]:
    if not isinstance(parameters, Mapping) or not parameters:
        raise UsageError(f"`parameters{''.join('.' + p for p in above)}` of the sweep must name at least one parameter")
    for name, spec in parameters.items():
        path = (*above, str(name))
        if not isinstance(spec, Mapping):
            raise _wrong(path, "must be a dictionary like {values: [..]}, {value: ..} or {min: .., max: ..}")
        if "parameters" in spec:
            yield from _dimensions(spec["parameters"], path)
        else:
            yield _checked(_dimension(path, spec))


def _checked(dimension: Dimension) -> Dimension:
    try:
        dimension.value(0.0), dimension.value(1.0)
    except OverflowError:
        raise _wrong(
            dimension.path, "reaches beyond the numbers there are: bounds of log_uniform are exponents"
        ) from None
    return dimension


def _wrong(path: Sequence[str], what: str) -> UsageError:
    return UsageError(f"parameter `{'.'.join(path)}` of the sweep {what}")


def _dimension(path: tuple[str, ...], spec: Mapping[str, Any]) -> Dimension:
    kind = spec.get("distribution") or _implied(path, spec)
    if kind == "constant":
        if "value" not in spec:
            raise _wrong(path, "is constant and needs a `value`")
        return Dimension(path, (spec["value"],), ordered=False)
    if kind in ("categorical", "categorical_w_probabilities"):
        return _categorical(path, spec)
    if kind == "int_uniform":
        low, high = _number(path, spec, "min"), _number(path, spec, "max")
        if low != int(low) or high != int(high) or low > high:
            raise _wrong(path, f"needs whole numbers min <= max, not `{low}` and `{high}`")
        return Dimension(path, range(int(low), int(high) + 1))
    rounded = kind.removeprefix("q_")
    inverse = _inverse(path, rounded, spec)
    if inverse is None:
        raise _wrong(path, f"has the distribution `{kind}`, which is none of {', '.join(sorted(_NAMES))}")
    if rounded == kind:
        return Dimension(path, draw=inverse)
    q = _number(path, spec, "q", 1.0)
    if q <= 0:
        raise _wrong(path, f"needs a `q` above 0, not `{q}`")
    if kind == "q_uniform":
        low, high = _number(path, spec, "min"), _number(path, spec, "max")
        first, last = round(low / q), round(high / q)
        if last - first < _MOST_CHOICES:
            return Dimension(path, [_step(n, q) for n in range(first, last + 1)], _edges(low, high, q))
    return Dimension(path, draw=lambda u: _step(round(inverse(u) / q), q))


_NAMES = {
    "constant", "categorical", "categorical_w_probabilities", "int_uniform", "uniform", "normal", "log_normal",
    "log_uniform", "log_uniform_values", "inv_log_uniform", "inv_log_uniform_values", "beta", "q_uniform", "q_normal",
    "q_log_normal", "q_log_uniform", "q_log_uniform_values", "q_beta",
}  # fmt: skip


def _implied(path: tuple[str, ...], spec: Mapping[str, Any]) -> str:
    if "values" in spec:
        return "categorical"
    if "value" in spec:
        return "constant"
    if "min" in spec and "max" in spec:
        both = [type(spec["min"]), type(spec["max"])]
        if both in ([int, int], [float, float]):
            return "int_uniform" if both == [int, int] else "uniform"
        raise _wrong(path, "has bounds of two types: give both as whole numbers or both as decimals")
    raise _wrong(path, "needs `values`, a `value`, `min` and `max`, or a `distribution`")


def _categorical(path: tuple[str, ...], spec: Mapping[str, Any]) -> Dimension:
    values = spec.get("values")
    if not isinstance(values, list) or not values:
        raise _wrong(path, "needs a list of `values`")
    weights = spec.get("probabilities")
    if weights is not None:
        good = isinstance(weights, list) and len(weights) == len(values)
        if not good or any(not _is_number(w) or w < 0 for w in weights) or not math.isclose(sum(weights), 1):
            raise _wrong(path, "needs as many `probabilities` as values, none below 0, which add up to 1")
    ordered = all(_is_number(v) for v in values) and values == sorted(values)
    return Dimension(path, values, tuple(weights) if weights else None, ordered=ordered)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(path: tuple[str, ...], spec: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = spec.get(name, default)
    if isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            value = float(value)
        except ValueError:
            value = None
    if not _is_number(value):
        raise _wrong(path, f"needs a number as `{name}`, not `{spec.get(name)}`")
    return float(value) if isinstance(spec.get(name), str) else value


def _inverse(path: tuple[str, ...], kind: str, spec: Mapping[str, Any]) -> Callable[[float], float] | None:
    """The inverse of a distribution function; None if there is no distribution of that name."""
    if kind in ("normal", "log_normal"):
        sigma = _number(path, spec, "sigma", 1.0)
        if sigma <= 0:
            raise _wrong(path, f"needs a `sigma` above 0, not `{sigma}`")
        normal = NormalDist(_number(path, spec, "mu", 0.0), sigma).inv_cdf
        return normal if kind == "normal" else lambda u: math.exp(normal(u))
    if kind == "beta":
        return _beta(path, spec)
    if kind not in _NAMES or kind in ("constant", "categorical", "categorical_w_probabilities", "int_uniform"):
        return None
    low, high = _number(path, spec, "min"), _number(path, spec, "max")
    if low > high:
        raise _wrong(path, f"needs min <= max, not `{low}` and `{high}`")
    if kind.endswith("_values"):
        if low <= 0:
            raise _wrong(path, f"is drawn by its logarithm and needs a `min` above 0, not `{low}`")
        low, high = math.log(low), math.log(high)
    if kind == "uniform":
        return lambda u: low + u * (high - low)
    if kind == "inv_log_uniform":
        return lambda u: math.exp(-high + u * (high - low))
    return lambda u: math.exp(low + u * (high - low))


def _beta(path: tuple[str, ...], spec: Mapping[str, Any]) -> Callable[[float], float]:
    a, b = _number(path, spec, "a", 1.0), _number(path, spec, "b", 1.0)
    if a <= 0 or b <= 0:
        raise _wrong(path, f"needs `a` and `b` above 0, not `{a}` and `{b}`")
    x = np.linspace(0, 1, 20_001)
    middle = (x[1:] + x[:-1]) / 2
    density = np.exp((a - 1) * np.log(middle) + (b - 1) * np.log1p(-middle))
    total = np.concatenate([[0.0], np.cumsum(density)])
    return lambda u: float(np.interp(u, total / total[-1], x))


def _step(n: int, q: float) -> int | float:
    """n times q: a whole number if q is one, else with no more digits than q has."""
    if q == int(q):
        return n * int(q)
    return float(f"{n * q:.12g}")


def _edges(low: float, high: float, q: float) -> tuple[float, ...]:
    """How likely each multiple of q is when a number between low and high is rounded to it."""
    first, last = round(low / q), round(high / q)
    if first == last:
        return (1.0,)
    ends = [min(max((n + 0.5) * q, low), high) for n in range(first - 1, last + 1)]
    return tuple((b - a) / (high - low) for a, b in pairwise(ends))


def canonical(params: Params) -> str:
    """Equal for equal parameters: numbers by value, so that 1 and 1.0 are the same."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return float(value) if _is_number(value) and abs(value) < 2**53 else value

    return json.dumps(plain(params), sort_keys=True, default=str)
