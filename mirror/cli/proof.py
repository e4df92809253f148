"""What a push or an import with --verify does in the end: everything is read back and compared."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from mirror.cli.progress import steps

if TYPE_CHECKING:
    from mirror.importers.push import PushOptions
    from mirror.importers.run import Destination
    from mirror.store import Reader


def read_back(
    reader: Reader,
    rids: Sequence[int],
    there: Destination,
    options: PushOptions,
    *,
    paths: Sequence[str],
    source: str | None,
    bare: bool,
    kinds: Collection[str],
    quiet: bool,
    stop: threading.Event,
) -> bool:
    """Compare what `options` sent of these runs, which are among those that `paths` of `source` name, with what is
    there, and say what differs; whether nothing does. `bare` says that projects without runs were sent, too."""
    from mirror.cli.verify import show_findings
    from mirror.importers.sent import Sent
    from mirror.paths import parse
    from mirror.sources.wandb import WandbSource
    from mirror.verify.against import chosen, compare_project
    from mirror.verify.findings import Findings
    from mirror.verify.other import Other

    sent = Sent(options.ledger or reader.layout.root, there.client.source)
    server = WandbSource(there.client, downloads=4)
    findings, wanted = Findings(100), set(rids)
    with closing(server.downloads):
        for held in list(chosen(reader, [parse(path) for path in paths], source)):
            runs = [row for row in held.runs if row["rid"] in wanted]
            if not runs and (held.runs or not bare):
                continue
            held = replace(held, runs=runs, whole=held.whole and len(runs) == len(held.runs))
            went = {held.here: options.place(held.here)}
            other = Other(server, {**options.remapping, **went}, sent)
            rows = sum(row["history_rows"] + row["system_rows"] for row in runs)
            with steps(f"reading {held.here.path} back", rows, unit="rows") as advance:
                compare_project(
                    reader, held, other, findings, kinds=kinds, workers=options.workers, stop=stop, progress=advance
                )
    if not quiet or not findings.ok:
        show_findings("Read back and compared", findings)
    return findings.ok
