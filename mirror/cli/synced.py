"""What is said at the end of a sync: its errors, its plan, its sum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.console import safe, table
from mirror.query.text import size_of

if TYPE_CHECKING:
    from mirror.records import Failure
    from mirror.sync.session import Planned, Result


def show_errors(result: Result, quiet: bool) -> None:
    for outcome in result.outcomes:
        project = f"{outcome.report.entity}/{outcome.report.project}"
        for message in outcome.messages:
            _error(f"{project}: {message}" if project not in message else message)
        for failure in outcome.failures:
            _error(f"{failure.key.path}: {failure.stage}: {failure.error}")
        if outcome.waiting and not quiet:
            for failure in outcome.waiting:
                _error(_waiting(failure))
    for message in result.errors:
        _error(message)


def _waiting(failure: Failure) -> str:
    until = failure.next_try.strftime("%Y-%m-%d %H:%M UTC")
    return f"{failure.key.path}: in quarantine until {until} ({failure.attempts} attempts): {failure.error}"


def _error(message: str) -> None:
    click.echo(safe(f"Error: {message}"), err=True)


def show_plan(planned: Sequence[Planned]) -> None:
    rows = []
    for p in planned:
        plan = p.plan
        waiting = len({f.key.storage_id for f in plan.waiting})
        unchanged = plan.unchanged + len(plan.rechecked)
        name = f"{p.project.entity}/{p.project.name}"
        cost = (p.cost.requests, size_of(p.cost.bytes)) if p.cost else (None, None)
        rows.append([name, len(plan.new), len(plan.changed), unchanged, len(plan.gone), waiting, plan.new_rows, *cost])
    table(["project", "new", "changed", "unchanged", "gone", "waiting", "rows to fetch", "~requests", "~bytes"], rows)
    costs = [p.cost for p in planned if p.cost]
    if costs:
        requests, nbytes = (sum(getattr(cost, name) for cost in costs) for name in ("requests", "bytes"))
        click.echo(
            f"About {_n(requests)} requests and {size_of(nbytes)}, judging by the listing and by earlier syncs; what "
            "new artifacts and bytes of files will take is not in it.",
            err=True,
        )


def show_summary(result: Result, root: Path, verbose: bool, seconds: float) -> None:
    reports = [outcome.report for outcome in result.outcomes]
    if verbose:
        for r in reports:
            name = safe(f"{r.source}: {r.entity}/{r.project}")
            click.echo(
                f"{name}: {r.outcome}; {_n(r.runs_listed)} runs, {_n(r.runs_new)} new, {_n(r.runs_changed)} changed, "
                f"{_n(r.runs_gone)} gone, {_n(r.runs_failed)} failed; {_n(r.rows)} rows; {_n(r.requests)} requests"
            )

    def total(name: str) -> int:
        return sum(getattr(r, name) for r in reports)

    parts = [f"{_n(total('runs_new'))} new", f"{_n(total('runs_changed'))} changed"]
    if gone := total("runs_gone"):
        parts.append(f"{_n(gone)} deleted at the source")
    if missing := sum(outcome.missing for outcome in result.outcomes):
        parts.append(f"{_n(missing)} not found (deleted, if the next sync does not find them either)")
    if failed := total("runs_failed"):
        parts.append(f"{_n(failed)} failed")
    if waiting := len({f.key.storage_id for outcome in result.outcomes for f in outcome.waiting}):
        parts.append(f"{_n(waiting)} in quarantine")
    reached = sum(r.outcome != "unreachable" for r in reports)
    projects = f"{reached} project{'s' * (reached != 1)}"
    click.echo(
        f"Synced {projects} into {safe(str(root))}: {_n(total('runs_listed'))} runs, {', '.join(parts)}; "
        f"{_n(total('rows'))} rows; {_n(total('requests'))} requests, {size_of(total('bytes'))} in {seconds:.1f} s."
    )


def _n(number: int) -> str:
    return f"{number:,}"
