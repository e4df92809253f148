"""Mutations of projects, runs and files."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from graphql import GraphQLResolveInfo

from mirror.errors import NotFoundError, UsageError
from mirror.forks import branch_point
from mirror.records import Project, Run
from mirror.server import alerts, files, ids
from mirror.server.access.asker import check_entity
from mirror.server.context import Context, ProjectNode, RunNode, context
from mirror.server.history import branch
from mirror.server.live import now
from mirror.server.look import Found
from mirror.server.resolvers.runs import run_id_on_wire
from mirror.server.rows import parse_row
from mirror.store import Writer

_FIELDS = {
    "groupName": "group",
    "description": "description",
    "displayName": "name",
    "notes": "notes",
    "commit": "commit",
    "config": "config",
    "host": "host",
    "jobType": "job_type",
    "state": "state",
    "sweep": "sweep",
    "tags": "tags",
    "summaryMetrics": "summary",
}
"""Inputs of `upsertBucket` that are attributes of a run. A null leaves the attribute as it is."""

_REFUSED = re.compile(r"[/\\#?%:\x00-\x1f\x7f\ud800-\udfff]")
STATES = {"running", "pending", "finished", "failed", "crashed", "killed", "preempting", "preempted"}


def checked_part(kind: str, value: str) -> str:
    """An entity, project or run id that can stand in a path; the SDK refuses the same characters. An entity must be
    open to whoever asks."""
    if not value.strip() or len(value) > 128 or _REFUSED.search(value) or value in (".", ".."):
        raise UsageError(
            f"`{value[:150]}` cannot be the name of a {kind}: it needs 1 to 128 characters, "
            "none of them / \\ # ? % : or a control character"
        )
    if kind == "entity":
        check_entity(value)
    return value


def _upsert_model(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    entity = checked_part("entity", input.get("entityName") or ctx.entity)
    name = checked_part("project", input.get("name") or "")
    node, inserted = make_project(ctx, entity, name, input.get("description"))
    return {"model": node, "project": node, "inserted": inserted, "clientMutationId": input.get("clientMutationId")}


def make_project(ctx: Context, entity: str, name: str, description: str | None = None) -> tuple[ProjectNode, bool]:
    """The project of that name, made if it is new; whether it is."""
    pen, _live = ctx.home.writable()
    held = ctx.look.projects(entity, name)
    before = held[0] if held else Project(
        ctx.home.source, entity, name, ids.encode("Project", "v1", name, entity), created_at=now()
    )  # fmt: skip
    project = before if description is None else replace(before, description=description)
    if held and project == before:
        return ProjectNode(entity, name), False
    if before.source != ctx.home.source:
        raise UsageError(f"project `{entity}/{name}` is mirrored from `{before.source}` and cannot be changed here")

    def job(writer: Writer) -> None:
        writer.put_project(project)

    pen.do(job)
    ctx.look_again()
    return ProjectNode(entity, name), not held


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    found = {ours: given[theirs] for theirs, ours in _FIELDS.items() if given.get(theirs) is not None}
    if "tags" in found:
        found["tags"] = tuple(found["tags"])
    if "state" in found and found["state"] not in STATES:
        raise UsageError(f"`{found['state']}` is no state of a run: use one of {', '.join(sorted(STATES))}")
    for name in ("config", "summary"):
        if name in found:
            try:
                parse_row(found[name])
            except ValueError:
                raise UsageError(f"the {name} of the run is no JSON object: `{found[name][:80]}`") from None
    return found


def _upsert_bucket(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    changes = _changes(input)
    inserted = False
    if input.get("id"):
        found = _by_id(ctx, input["id"])
        ctx.home.edit(found, changes)
        rid = found.rid
    else:
        rid, inserted = _by_name(ctx, input, changes)
    look = ctx.look_again()
    after = look.runs([rid])
    if not after:
        raise NotFoundError("the run was deleted meanwhile")
    return {
        "bucket": RunNode(after[0], look),
        "inserted": inserted,
        "serverSettings": {"serverMessages": []},
        "clientMutationId": input.get("clientMutationId"),
    }


def _by_name(ctx: Context, given: dict[str, Any], changes: dict[str, Any]) -> tuple[int, bool]:
    entity = checked_part("entity", given.get("entityName") or ctx.entity)
    project = checked_part("project", given.get("modelName") or "uncategorized")
    name = given.get("name")
    if name is not None:
        checked_part("run", name)
        found = ctx.look.run(entity, project, name)
        if found is not None:
            ctx.home.edit(found, changes)
            return found.rid, False
    parent = _parent(ctx, entity, project, name, changes)
    at = now()
    run = Run(
        key=ctx.home.new_key(entity, project, name),
        state="running",
        username=ctx.username,
        user_name=ctx.username,
        created_at=at,
        heartbeat_at=at,
        updated_at=at,
    )
    run = replace(run, **changes)
    if parent:
        run = replace(run, fork_run_id=parent[0].run.key.run_id, fork_step=parent[1])
    rid, inserted = ctx.home.create(replace(run, name=run.name or run.key.run_id))
    if parent and inserted:
        branch.fork(ctx.home, rid, *parent)
    if not inserted:
        ctx.home.edit(ctx.look_again().runs([rid])[0], changes)
    return rid, inserted


def _parent(
    ctx: Context, entity: str, project: str, name: str | None, changes: dict[str, Any]
) -> tuple[Found, int] | None:
    """The run and the step that a new run branches off from."""
    point = branch_point(changes.get("config"))
    if point is None or point[0] == name:
        return None
    found = ctx.look.run(entity, project, point[0])
    if found is None:
        raise NotFoundError(f"there is no run `{entity}/{project}/{point[0]}` here to fork from")
    return found, point[1]


def _rewind(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    entity, project = input.get("entityName") or ctx.entity, input.get("projectName") or "uncategorized"
    if input["metricName"] != "_step":
        raise UsageError(f"a run can be rewound to a `_step`, not to a value of `{input['metricName'][:100]}`")
    found = by_path(ctx, {"entityName": entity, "projectName": project, "runName": input["runName"]})
    branch.rewind(ctx.home, found, int(input["metricValue"]))
    look = ctx.look_again()
    return {"rewoundRun": RunNode(look.runs([found.rid])[0], look), "clientMutationId": input.get("clientMutationId")}


def _by_id(ctx: Context, storage_id: str) -> Found:
    found = ctx.look.run_by_id(storage_id)
    if found is None:
        raise NotFoundError(f"there is no run with the id `{storage_id}` here")
    return found


def by_path(ctx: Context, given: dict[str, Any]) -> Found:
    """The run that a mutation names by entity, project and run."""
    entity, project, name = given["entityName"], given["projectName"], given["runName"]
    found = ctx.look.run(entity, project, name)
    if found is None:
        raise NotFoundError(f"there is no run `{entity}/{project}/{name}` here")
    return found


def _delete_run(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    found = _by_id(ctx, input["id"])
    ctx.home.delete(found)
    if input.get("deleteArtifacts"):
        ctx.artifacts.delete_logged_by(found.run.key)
    return {"success": True, "clientMutationId": input.get("clientMutationId")}


def _stop_run(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    _pen, live = ctx.home.writable()
    found = _by_id(ctx, input["id"])
    ctx.home.own(found)
    with live.held(found.rid) as held:
        if held is not None:
            held.stop_asked = True
    return {"success": True, "clientMutationId": input.get("clientMutationId")}


_TRANSITIONS = {
    "pending": {"running", "failed", "crashed", "preempted"},
    "failed": {"pending", "running"},
}
"""State asked for -> states it can be asked from (the SDK's `Run.update_state`)."""


def _update_state(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    found = _by_id(ctx, input["id"])
    state = input["state"]
    if found.run.state not in _TRANSITIONS.get(state, ()):
        raise UsageError(f"a run that is `{found.run.state}` cannot be made `{state}`")
    ctx.home.set_state(found, state)
    return {"success": True, "clientMutationId": input.get("clientMutationId")}


def _create_files(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    ctx.home.writable()
    found = by_path(ctx, input)
    ctx.home.own(found)
    key = found.run.key
    made = []
    for name in input["files"]:
        files.checked_name(name)
        url = ctx.link(files.upload_path(key.entity, key.project, key.run_id, name), sign="PUT")
        made.append({"id": ids.encode("File", found.rid, name), "name": name, "displayName": name, "uploadUrl": url})
    return {
        "runID": run_id_on_wire(RunNode(found, ctx.look), info),
        "uploadHeaders": [],
        "files": made,
        "clientMutationId": input.get("clientMutationId"),
    }


def _mark_uploaded(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    """The bytes told us already; a file that never arrived is an error the client should know of."""
    ctx = context(info)
    found = by_path(ctx, input)
    held = ctx.home.files(ctx.look, found)
    missing = [name for name in input["files"] if name not in held]
    if missing:
        raise NotFoundError(f"`{missing[0][:200]}` was not uploaded to run `{found.run.key.path}`")
    return {"success": True, "clientMutationId": input.get("clientMutationId")}


def _delete_files(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    by_run: dict[int, list[str]] = {}
    for file_id in input["files"]:
        parts = ids.decode(file_id, "File", 2)
        if parts is None or not parts[0].isdigit():
            raise NotFoundError(f"there is no file with the id `{file_id[:100]}` here")
        by_run.setdefault(int(parts[0]), []).append(parts[1])
    for found in ctx.look.runs(list(by_run)):
        ctx.home.drop_files(found, by_run[found.rid])
    ctx.look_again()
    return {"success": True, "clientMutationId": input.get("clientMutationId")}


def _alert(_: None, info: GraphQLResolveInfo, input: dict[str, Any]) -> dict[str, Any]:
    ctx = context(info)
    found = by_path(ctx, input | {"entityName": input.get("entityName") or ctx.entity})
    alerts.keep(ctx.home, found, input["title"], input["text"], input.get("severity") or "INFO", ctx.username)
    return {"success": True, "clientMutationId": input.get("clientMutationId")}


RESOLVERS: dict[str, dict[str, Any]] = {
    "Mutation": {
        "upsertModel": _upsert_model,
        "upsertBucket": _upsert_bucket,
        "rewindRun": _rewind,
        "deleteRun": _delete_run,
        "stopRun": _stop_run,
        "updateRunState": _update_state,
        "createRunFiles": _create_files,
        "markRunFilesUploaded": _mark_uploaded,
        "deleteFiles": _delete_files,
        "notifyScriptableRunAlert": _alert,
    },
}
