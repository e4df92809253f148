"""The one thread that owns the store's `Writer`. Requests hand it jobs; jobs that wait together share a commit."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from mirror.errors import StoreError
from mirror.store import Writer

T = TypeVar("T")
Job = Callable[[Writer], Any]

_AT_ONCE = 200


class WriterThread:
    """Runs jobs one after the other on a `Writer` and commits; a job's future is done when its commit is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._jobs: queue.SimpleQueue[tuple[Job, Future[Any]] | None] = queue.SimpleQueue()
        self._writer: Writer | None = None
        ready: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="writer", daemon=True)
        self._thread.start()
        self.store_id = ready.result()

    def submit(self, job: Callable[[Writer], T]) -> Future[T]:
        """Queue a job. What it raises comes out of the future, and nothing it put is committed."""
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def do(self, job: Callable[[Writer], T]) -> T:
        """Run a job and wait for its commit."""
        return self.submit(job).result()

    def close(self) -> None:
        """Finish the queued jobs and release the writer."""
        self._jobs.put(None)
        self._thread.join()

    def _open(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self._root)
        return self._writer

    def _reopen(self) -> None:
        """Drop everything that was put and not committed. Never raises: closing brings files up to date that only
        other programs read, and a disk without room must not end the one thread that writes."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                writer.close()
            except StoreError as e:
                print(f"mirror serve: {e}", file=sys.stderr, flush=True)
            except Exception:
                traceback.print_exc()

    def _run(self, ready: Future[str]) -> None:
        try:
            ready.set_result(self._open().store_id)
        except BaseException as exc:
            ready.set_exception(exc)
            return
        ending = False
        while not ending:
            batch = []
            item = self._jobs.get()
            while item is not None:
                batch.append(item)
                if len(batch) == _AT_ONCE or self._jobs.empty():
                    break
                item = self._jobs.get()
            ending = item is None
            if batch and not self._together(batch):
                for job, future in batch:
                    self._alone(job, future)
        self._reopen()

    def _together(self, batch: list[tuple[Job, Future[Any]]]) -> bool:
        """All jobs and one commit; False if one of them failed and nothing was kept."""
        try:
            writer = self._open()
            results = [job(writer) for job, _ in batch]
            writer.commit()
        except Exception as exc:
            self._reopen()
            if len(batch) == 1:
                batch[0][1].set_exception(exc)
                return True
            return False
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
        return True

    def _alone(self, job: Job, future: Future[Any]) -> None:
        try:
            writer = self._open()
            result = job(writer)
            writer.commit()
        except Exception as exc:
            self._reopen()
            future.set_exception(exc)
        else:
            future.set_result(result)
