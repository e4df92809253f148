"""A wide view made into a file: what `Mirror.create_wide` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.errors import NotFoundError, UsageError
from mirror.paths import canonical_source, parse
from mirror.query.export import replacing, write
from mirror.query.sql import Result, execute
from mirror.query.wide.catalogue import PREFIX
from mirror.query.wide.cells import OWN
from mirror.store.views import quoted

if TYPE_CHECKING:
    from mirror.store import Reader

TABLE = "history_wide"


def create_wide(
    reader: Reader, project: str, keys: Sequence[str] | None, to: str | Path, *, source: str | None = None
) -> Path:
    """Write the history of a project with a column per key to `to`, whole or not at all. UsageError for a suffix
    other than .parquet and .duckdb or a place inside the mirror, NotFoundError for a project that is not held."""
    path = Path(to)
    if path.suffix not in (".parquet", ".duckdb"):
        raise UsageError(f"`{path}` is neither a .parquet nor a .duckdb file: name one")
    if path.absolute().parent.resolve().is_relative_to(reader.layout.root.resolve()):
        raise UsageError(f"`{path}` lies inside the mirror: choose a place outside `{reader.layout.root}`")
    found = selected(reader, project, keys, source)
    if path.suffix == ".parquet":
        with replacing(path) as out:
            write(found, "parquet", out, seekable=True)
    else:
        _database(found, path)
    return path


def selected(reader: Reader, project: str, keys: Sequence[str] | None, source: str | None = None) -> Result:
    """The rows of a project's history, run by run in logged order; without `keys` all of them are columns."""
    wanted = parse(project, want="project")
    host = source or (wanted.base_url and canonical_source(wanted.base_url))
    params = {"project": wanted.project, "entity": wanted.entity, "source": host}
    given = {name: value for name, value in params.items() if value is not None}
    if wanted.project is None or wanted.run_id is not None:
        raise UsageError(f"`{project}` names no project: write entity/project")
    where = " and ".join(f"{name} = ${name}" for name in given)
    if not execute(reader, f"select 1 from runs where {where} limit 1", given).fetchone():
        raise NotFoundError(f"the mirror holds no runs of `{project}`; `mirror status` lists its projects")
    own = [name for name in OWN if name != "step"]
    named = [f"{quoted(PREFIX + key)} as {quoted(_free(key))}" for key in dict.fromkeys(keys or ())]
    columns = "*" if keys is None else ", ".join([*own, *named])
    return execute(reader, f"select {columns} from history_wide where {where} order by rid, row", given)


def _free(key: str) -> str:
    """The name of a key's column: as in `select *`."""
    return PREFIX + key if not key or key in OWN else key


def _database(found: Result, path: Path) -> None:
    import duckdb

    target = path.with_name(f".{path.name}.tmp")
    target.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(target)) as db:
            rows = found.batches()
            db.register("rows", rows)
            db.execute(f"create table {TABLE} as select * from rows")
        target.replace(path)
    finally:
        target.unlink(missing_ok=True)
