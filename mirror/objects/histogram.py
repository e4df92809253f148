"""`Histogram`: counts between edges, in the form W&B logs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mirror.objects.attrs import ArgumentError


class Histogram:
    """Counts of a sequence in `num_bins` bins of equal width (64, at most 512), as numpy counts them; or the
    `np_histogram` that numpy already made: counts and edges.

    >>> Histogram([1, 2, 2, 5], num_bins=2).histogram
    [3, 1]
    """

    MAX_LENGTH = 512

    def __init__(self, sequence: Sequence[Any] | None = None, np_histogram: Any = None, num_bins: int = 64) -> None:
        if np_histogram:
            if len(np_histogram) != 2:
                raise ArgumentError(f"`np_histogram` is a pair of counts and edges, got {len(np_histogram)} parts")
            counts, edges = np_histogram
        else:
            import numpy as np

            counts, edges = np.histogram(sequence if sequence is not None else [], bins=num_bins)
        self.histogram: list[Any] = counts.tolist() if hasattr(counts, "tolist") else list(counts)
        self.bins: list[float] = edges.tolist() if hasattr(edges, "tolist") else list(edges)
        if len(self.histogram) > self.MAX_LENGTH:
            raise ArgumentError(f"a histogram has at most {self.MAX_LENGTH} bins, got {len(self.histogram)}")
        if len(self.histogram) + 1 != len(self.bins):
            raise ArgumentError(
                f"{len(self.histogram)} counts lie between {len(self.histogram) + 1} edges, got {len(self.bins)} edges"
            )

    def to_json(self, run: Any = None) -> dict[str, Any]:
        """The value as it is logged."""
        return {"_type": "histogram", "values": self.histogram, "bins": self.bins}
