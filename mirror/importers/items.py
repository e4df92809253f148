"""Things that are sent one after the other, artifacts and reports: each is noted in the ledger when it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mirror.importers.account import INTERRUPTED, Account, Totals
from mirror.importers.ledger import Ledger
from mirror.importers.places import Namespace
from mirror.importers.push import PushProgress
from mirror.importers.run import Destination
from mirror.wandb.budget import Stopped


@dataclass(frozen=True)
class Item:
    """One thing: what the source calls it, whether the destination lists it, what sends it and accounts for it, and how
    many bytes it has. `send` tells its second argument of bytes as they go."""

    source: str
    storage_id: str
    account: Account
    is_there: bool
    send: Callable[[Account, Callable[[int], None]], None]
    nbytes: int = 0


class Sent:
    """Hands on what is told of bytes of one thing, and adds it up. Called by several threads."""

    def __init__(self, progress: PushProgress) -> None:
        self.nbytes = 0
        self._progress = progress
        self._lock = threading.Lock()

    def __call__(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes
        self._progress.bytes(nbytes)


def send_each(
    what: str,
    items: Iterable[Item],
    there: Destination,
    place: Namespace,
    ledger: Ledger,
    *,
    incremental: bool,
    progress: PushProgress | None = None,
) -> Totals:
    """Send things to a project; `what` they are. What was sent before, is there and has not changed is left alone if
    `incremental`; one that fails leaves the others alone."""
    totals = Totals()
    progress = progress or PushProgress()
    stop, destination = there.client.transport.budget.stop, there.client.source
    waiting = []
    for item in items:
        account = item.account
        before = ledger.success(item.source, item.storage_id, destination, place.path) if incremental else None
        if item.is_there and before is not None and before.fingerprint == account.fingerprint:
            account.skipped = True
            totals.add(account)
        else:
            waiting.append(item)
    if waiting:
        progress.things(f"{what} to {place.path}", len(waiting), sum(item.nbytes for item in waiting))
    for item in waiting:
        if stop.is_set():
            break
        account, sent = item.account, Sent(progress)
        try:
            item.send(account, sent)
        except Stopped:
            break
        except Exception as e:
            account.failed(e)
        ledger.write(
            account, source=item.source, storage_id=item.storage_id, destination=destination, namespace=place.path
        )
        totals.add(account)
        sent(item.nbytes - sent.nbytes)  # what was there already, or lies elsewhere
        progress.thing(account)
    else:
        return totals
    totals.errors.append(INTERRUPTED)
    return totals
