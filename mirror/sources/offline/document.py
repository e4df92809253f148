"""What a run's logs say of it besides its rows: attributes, config, summary, metadata, how it ended.

A `Document` takes records in the order of the log and can be kept as JSON between two readings of a log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from mirror.records import Run, RunKey
from mirror.sources.offline.protobuf import as_dict, messages

_DEFINED = 3
"""MetricOptions.defined"""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass
class Document:
    """`started` and `created` are (seconds, nanoseconds) since 1970 of the log being read and of the first one.
    `first_step` is added to the steps of a log that resumes a run. Config and summary are JSON values; `telemetry` is
    W&B's message in hexadecimal digits; `metrics` are the definitions of `define_metric` by name."""

    name: str | None = None
    notes: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    sweep: str | None = None
    host: str | None = None
    commit: str | None = None
    username: str | None = None
    created: tuple[int, int] | None = None
    started: tuple[int, int] = (0, 0)
    branch: dict[str, Any] | None = None
    first_step: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    telemetry: str = ""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    preempting: bool = False
    ended: bool = False
    exit_code: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Document:
        return cls(**value)

    # -- records ------------------------------------------------------------------------------------------

    def begin(self, first_step: int) -> None:
        """Another log of the same run follows: the run goes on."""
        self.preempting, self.ended, self.exit_code, self.first_step = False, False, None, first_step

    def take(self, kind: str, record: Any) -> None:
        """One record (`wandb_internal_pb2.Record`), except history, summary and what files it names."""
        match kind:
            case "run":
                self._run(record.run)
            case "config":
                self._config(record.config)
            case "telemetry":
                self._telemetry(record.telemetry)
            case "environment":
                self._environment(record.environment)
            case "metric":
                self._metric(record.metric)
            case "preempting":
                self.preempting = True
            case "exit":
                self.ended, self.exit_code = True, record.exit.exit_code

    def _run(self, run: Any) -> None:
        self.name = run.display_name or self.name
        self.notes = run.notes or self.notes
        self.group = run.run_group or self.group
        self.job_type = run.job_type or self.job_type
        self.sweep = run.sweep_id or self.sweep
        self.host = run.host or self.host
        self.commit = run.git.commit or self.commit
        self.tags = list(run.tags) or self.tags
        if run.HasField("start_time"):
            self.started = (run.start_time.seconds, run.start_time.nanos)
            self.created = self.created or self.started
        if run.HasField("branch_point"):
            point = run.branch_point
            self.branch = {"run_id": point.run, "metric": point.metric, "value": point.value}
        self._config(run.config)
        self._telemetry(run.telemetry)
        self.update_summary(_changes(run.summary))

    def _config(self, config: Any) -> None:
        for path, text in _changes(config):
            put(self.config, path, text, merge=True)

    def update_summary(self, changes: Iterable[tuple[tuple[str, ...], str | None]]) -> None:
        for path, text in changes:
            put(self.summary, path, text)
            if path == ("_step",) and self.first_step and text is not None:
                self.summary["_step"] += self.first_step

    def _telemetry(self, telemetry: Any) -> None:
        merged = type(telemetry).FromString(bytes.fromhex(self.telemetry))
        merged.MergeFrom(telemetry)
        self.telemetry = merged.SerializeToString().hex()

    def _environment(self, environment: Any) -> None:
        self.username = environment.username or self.username
        self.host = self.host or environment.host or None
        self.commit = self.commit or environment.git.commit or None
        self.environment |= as_dict(environment)

    def _metric(self, metric: Any) -> None:
        key = "=" + metric.name if metric.name else "*" + metric.glob_name
        held = {} if metric._control.overwrite else self.metrics.get(key, {})
        self.metrics.pop(key, None)
        new = {"6": [], "7": []} | _numbered(metric, without=("_control", "_info"))
        if metric.glob_name:
            new["6"] = [flag for flag in new["6"] if flag != _DEFINED]  # the SDK says that of single metrics only
        self.metrics[key] = held | new

    # -- what it comes to ---------------------------------------------------------------------------------

    def run(self, key: RunKey, *, running: bool, heartbeat_at: datetime, url: str, metadata: str | None) -> Run:
        """The run as far as it was read. `running` says what a run without an end is: running or crashed."""
        ended = "failed" if self.exit_code else "finished"
        state = ended if self.ended else "running" if running else "crashed"
        if self.preempting and state != "finished":  # what becomes of it: W&B's guide on preemptible runs
            state = "preempting" if state == "running" else "preempted"
        fork = self.branch if self.branch and self.branch["run_id"] != key.run_id else None
        if metadata is None and self.environment:
            metadata = json.dumps(self.environment)
        return Run(
            key=key,
            name=self.name,
            state=state,
            tags=tuple(self.tags),
            group=self.group,
            job_type=self.job_type,
            notes=self.notes,
            username=self.username,
            created_at=_when(self.created) if self.created else None,
            heartbeat_at=heartbeat_at,
            commit=self.commit,
            host=self.host,
            sweep=self.sweep,
            url=url,
            config=json.dumps(self._wire_config()),
            summary=json.dumps(self.summary),
            system_summary=json.dumps(self.system) if self.system else None,
            metadata=metadata,
            exit_code=self.exit_code if self.ended else None,
            fork_run_id=fork["run_id"] if fork else None,
            fork_step=int(fork["value"]) if fork else None,
        )

    def _wire_config(self) -> dict[str, Any]:
        """The config as the SDK sends it: values wrapped, and its own part under `_wandb`, where `m` and `t` name
        the fields of their messages by number (wandb, core/internal/runconfig)."""
        own = dict(self.config.get("_wandb") or {})
        if self.telemetry:
            telemetry = messages().Record().telemetry
            telemetry.ParseFromString(bytes.fromhex(self.telemetry))
            own |= {"t": _numbered(telemetry), "m": self._metrics()}
            for name in ("cli_version", "python_version"):
                if value := getattr(telemetry, name):
                    own[name] = value
        if self.environment:
            own["e"] = {self.environment.get("writerId") or "0": self.environment}
        if self.branch:
            own["branch_point"] = {"run_id": self.branch["run_id"], "step": self.branch["value"]}
        values = {key: {"value": value} for key, value in self.config.items() if key != "_wandb"}
        return values | ({"_wandb": {"value": own}} if own else {})

    def _metrics(self) -> list[dict[str, Any]]:
        """Definitions of metrics; one that names its x-axis (field 4) says which definition that is (field 5)."""
        defined = dict(self.metrics)
        for metric in self.metrics.values():
            if axis := metric.get("4"):
                defined.setdefault("=" + axis, {"1": axis, "6": [], "7": []})
        places = {key: i for i, key in enumerate(defined, 1)}
        return [
            {k: v for k, v in m.items() if k != "4"} | ({"5": places["=" + m["4"]]} if m.get("4") else {})
            for m in defined.values()
        ]


