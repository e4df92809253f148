"""Who is asking, what the server can do, entities and organizations."""

from __future__ import annotations

from typing import Any

from graphql import GraphQLResolveInfo

from mirror.server import ids
from mirror.server.access.asker import asker
from mirror.server.context import Context, context
from mirror.server.wire import connection

_FEATURES = {
    "ARTIFACT_COLLECTIONS_FILTERING_SORTING",
    "ARTIFACT_TAGS",
    "CLIENT_IDS",
    "LARGE_FILENAMES",
    "MARK_RUN_FILES_UPLOADED",
    "STRUCTURED_CONSOLE_LOGS",
    "FILESTREAM_GZIP",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
}
"""Features of the SDK's enum `ServerFeature` that this server has; it asks by name and takes others for absent."""


def user(username: str, ctx: Context, email: str = "") -> dict[str, Any]:
    return {
        "id": ids.encode("User", "v1", username),
        "name": username,
        "username": username,
        "email": email,
        "admin": False,
        "entity": ctx.entity,
        "flags": "{}",
        "apiKeys": {"edges": []},
        "teams": lambda _info: connection([entity(name) for name in _teams(username, ctx)]),
        "projects": connection([]),
        "runs": connection([]) | {"totalCount": 0},
    }


def entity(name: str) -> dict[str, Any]:
    return {
        "id": ids.encode("Entity", "v1", name),
        "name": name,
        "available": False,
        "readOnly": False,
        "readOnlyAdmin": False,
        "privateOnly": False,
        "isPaid": False,
        "storageBytes": 0,
        "defaultAccess": "PRIVATE",
        "isTeam": True,
        "entityType": "team",
        "codeSavingEnabled": True,
        "xxhashDigestsEnabled": False,
        "members": [],
    }


def _entities(ctx: Context) -> list[str]:
    """Every entity that exists for whoever asks."""
    return sorted({ctx.entity} | ctx.look.entities() | (asker().entities or set()))


def _teams(username: str, ctx: Context) -> list[str]:
    """The teams of whoever asks; those of others are not his business."""
    who = asker()
    if who.entities is None:
        return _entities(ctx)
    return sorted(who.entities - {username}) if username == who.name else []


def _viewer(_: None, info: GraphQLResolveInfo) -> dict[str, Any] | None:
    ctx = context(info)
    return user(ctx.username, ctx, ctx.user_email) if ctx.authorized else None


def _entity(_: None, info: GraphQLResolveInfo, name: str | None = None) -> dict[str, Any] | None:
    ctx = context(info)
    return entity(name) if name in _entities(ctx) else None


def _server_info(_: None, __: GraphQLResolveInfo) -> dict[str, Any]:
    return {
        "cliVersionInfo": {"max_cli_version": "0.31.0"},
        "features": [{"name": name, "isEnabled": True} for name in sorted(_FEATURES)],
    }


def _users(_: None, __: GraphQLResolveInfo, **___: Any) -> dict[str, Any]:
    return connection([])


RESOLVERS = {
    "Query": {
        "viewer": _viewer,
        "entity": _entity,
        "serverInfo": _server_info,
        "users": _users,
    },
}
