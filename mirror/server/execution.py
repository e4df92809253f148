"""Running GraphQL: the schema of `schema.graphql` with the resolvers bound to it, and its errors on W&B's wire."""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import graphql.execution
from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLError,
    GraphQLScalarType,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    Source,
    build_schema,
    execute_sync,
    get_operation_ast,
    parse,
    validate,
)

from mirror.errors import MirrorError
from mirror.server.access.limits import MAX_TOKENS, Refused, check_document
from mirror.server.rows import Texts

Resolver = Callable[..., Any]
Resolvers = Mapping[str, Mapping[str, Resolver]]

_QUOTED = re.compile(r"'([^']*)'")
_DOCUMENTS = 256


# graphql-core 3.3 executes with an `Executor`, 3.2 with an `ExecutionContext`.
_BASE: Any = getattr(graphql.execution, "Executor", None) or graphql.execution.ExecutionContext
_EXECUTOR = "executor_class" if hasattr(graphql.execution, "Executor") else "execution_context_class"


class _Executor(_BASE):  # type: ignore[misc]
    """Completes a page of thousands of row texts as one value: item by item it takes as long as reading them."""

    def complete_list_value(self, return_type: Any, *args: Any, **kwargs: Any) -> Any:
        for given in args:
            if type(given) is Texts:
                return given
        return super().complete_list_value(return_type, *args, **kwargs)


@cache
def schema() -> GraphQLSchema:
    """The executable schema."""
    from mirror.server.resolvers import RESOLVERS

    made = build_schema(files("mirror.server").joinpath("schema.graphql").read_text(encoding="utf-8"))
    for type_name, fields in RESOLVERS.items():
        for field_name, resolver in fields.items():
            made.type_map[type_name].fields[field_name].resolve = resolver
    made.type_map["ArtifactCollection"].resolve_type = lambda *_: "ArtifactSequence"
    made.type_map["ArtifactCreator"].resolve_type = lambda *_: "Run"
    _bind_scalars(made)
    return made


def _bind_scalars(made: GraphQLSchema) -> None:
    def int64(value: Any) -> int:
        # W&B's clients send 64-bit integers as numbers or as strings; GraphQL's own Int stops at 2^31.
        if isinstance(value, bool) or not isinstance(value, (int, str, float)):
            raise GraphQLError(f"Int64 cannot represent `{value!r}`")
        try:
            number = int(value)
        except (ValueError, OverflowError):
            raise GraphQLError(f"Int64 cannot represent `{value!r}`") from None
        return max(-(2**63), min(2**63 - 1, number))

    scalar = made.type_map["Int64"]
    assert isinstance(scalar, GraphQLScalarType)
    scalar.parse_value = int64
    scalar.parse_literal = lambda node, _variables=None: int64(getattr(node, "value", None))


class Documents:
    """Parsed and checked documents by their text: clients send the same few texts again and again."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, DocumentNode] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> DocumentNode:
        """`Refused` (400) if `text` is no valid document of our schema."""
        with self._lock:
            if text in self._held:
                self._held.move_to_end(text)
                return self._held[text]
        try:
            document = parse(Source(text), no_location=False, max_tokens=MAX_TOKENS)
        except GraphQLError as exc:
            raise Refused(400, exc.message) from exc
        except RecursionError:
            raise Refused(400, "the query is nested too deeply") from None
        check_document(document)
        if errors := validate(schema(), document, max_errors=5):
            raise Refused(400, wire_message(errors[0].message))
        if len(text) < 100_000:
            with self._lock:
                self._held[text] = document
                if len(self._held) > _DOCUMENTS:
                    self._held.popitem(last=False)
        return document


def wire_message(message: str) -> str:
    """W&B's wording: double quotes and no suggestions. The SDK looks for `Cannot query field "features" on type
    "ServerInfo".` to find out what an older server lacks."""
    return _QUOTED.sub(r'"\1"', message.split(" Did you mean ")[0])


def operation(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    found = get_operation_ast(document, name or None)
    if found is None:
        raise Refused(400, f"there is no operation `{name}` in the document" if name else "which operation?")
    return found


def is_mutation(found: OperationDefinitionNode) -> bool:
    return bool(found.operation != OperationType.QUERY)


def asks_only_for_viewer(found: OperationDefinitionNode) -> bool:
    """The query with which clients test a key; a bad key gets `viewer: null` for it, 401 for others."""
    selections = found.selection_set.selections
    return all(isinstance(s, FieldNode) and s.name.value in ("viewer", "__typename") for s in selections)


def run(
    document: DocumentNode, variables: dict[str, Any] | None, operation_name: str | None, context: Any
) -> dict[str, Any]:
    """The response object: `data`, and `errors` if there are any. Never raises."""
    result = execute_sync(
        schema(),
        document,
        context_value=context,
        variable_values=variables,
        operation_name=operation_name or None,
        **{_EXECUTOR: _Executor},
    )
    response: dict[str, Any] = {"data": result.data}
    if result.errors:
        response["errors"] = [_error(e) for e in result.errors]
    return response


def _error(error: GraphQLError) -> dict[str, Any]:
    cause = error.original_error
    if isinstance(cause, (MirrorError, Refused)):
        message = str(cause)
    elif cause is None or isinstance(cause, GraphQLError):
        message = wire_message(error.message)
    else:
        traceback.print_exception(cause, file=sys.stderr)
        message = f"internal error ({type(cause).__name__}): see the server's log"
    found: dict[str, Any] = {"message": message}
    if error.path:
        found["path"] = error.path
    if isinstance(cause, Refused):
        found["extensions"] = {"code": cause.status}
    return found
