"""Things that are sent one after the other, artifacts and reports: each is noted in the ledger when it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mirror.errors import MirrorError
from mirror.importers.account import INTERRUPTED, Account, Totals
from mirror.importers.ledger import Ledger
from mirror.importers.places import Namespace
from mirror.importers.run import Destination
from mirror.wandb.budget import Stopped


@dataclass(frozen=True)
class Item:
    """One thing: what the source calls it, whether the destination lists it, and what sends it and accounts for it."""

    source: str
    storage_id: str
    account: Account
    is_there: bool
    send: Callable[[Account], None]


def send_each(
    items: Iterable[Item], there: Destination, place: Namespace, ledger: Ledger, *, incremental: bool
) -> Totals:
    """Send things to a project. What was sent before, is there and has not changed is left alone if `incremental`; one
    that fails leaves the others alone."""
    totals = Totals()
    stop, destination = there.client.transport.budget.stop, there.client.source
    for item in items:
        if stop.is_set():
            break
        account = item.account
        sent = ledger.success(item.source, item.storage_id, destination, place.path) if incremental else None
        if item.is_there and sent is not None and sent.fingerprint == account.fingerprint:
            account.skipped = True
            totals.add(account)
            continue
        try:
            item.send(account)
        except Stopped:
            break
        except MirrorError as e:
            account.error = str(e)
        ledger.write(
            account, source=item.source, storage_id=item.storage_id, destination=destination, namespace=place.path
        )
        totals.add(account)
    else:
        return totals
    totals.errors.append(INTERRUPTED)
    return totals