def put(document: dict[str, Any], path: tuple[str, ...], text: str | None, *, merge: bool = False) -> None:
    """Set the value at a path, given as JSON text; remove it if that is None. With `merge` the items of a dictionary
    join those that are there, as the SDK does with a config (wandb, core/internal/runconfig)."""
    for name in path[:-1]:
        inner = document.get(name)
        if not isinstance(inner, dict):
            if text is None:
                return
            inner = document[name] = {}
        document = inner
    if text is None:
        document.pop(path[-1], None)
    else:
        document[path[-1]] = _merged(document.get(path[-1]), json.loads(text)) if merge else json.loads(text)


def _merged(held: Any, new: Any) -> Any:
    if not isinstance(held, dict) or not isinstance(new, dict):
        return new
    return held | {name: _merged(held.get(name), value) for name, value in new.items()}


def _changes(record: Any) -> Iterable[tuple[tuple[str, ...], str | None]]:
    for item in record.update:
        yield tuple(item.nested_key) or (item.key,), item.value_json
    for item in record.remove:
        yield tuple(item.nested_key) or (item.key,), None


def _numbered(message: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A message by the numbers of its fields; messages of flags inside it are lists of the flags that are set."""
    found: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        if descriptor.name in without:
            continue
        if descriptor.message_type is not None:
            value = [inner.number for inner, flag in value.ListFields() if flag is True]
        found[str(descriptor.number)] = value
    return found


def _when(at: tuple[int, int]) -> datetime:
    return _EPOCH + timedelta(seconds=at[0], microseconds=at[1] // 1000)
