"""`Run`: one run's attributes, documents, rows, files and artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mirror.objects.attrs import ArgumentError, Attrs, Name, OfflineError, Text, Time, refused, refusing
from mirror.objects.held import Held, document
from mirror.objects.summary import Summary
from mirror.query.text import safe

if TYPE_CHECKING:
    from mirror.objects.artifacts import Artifacts
    from mirror.objects.files import File, Files
    from mirror.objects.history import HistoryScan
    from mirror.objects.runs import Page
    from mirror.objects.sweeps import Sweep
    from mirror.objects.users import User
    from mirror.records import Stream

_SETTABLE = ("name", "display_name", "notes", "tags", "group", "job_type", "description")
"""Attributes that a server lets others change."""


class Run(Attrs):
    """A run as the mirror holds it. Attributes have W&B's names: `id` is the run id, `name` the display name;
    times are ISO 8601 text in UTC. Attributes and documents are those of the time the object was made.

    With `Api(online=True)`, `name`, `notes`, `tags`, `group`, `job_type`, `description`, `config` and `summary` can be
    changed; `update` writes all of it to the run's server, and the mirror follows."""

    def __init__(self, held: Held, rid: int, page: Page) -> None:
        self._held = held
        self._rid = rid
        self._page = page
        self._row = page.rows[rid]
        self._shown: dict[str, str | None] = {}
        """The documents that were handed out to be changed, as they were then."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _SETTABLE:
            super().__setattr__(name, value)
            return
        if not self._held.online:
            raise refused(f"setting `{name}`")
        good = isinstance(value, str) or (value is None and name not in ("name", "display_name"))
        if name == "tags":
            value = list(value) if isinstance(value, (list, tuple, set)) else value
            good = isinstance(value, list) and all(isinstance(tag, str) for tag in value)
        if not good:
            raise ArgumentError(f"`{name}` of a run cannot be `{value!r}`")
        for alias in ("name", "display_name") if name in ("name", "display_name") else (name,):
            self.__dict__[alias] = value

    def __repr__(self) -> str:
        return safe(f"<Run {'/'.join(self.path)} ({self.state})>")

    # -- attributes -----------------------------------------------------------------------------------------

    id = Name("run_id")
    name = Text("name")
    """The display name."""
    display_name = Text("name")
    entity = Name("entity")
    project = Name("project")

    @property
    def path(self) -> list[str]:
        """Entity, project and run id, percent-encoded like parts of a URL."""
        return [quote(part, safe="") for part in (self.entity, self.project, self.id)]

    @property
    def _where(self) -> str:
        """The same as commands take it."""
        return f"{self.entity}/{self.project}/{self.id}"

    source = Name("source")
    """The host the run was mirrored from."""
    storage_id = Name("storage_id")
    state = Text("state")

    @cached_property
    def tags(self) -> list[str]:
        return list(self._row["tags"] or ())

    group = Text("group")
    job_type = Text("job_type")
    notes = Text("notes")
    description = Text("description")

    @property
    def user(self) -> User | None:
        """Who made the run, where the source said so."""
        from mirror.objects.users import User

        name = self._text("username")
        return None if name is None else User(name, self._text("user_name"))

    @property
    def username(self) -> str:
        """The entity, as in wandb, where this name is deprecated; `user.username` is who made the run."""
        self._held.tell_once("username", "`run.username` is the entity, as in wandb: `run.user.username` made the run")
        return self.entity

    commit = Text("commit")
    """The git commit."""
    host = Text("host")
    url = Text("url")
    """The run's page at its source."""
    created_at = Time("created_at")
    heartbeat_at = Time("heartbeat_at")
    updated_at = Time("updated_at")
    deleted_at = Time("deleted_at")
    """When the run was found gone at its source; None for a run that is there."""

    @property
    def read_only(self) -> bool:
        return True

    sweep_name = Text("sweep")
    """The sweep's id."""

    @cached_property
    def sweep(self) -> Sweep | None:
        """The sweep the run belongs to."""
        from mirror.objects.sweeps import find

        if self.sweep_name is None:
            return None
        return find(self._held, self.entity, self.project, self.sweep_name, self.source)

    @property
    def history_line_count(self) -> int:
        """Rows of history, as the source counts them; those that are held where it does not say."""
        total = self._row["history_total"]
        return int(self._row["history_rows"] if total is None else total)

    @property
    def lastHistoryStep(self) -> int:
        """The highest `_step` held, -1 without any."""
        last = self._row["history_last_step"]
        return -1 if last is None else int(last)

    # -- documents ------------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config, without `value` wrappers and W&B's own keys. Changes stay in this object until `update`."""
        from mirror.store.documents import unwrapped

        return unwrapped(self._handed_out("config"))

    @cached_property
    def rawconfig(self) -> dict[str, Any]:
        """The config with W&B's own keys, without `value` wrappers."""
        return {
            key: value["value"] if isinstance(value, dict) and "value" in value else value
            for key, value in self._document("config_raw").items()
        }

    @cached_property
    def summary(self) -> Summary:
        """The summary, as it came."""
        return Summary(self._handed_out("summary"), self._write_summary)

    @property
    def summary_metrics(self) -> dict[str, Any]:
        return self._document("summary_raw")

    @cached_property
    def system_metrics(self) -> dict[str, Any]:
        """The last value of every system metric."""
        return self._document("system_summary")

    @cached_property
    def history_keys(self) -> dict[str, Any] | None:
        """W&B's catalogue of the history's keys, None where the source gave none."""
        return self._document("history_keys") or None

    @cached_property
    def metadata(self) -> dict[str, Any] | None:
        """wandb-metadata.json (program, args, git, hardware), None if the source had none."""
        return self._document("metadata") or None

    # -- rows -----------------------------------------------------------------------------------------------

    def history(
        self,
        samples: int | None = 500,
        keys: Sequence[str] | None = None,
        x_axis: str = "_step",
        pandas: bool = True,
        stream: str = "default",
    ) -> Any:
        """Rows of the history as a data frame, or as a list of dictionaries (`pandas=False`).

        A history of more than `samples` rows is thinned out evenly, its first and last row included: the same rows
        each time, and a warning says of how many. `samples=None` gives all. With `keys`, rows that have all of
        them, reduced to `x_axis` and them; a data frame gets `_timestamp` as well. `stream="events"` or `"system"`
        gives system metrics.
        """
        from mirror.objects import history

        return history.history(self, samples, keys, x_axis, pandas, stream)

    def scan_history(
        self,
        keys: Sequence[str] | None = None,
        page_size: int = 1000,
        min_step: int = 0,
        max_step: int | None = None,
        use_cache: bool = True,
    ) -> HistoryScan:
        """Every row of the history, as logged, in logged order: nothing is sampled, repeated steps come twice.

        With `keys`, rows that have all of them, reduced to them (dots also reach nested values), as wandb has it.
        `min_step` is inclusive, `max_step` exclusive. `page_size` and `use_cache` change nothing here: rows are read
        in stretches of bounded size, whatever their number.
        """
        from mirror.objects.history import HistoryScan

        return HistoryScan(self, keys, page_size, min_step, max_step)

    beta_scan_history = scan_history

    # -- files and artifacts --------------------------------------------------------------------------------

    def files(self, names: Sequence[str] | None = None, pattern: str | None = None, per_page: int = 50) -> Files:
        """The run's files: all, those named, or those whose name is LIKE `pattern` (`%.json`)."""
        from mirror.objects.files import Files

        return Files(self, names, pattern)

    def file(self, name: str) -> File:
        """One file. Raises NotFoundError if the run has none of that name."""
        from mirror.objects.files import one_file

        return one_file(self, name)

    def logged_artifacts(self, per_page: int = 100) -> Artifacts:
        """Artifact versions that this run made."""
        from mirror.objects.artifacts import logged

        return logged(self)

    def used_artifacts(self, per_page: int = 100) -> Artifacts:
        """Artifact versions that this run declared as its inputs."""
        from mirror.objects.artifacts import used

        return used(self)

    # -- the rest of wandb's Run ----------------------------------------------------------------------------

    def load(self, force: bool = False) -> Run:
        """Nothing to do: what the mirror holds is read when it is looked at."""
        return self

    load_full_data = load

    def wait_until_finished(self) -> None:
        """Refused: a mirror does not hear from running runs until the next sync."""
        raise OfflineError(
            f"a mirror knows what the last sync saw (state `{self.state}`): follow a running run with wandb.Api()"
        )

    def to_html(self, height: int = 420, hidden: bool = False) -> str:
        """HTML that shows the run's page at its source."""
        if self.url is None:
            return f"<p>{escape('/'.join(self.path))}</p>"
        style = f"border:none;width:100%;height:{int(height)}px;" + ("display:none;" if hidden else "")
        return f'<iframe src="{escape(self.url)}?jupyter=true" style="{style}"></iframe>'

    # -- edits, for Api(online=True) ------------------------------------------------------------------------

    def update(self) -> None:
        """Write what was changed of the run to its server, read it back, and let the mirror follow.

        Raises OfflineError without Api(online=True); ConflictError if the server has another value by now of what was
        changed, NotFoundError if it has no such run any more, SourceError if it refuses: then nothing is changed.
        """
        self._write("config", "summary", attributes=True)

    save = update

    def upload_file(self, path: str, root: str = ".") -> File:
        """Upload a file, named by its path relative to `root`; the mirror holds its bytes, too."""
        from pathlib import Path

        from mirror.objects.files import name_below, one_file

        self._check_online("upload_file")
        from mirror.objects.editing import add_file

        name = name_below(path, root)
        add_file(self, Path(path), name)
        return one_file(self, name)

    def delete(self, delete_artifacts: bool = False) -> None:
        """Delete the run at its server. The mirror keeps what it holds, and `deleted_at` says that it is gone."""
        self._check_online("delete")
        from mirror.objects.editing import remove_run

        remove_run(self, delete_artifacts=delete_artifacts)

    def _check_online(self, name: str) -> None:
        if not self._held.online:
            raise refused(f"`Run.{name}()`")

    def _write_summary(self) -> None:
        self._write("summary")

    def _write(self, *documents: str, attributes: bool = False) -> None:
        self._check_online("update")
        from mirror.objects.editing import Changes, difference, write
        from mirror.store.documents import unwrapped

        changes = Changes()
        for name in _SETTABLE if attributes else ():
            if name != "display_name" and name in self.__dict__:
                before = list(self._row["tags"] or ()) if name == "tags" else self._row[name]
                if (before or None) != (self.__dict__[name] or None):
                    changes.attributes[name] = self.__dict__[name]
                    changes.seen[("attribute", name)] = before or None
        for name in documents:
            if name in self._shown:
                text = self._shown[name]
                before = document(text) if name == "summary" else unwrapped(document(text))
                difference(name, text, before, self.__dict__[name], changes)
        if not changes:
            return
        write(self, changes)
        for name in _SETTABLE if attributes else ():
            self.__dict__.pop(name, None)
        for name in documents:
            if name in self._shown:
                self._refill(name)

    def _refill(self, name: str) -> None:
        """What was handed out shows what the mirror holds now."""
        from mirror.store.documents import unwrapped

        found = self._handed_out(name)
        held = self.__dict__[name]
        if name == "summary":
            held._fill(found)
        else:
            held.clear()
            held.update(unwrapped(found))

    def _look_again(self) -> None:
        """To the newest state of the mirror; what was changed here and not written stays."""
        from mirror.objects.runs import Page

        self._held.reader.refresh()
        self._page = Page(self._held.state(), [self._rid], self._held.reader.relation("runs", self._rid))
        self._row = self._page.rows[self._rid]
        for name in ("rawconfig", "metadata", "system_metrics"):
            self.__dict__.pop(name, None)

    update_state = refusing("update_state")
    stop = refusing("stop")
    use_artifact = refusing("use_artifact")
    log_artifact = refusing("log_artifact")

    # -- helpers --------------------------------------------------------------------------------------------

    def _text(self, name: str) -> str | None:
        value = self._row[name]
        return None if value is None else str(value)

    def _document(self, column: str) -> dict[str, Any]:
        return document(self._page.document(self._rid, column))

    def _handed_out(self, name: str) -> dict[str, Any]:
        text = self._shown[name] = self._page.document(self._rid, f"{name}_raw")
        return document(text)

    def _held_rows(self, stream: Stream) -> int:
        return int(self._row["history_rows" if stream == "history" else "system_rows"])
