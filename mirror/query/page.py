"""Everything about one run on a page: the facts behind `mirror show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mirror.query.keys import main_metrics
from mirror.query.leaves import config, summary
from mirror.query.origin import arguments, command, git, metadata
from mirror.query.rows import TABLE
from mirror.query.sql import asking, dicts

if TYPE_CHECKING:
    import duckdb

    from mirror.store import Reader

_BIGGEST = 5
_ITEMS = 20
_MACHINE = ("os", "python", "executable", "gpu", "gpu_count", "cpu_count", "cudaVersion")


def page(reader: Reader, row: Mapping[str, Any], *, logs: int = 0, main: Sequence[str] = ()) -> dict[str, Any]:
    """Facts about the run with this row of `runs`, by topic, in the order of the page; times are in UTC, sizes in
    bytes, durations in seconds. `logs` is how many of the last console lines to read, `main` the metrics that matter
    (a sensible few, if none are named)."""
    with asking(reader) as cursor:
        documents = _rows(cursor, "select config_raw, summary_raw from runs_raw where rid = ?", [row["rid"]])[0]
        known = metadata(row["metadata"])
        return {
            "path": f"{row['entity']}/{row['project']}/{row['run_id']}",
            "run": _run(row),
            "origin": _origin(row, known),
            "config": config(documents["config_raw"]),
            "summary": summary(documents["summary_raw"]),
            "metrics": _metrics(cursor, row["rid"], list(main) or main_metrics(reader, row["rid"])),
            "system": _system(cursor, reader, row["rid"]),
            "files": _files(cursor, row["rid"]),
            "logs": _logs(cursor, row["rid"], logs),
            "artifacts": _artifacts(cursor, row),
            "sweep": _sweep(cursor, row),
            "mirror": _mirror(row),
        }


def _rows(cursor: duckdb.DuckDBPyConnection, query: str, params: Sequence[Any]) -> list[dict[str, Any]]:
    return dicts(cursor.execute(query, params))


def _run(row: Mapping[str, Any]) -> dict[str, Any]:
    start, end = row["created_at"], row["heartbeat_at"]
    names = ("name", "source", "state", "exit_code", "created_at", "heartbeat_at")
    return {name: row[name] for name in names} | {
        "duration": (end - start).total_seconds() if start is not None and end is not None else None,
        "deleted_at": row["deleted_at"], "group": row["group"], "job_type": row["job_type"], "sweep": row["sweep"],
        "tags": list(row["tags"] or ()), "notes": row["notes"], "url": row["url"],
    }  # fmt: skip


def _origin(row: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    remote, commit = git(known)
    machine = {name: known.get(name) for name in _MACHINE if isinstance(known.get(name), (str, int, float))}
    return {
        "command": command(known), "arguments": arguments(known), "user": row["username"] or row["user_name"],
        "host": row["host"] or known.get("host"), "git_remote": remote, "commit": row["commit"] or commit,
    } | machine  # fmt: skip


def _metrics(cursor: duckdb.DuckDBPyConnection, rid: int, main: Sequence[str]) -> dict[str, Any]:
    keys = _rows(cursor, "select count(*) as n from metrics where rid = ? and not starts_with(key, '_')", [rid])[0]["n"]
    query = """
        select key, n as "values", n_nonfinite as nonfinite, first_step, last_step, last_v as last,
               min_v as least, max_v as greatest
        from metrics where rid = ? and list_contains(?, key) order by list_position(?, key), path_id
    """
    return {"keys": keys, "main": _rows(cursor, query, [rid, list(main), list(main)])}


def _system(cursor: duckdb.DuckDBPyConnection, reader: Reader, rid: int) -> list[dict[str, Any]]:
    query = f"""
        select key, count(*) as "values", avg(v) as mean, min(v) as least, max(v) as greatest
        from {reader.relation(TABLE["system"], rid)}
        where gen = (select system_gen from raw.live where rid = ?) and kind in ('number', 'int')
          and not starts_with(key, '_')
        group by key order by key
    """
    return _rows(cursor, query, [rid])


def _files(cursor: duckdb.DuckDBPyConnection, rid: int) -> dict[str, Any]:
    query = (
        "select count(*) as count, sum(size)::bigint as bytes, "
        "coalesce(sum(size) filter (where sha256 is not null), 0)::bigint as bytes_held from files where rid = ?"
    )
    total = _rows(cursor, query, [rid])[0]
    query = f"select name, size from files where rid = ? order by size desc nulls last, name limit {_BIGGEST}"
    return total | {"biggest": _rows(cursor, query, [rid])}


def _logs(cursor: duckdb.DuckDBPyConnection, rid: int, tail: int) -> dict[str, Any]:
    count = _rows(cursor, "select count(*) as lines from logs where rid = ?", [rid])[0]
    query = "select line, ts, level, text from logs where rid = ? order by line desc limit ?"
    return count | {"tail": _rows(cursor, query, [rid, tail])[::-1] if tail else []}


def _artifacts(cursor: duckdb.DuckDBPyConnection, row: Mapping[str, Any]) -> dict[str, Any]:
    run = [row["source"], row["entity"], row["project"], row["run_id"]]
    logged = f"""
        select type, collection, version, aliases, size from artifacts
        where source = ? and run_entity = ? and run_project = ? and run_id = ? and deleted_at is null
        order by created_at, collection, version limit {_ITEMS}
    """
    used = f"""
        select type, collection, version, used_as from artifact_uses
        where source = ? and run_entity = ? and run_project = ? and run_id = ?
        order by collection, version limit {_ITEMS}
    """
    return {"logged": _rows(cursor, logged, run), "used": _rows(cursor, used, run)}


def _sweep(cursor: duckdb.DuckDBPyConnection, row: Mapping[str, Any]) -> dict[str, Any] | None:
    query = """
        select sweep_id, name, state, method, metric, goal, run_count from sweeps
        where source = ? and entity = ? and project = ? and sweep_id = ?
    """
    found = _rows(cursor, query, [row["source"], row["entity"], row["project"], row["sweep"]])
    return found[0] if found else None


def _mirror(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("history_rows", "history_total", "history_complete", "history_lossless", "history_road", "history_note",
             "history_last_step", "system_rows", "system_total", "system_sampled", "mirrored_at")  # fmt: skip
    return {name: row[name] for name in names}
