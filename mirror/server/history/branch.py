"""Forks and rewinds: runs whose history goes on from a step of a run that was there before.

`wandb.init(fork_from="id?_step=5")` makes a new run and says in its config where it branches off
(`_wandb.branch_point`); the server gives it the rows up to that step. `wandb.init(resume_from="id?_step=5")` asks for
`rewindRun`: what came after that step is not part of the run any more. Either way the number of rows tells the client
where its own begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mirror.errors import UsageError
from mirror.records import Fetched
from mirror.server.history import reading as history
from mirror.server.history.keys import KeyCatalogue
from mirror.server.home import Home
from mirror.server.live import now
from mirror.server.look import Found
from mirror.server.rows import dumps, one_line, parse_row
from mirror.store import Writer
from mirror.store.cells import decode

_AT_ONCE = 5000
_TRIES = 20


def rows_until(home: Home, found: Found, step: int) -> Iterator[list[str]]:
    """The rows of a run up to a step, some thousands at a time."""
    shelf, lines = history.settled(home, found.rid, "history") if found.live else (home.shelves.newest(), [])
    place = shelf.index.get(found.rid)
    for first in range(0, place.history_rows if place else 0, _AT_ONCE):
        assert place
        chosen = f"row >= {first} and row < {first + _AT_ONCE} and step <= {step}"
        yield history.read(shelf, place, "history", chosen)
    kept = [line for line in lines if _step(line) <= step]
    if kept:
        yield kept


def _step(line: str) -> float:
    value = parse_row(line).get("_step")
    return value if isinstance(value, (int, float)) else float("inf")


def fork(home: Home, rid: int, parent: Found, step: int) -> None:
    """Give a new run the history of its parent. One that has rows already keeps them: clients ask again."""
    _, live = home.writable()
    with live.held(rid) as held:
        if held is None or live.spool.count(rid, "history"):
            return
        count = 0
        for rows in rows_until(home, parent, step):
            live.spool.append(rid, "history", count, [one_line(row) for row in rows])
            count += len(rows)
            live.relieve(held)


def rewind(home: Home, found: Found, step: int) -> None:
    """Take a run back to a step: rows up to it are its history in a new generation, the summary is that of then."""
    pen, live = home.writable()
    home.own(found)
    for _ in range(_TRIES):
        with live.held(found.rid) as held:
            if held is not None:  # somebody logs to it, or did until he was killed
                live.end(held, "killed", None)
        pen.do(lambda _: None)
        current = home.whole_look().runs([found.rid])
        if current and not current[0].live:
            break
    else:
        raise UsageError(f"run `{found.run.key.path}` cannot be rewound while somebody logs to it: stop that first")
    key = found.run.key

    def job(writer: Writer) -> None:
        summary: dict[str, Any] = {}
        catalogue, count = KeyCatalogue(), 0
        writer.begin(key, "history")
        for rows in rows_until(home, current[0], step):
            cells = decode(rows)
            writer.append(key, "history", cells)
            catalogue.add(cells)
            for row in rows:
                summary |= parse_row(row)
            count += len(rows)
        writer.publish(key, "history", Fetched("history", "rewound", got=count, total=count))
        changed = replace(
            current[0].run,
            summary=dumps(summary).decode(),
            history_keys=catalogue.text(),
            history_line_count=count,
            updated_at=now(),
        )
        writer.put_run(changed)

    pen.do(job)
    rewound = home.whole_look().runs([found.rid])
    home.reopen(rewound[0])
    with live.held(found.rid) as held:
        if held is not None:
            live.beat(held)
