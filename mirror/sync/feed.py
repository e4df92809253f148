"""The threads of a sync: workers ask the source, decoders turn rows into cells, the caller writes.

All three go on at once, and memory stays flat: rows on their way, from the answer to the store, are counted
in bytes, and a worker that would exceed the limit waits until the writer has caught up.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from mirror.errors import SourceError
from mirror.pool import Pool
from mirror.sources.protocol import Cells, ConsoleLines, Rows, Source, Step, SystemMetrics, Wanted
from mirror.store.cells import CellBatch, decode
from mirror.wandb.budget import Stopped
from mirror.wandb.rows import step_of

BYTES_UNDER_WAY = 16 << 20
"""Bytes of rows, as JSON, that may be between the network and the store."""
DECODERS = 2
_LINE_OVERHEAD = 200
"""What a console line takes besides its text."""


class Ordered:
    """A batch of cells; `by_step` if its rows had to be put into the order of their steps."""

    def __init__(self, cells: CellBatch, by_step: bool) -> None:
        self.cells = cells
        self.by_step = by_step


class _Gate:
    """Lets through what fits under a limit; always lets something through."""

    def __init__(self, limit: int, stop: threading.Event) -> None:
        self._limit = limit
        self._stop = stop
        self._used = 0
        self._changed = threading.Condition()

    def enter(self, size: int) -> None:
        with self._changed:
            while self._used and self._used + size > self._limit:
                if self._stop.is_set():
                    raise Stopped("stopped")
                self._changed.wait(0.2)
            self._used += size

    def leave(self, size: int) -> None:
        with self._changed:
            self._used -= size
            self._changed.notify_all()


class Feed:
    """The steps of many runs, fetched by several workers. Iterate it in the thread that writes.

    Iteration ends when all portions are done, or when `stop` is set. Raises what a worker raised, after
    everything that was read before.
    """

    def __init__(
        self,
        source: Source,
        portions: Iterable[Sequence[Wanted]],
        *,
        workers: int,
        stop: threading.Event,
        bytes_under_way: int = BYTES_UNDER_WAY,
    ) -> None:
        self._source = source
        self._stop = stop
        self._ended = threading.Event()
        self._gate = _Gate(bytes_under_way, self._ended)
        self._todo: queue.SimpleQueue[Sequence[Wanted]] = queue.SimpleQueue()
        count = 0
        for portion in portions:
            self._todo.put(portion)
            count += 1
        self._workers = min(workers, count)
        self._out: queue.SimpleQueue[tuple[Step, Future[Ordered] | None, int] | BaseException | None]
        self._out = queue.SimpleQueue()
        self._decoders = Pool(DECODERS, "decode")

    def __iter__(self) -> Iterator[tuple[Step, Ordered | SourceError | None]]:
        """Steps, with the cells of `Rows`, or with the error if a row could not be read."""
        for i in range(self._workers):
            threading.Thread(target=self._work, name=f"fetch-{i}", daemon=True).start()
        running = self._workers
        failure: BaseException | None = None
        try:
            while running and not self._stop.is_set():
                try:
                    item = self._out.get(timeout=0.2)
                except queue.Empty:
                    continue
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    running -= 1
                    failure = failure or item
                    self._ended.set()
                else:
                    step, future, size = item
                    cells = None if future is None else _result(future)
                    del item, future  # a page of rows is large: let it go as soon as it is written
                    yield step, cells
                    del step, cells
                    self._gate.leave(size)
        finally:
            self._ended.set()
            self._decoders.close()
        if failure is not None and not self._stop.is_set():
            raise failure

    def _work(self) -> None:
        try:
            while not self._ended.is_set():
                try:
                    portion = self._todo.get_nowait()
                except queue.Empty:
                    break
                for step in self._source.fetch(portion):
                    size = _size(step)
                    self._gate.enter(size)
                    decoding = self._decoders.submit(_decode, step) if isinstance(step, Rows) else None
                    if self._ended.is_set():
                        break
                    self._out.put((step, decoding, size))
        except Stopped:
            self._out.put(None)
        except BaseException as e:
            self._out.put(e)
        else:
            self._out.put(None)


def _size(step: Step) -> int:
    if isinstance(step, Cells):
        return step.cells.nbytes
    if isinstance(step, ConsoleLines):
        return sum(_LINE_OVERHEAD + len(line[3]) for line in step.lines)
    return sum(map(len, step.rows)) if isinstance(step, Rows | SystemMetrics) else 0


def _result(future: Future[Ordered]) -> Ordered | SourceError:
    try:
        return future.result()
    except SourceError as e:
        return e


def _decode(step: Rows) -> Ordered:
    cells = decode(step.rows, step.string_is_nonfinite)
    if not step.paged or _ascending(cells):
        return Ordered(cells, by_step=False)
    # Pages come by step; within a page a server may follow its log, in which steps can start anew.
    rows = sorted(step.rows, key=lambda row: step_of(row) or 0)
    return Ordered(decode(rows, step.string_is_nonfinite), by_step=True)


def _ascending(cells: CellBatch) -> bool:
    """Whether the steps of a batch never go down."""
    steps = cells.table["step"]
    if steps.null_count:
        return True  # rows without a step have no place of their own: leave them where they came
    of_row = np.zeros(cells.rows, np.int64)
    of_row[cells.table["row"].to_numpy()] = steps.to_numpy()
    return bool(np.all(of_row[1:] >= of_row[:-1]))
