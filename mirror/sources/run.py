"""One run on its way: its documents are there, its history, system metrics and console are read side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirror.errors import SourceError
from mirror.records import Fetched, Run
from mirror.sources.console import ConsoleReader
from mirror.sources.history import HistoryReader
from mirror.sources.protocol import Finished, Step, SystemMetrics, Trouble, Wanted
from mirror.wandb.documents import Manifest, RunDocuments
from mirror.wandb.ranges import SPARE_ROWS, Range
from mirror.wandb.rows import RowsAnswer, RowsAsk

GOING_ON = {"running", "pending", "preempting"}
_EVENT_BYTES = 700
"""What a row of system metrics is taken for."""


@dataclass(frozen=True)
class Memo:
    """What is noted with a run: digests of its list of files and of wandb-metadata.json, the shape of its history, and
    how far the console was read (which may hold any character, so it comes last)."""

    files: str = ""
    shape: str = ""
    metadata: str = ""
    console: str = ""

    def __str__(self) -> str:
        return f"{self.files}-{self.shape}.{self.metadata}.{self.console}"

    @classmethod
    def of(cls, text: str | None) -> Memo:
        listed, metadata, console = [*(text or "").split(".", 2), "", "", ""][:3]
        files, _, shape = listed.partition("-")
        return cls(files, shape, metadata, console)


class RunReader:
    """`ask` says what to ask of the server next (None: nothing), `answer` takes the reply; `take_steps` hands
    over what came, `finish` the rest. `manifest` and `memo` are set by whoever reads the files."""

    def __init__(self, wanted: Wanted, documents: RunDocuments, page_rows: int, most_events: int | None = None) -> None:
        self.wanted = wanted
        self.documents = documents
        self.manifest: Manifest | None = None
        self.memo = Memo()
        self.noted = Memo.of(wanted.memo)
        self._steps: list[Step] = []
        self._most_events = most_events
        self.history = HistoryReader(wanted, self.run, page_rows, self._steps, self.noted.shape)
        if "history" not in wanted.what:
            self.history.leave_out()
        self._events = self._events_wanted()
        ended = self.run.state not in GOING_ON
        self.console = ConsoleReader(wanted, self.run, self.noted.console, ended=ended, steps=self._steps)
        self._one_at_a_time = False
        self._gone = False

    @property
    def run(self) -> Run:
        return self.documents.run

    def trouble(self, stage: str, error: SourceError | str, *, doubtful: bool = False) -> None:
        self._steps.append(Trouble(self.run.key, stage, str(error), doubtful))

    def _events_wanted(self) -> int | None:
        """How many samples of system metrics to ask for: more than there are. None if all are held."""
        lines = self.run.events_line_count
        if "system" not in self.wanted.what:
            return None
        if lines == self.wanted.system.rows and (self.wanted.system.proven or not lines):
            return None
        wanted = 100_000 if lines is None else lines + lines // 10 + SPARE_ROWS
        return min(wanted, self._most_events or wanted)

    # -- asking -------------------------------------------------------------------------------------------

    def ask(self, limit: int) -> RowsAsk | None:
        """What to ask next, of about `limit` rows at most; None if there is nothing left."""
        question = None if self._gone else self.history.question(limit)
        events = None if self._gone or (self._one_at_a_time and question is not None) else self._events
        alone = self._one_at_a_time and (question is not None or events is not None)
        lines = None if self._gone or alone else self.console.question
        if question is None and events is None and lines is None:
            return None
        weight = self.console.expected // 10 if lines else 0
        weight += self.history.expected + (self.run.events_line_count or 0 if events else 0)
        range_, samples = (question, None) if isinstance(question, Range) else (None, question)
        return RowsAsk(
            self.run.key.run_id,
            range_,
            samples,
            events,
            lines,
            weight,
            divisible=self.history.divisible or lines is not None or (question is not None and events is not None),
        )

    @property
    def expected_bytes(self) -> int:
        """About how long the next answer will be."""
        events = _EVENT_BYTES * (self.run.events_line_count or 0) if self._events else 0
        return int(self.history.expected * self.history.row_bytes) + events + self.console.expected_bytes

    def answer(self, ask: RowsAsk, answer: RowsAnswer | SourceError | None) -> None:
        if answer is None:
            self._gone = True
        elif isinstance(answer, SourceError):
            self._failed(ask, answer)
        else:
            if ask.events is not None:
                self._take_events(ask.events, answer)
            if ask.lines is not None:
                self.console.answer(answer.lines)
            question = ask.range if ask.range is not None else ask.samples
            if question is not None:
                self.history.answer(question, answer)

    def _failed(self, ask: RowsAsk, error: SourceError) -> None:
        asked_history = ask.range is not None or ask.samples is not None
        if asked_history + (ask.events is not None) + (ask.lines is not None) > 1:
            self._one_at_a_time = True  # which of them is it?
        elif ask.lines is not None:
            if not self.console.shrink():
                self.console.fail(str(error))
        elif not asked_history:
            self._events = None
            self.trouble("system", error)
        elif not self.history.shrink():
            self.history.fail(str(error))

    def _take_events(self, asked: int, answer: RowsAnswer) -> None:
        got, now = len(answer.events), answer.events_lines
        if got >= asked and (now is None or now > got) and asked != self._most_events:
            self._events = 2 * asked
            return
        self._events = None
        said = self.run.events_line_count
        if not got and not now and not self.wanted.system.rows:
            return
        if not got and now:
            self.trouble("system", f"no samples came, the server says it has {now}", doubtful=True)
            return
        # A run that goes on may have got more between the two numbers.
        complete = said is None or said <= got <= max(said, now or 0)
        total = got if complete and said is not None else now
        fetched = Fetched("system", "events", asked, got, total, complete, sampled=not complete)
        self._steps.append(SystemMetrics(self.run.key, answer.events, fetched))

    # -- handing over -------------------------------------------------------------------------------------

    def take_steps(self) -> list[Step]:
        taken = list(self._steps)
        self._steps.clear()
        return taken

    def finish(self) -> list[Step]:
        if self._gone:
            return [*self.take_steps(), Finished(self.run.key, gone=True)]
        missing = self.wanted.missing - self.wanted.what
        memo = str(replace(self.memo, shape=self.history.shape, console=self.console.memo))
        return [
            *self.take_steps(),
            Finished(self.run.key, self.documents.fingerprint, memo, missing=missing),
        ]
