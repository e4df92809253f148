"""MLflow's own store over a SQLite file: it makes the file and its schema, experiments, runs, params and tags, with
MLflow's own checks."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mirror.errors import TerminalSourceError, UsageError

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore


def opened(path: Path, revision: str | None, first_artifacts: str | None) -> SqlAlchemyStore:
    """The store over a file, which is made if there is none (`revision` is None). `revision` is that of the file's
    schema, `first_artifacts` where its first experiment keeps artifacts.

    Raises UsageError without MLflow, TerminalSourceError if the file is of another MLflow: opened as it is, MLflow
    would migrate it in place, which a server that uses it would not survive.
    """
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
        from mlflow.store.db import utils
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    except ImportError as e:
        raise UsageError(f"`{path}` is written with MLflow's own store ({e}): pip install mlflow") from e
    logging.getLogger(utils.__name__).setLevel(logging.CRITICAL)  # it logs what it raises, with a traceback
    root = _artifact_root(path, first_artifacts)
    try:
        newest = utils._get_latest_schema_revision()
        if revision is None:
            _make(path, root)
        elif revision != newest:
            raise TerminalSourceError(
                f"`{path}` has the schema `{revision}`, and the MLflow that is installed here ({mlflow.__version__}) "
                f"writes `{newest}`: install the MLflow that made the file, or migrate it (`mlflow db upgrade "
                f"sqlite:///{path}`)"
            )
        return SqlAlchemyStore(f"sqlite:///{path}", root)
    except (MlflowException, OSError) as e:
        raise TerminalSourceError(f"MLflow cannot open `{path}`: {e}", e) from e


def _make(path: Path, root: str) -> None:
    """Beside its place, and then put there whole: MLflow cannot go on with a file whose making was interrupted."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        SqlAlchemyStore(f"sqlite:///{name}", root).engine.dispose()
        with contextlib.suppress(FileExistsError):  # of somebody who made it meanwhile
            os.link(name, path)
    finally:
        Path(name).unlink()


def _artifact_root(path: Path, first: str | None) -> str:
    """The folder of all experiments' artifacts: where the first one, which MLflow calls `0`, has its own, if that is on
    this machine; else `mlartifacts` beside the file, where a server that was started there keeps them."""
    url = urlsplit(first or "")
    if first and url.scheme in ("", "file") and PurePosixPath(url.path).name == "0":
        return first.rpartition("/")[0]
    return str(path.parent / "mlartifacts")
