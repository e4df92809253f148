"""Keys of logged metrics: which ones runs have, which ones matter most, which one was probably meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mirror.errors import NotFoundError
from mirror.query.rows import TABLE
from mirror.query.sql import asking
from mirror.records import Stream

if TYPE_CHECKING:
    from mirror.store import Reader

_TELLING = re.compile(r"loss|acc|error|reward|return|score|perplexity|bleu|f1|auc|iou|map", re.I)
_COUNTER = re.compile(r"(^|[/._])(epoch|step|iter|iteration|global_step|batch|samples|time)s?$", re.I)
_NEAR = 5

_KEYS = """
select key, sum(n_number + n_int + n_bool + n_nonfinite)::bigint as numbers, min(min_v) as least, max(max_v) as most
from metrics where list_contains($rids, rid) and not starts_with(key, '_') group by key having numbers > 0
"""


def main_metrics(reader: Reader, rid: int, most: int = 4) -> list[str]:
    """The metrics of a run that say most about it: those with telling names (loss, accuracy, ...) first, then those
    with the most values; counters and constants come last, W&B's own keys never."""
    with asking(reader) as connection:
        found = connection.execute(_KEYS, {"rids": [rid]}).fetchall()

    def rank(row: tuple[str, int, float | None, float | None]) -> tuple[bool, bool, bool, int, int, str]:
        key, numbers, least, greatest = row
        dull = bool(_COUNTER.search(key)) or least == greatest
        return (numbers < 2, dull, not _TELLING.search(key), -numbers, len(key), key)

    return [row[0] for row in sorted(found, key=rank)[:most]]


def stream_of(reader: Reader, rids: Sequence[int], key: str) -> Stream:
    """Where runs have numbers under a key: in their history, or among their system metrics.

    NotFoundError, with near matches, if in neither."""
    streams: tuple[Stream, ...] = ("history", "system")
    with asking(reader) as connection:
        for stream in streams:
            query = (
                f"select 1 from raw.{TABLE[stream]} h join raw.live l on l.rid = h.rid and l.{stream}_gen = h.gen "
                "where h.key = $key and list_contains($rids, h.rid) "
                "and h.kind in ('number', 'int', 'bool', 'nonfinite') limit 1"
            )
            if connection.execute(query, {"key": key, "rids": list(rids)}).fetchone():
                return stream
        known = [row[0] for row in connection.execute(_KEYS, {"rids": list(rids)}).fetchall()]
    raise NotFoundError(f"no run has numbers under the key `{key}`; {_hint(key, sorted(known))}")


def _hint(key: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, known, 1) or [name for name in known if name.lower() == key.lower()]
    if near:
        return f"did you mean `{near[0]}`?"
    if not known:
        return "these runs logged no numbers"
    more = f" and {len(known) - _NEAR} more (the view `metrics` lists all)" if len(known) > _NEAR else ""
    return "there are " + ", ".join(f"`{name}`" for name in known[:_NEAR]) + more
