"""The OpenAPI document of the admin API, made from the table of endpoints and their types, and of
what is described beside it: the live feed, and how browsers sign in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from wai_api.errors import ErrorAnswer
from wai_api.schema import REFERENCE, schemas
from wai_relay.access.sign_ins import COOKIE, CSRF_HEADER

from .endpoint import JSON_TYPE, Endpoint

OPENAPI_VERSION: Final = "3.1.0"
_PLACEHOLDER: Final = re.compile(r"{(\w+)}")


class Described(msgspec.Struct, frozen=True):
    """An operation that is no `Endpoint`. `path` is whole; `answer` None: one without a body;
    `security` as OpenAPI has it; `events`: the data of each server-sent event."""

    method: str
    path: str
    name: str
    summary: str
    answer: Any = None
    body: Any = None
    status: int = 200
    media_type: str = JSON_TYPE
    security: tuple[dict[str, list[str]], ...] = ()
    events: Mapping[str, type[Struct]] = msgspec.field(default_factory=dict)


def document(
    endpoints: Sequence[Endpoint], version: str, base: str, also: Sequence[Described] = ()
) -> dict[str, Any]:
    """The document as JSON can say it; paths are below `base`, those of `also` whole."""
    operations: list[Endpoint | Described] = [*endpoints, *also]
    types: list[Any] = [t for one in operations for t in (one.answer, one.body) if t is not None]
    found, components = schemas([*types, ErrorAnswer])
    by_type = dict(zip([*types, ErrorAnswer], found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        methods = paths.setdefault(base + endpoint.path, {})
        methods[endpoint.method.lower()] = _operation(endpoint, by_type)
    for described in also:
        methods = paths.setdefault(described.path, {})
        methods[described.method.lower()] = _described(described, by_type)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "wai relay: admin API", "version": version},
        "security": [{"adminToken": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "adminToken": {"type": "http", "scheme": "bearer"},
                "signIn": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "csrf": {"type": "apiKey", "in": "header", "name": CSRF_HEADER},
            },
        },
    }


def _described(described: Described, by_type: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": described.summary}
    if described.answer is not None:
        answer["content"] = {described.media_type: {"schema": by_type[described.answer]}}
    operation = {
        "operationId": described.name,
        "summary": described.summary,
        "security": list(described.security),
        "responses": {str(described.status): answer, "default": _error(by_type)},
    }
    if described.events:  # OpenAPI 3.1 has no word for them
        operation["x-events"] = {
            name: {"$ref": REFERENCE.format(name=data.__name__)}
            for name, data in described.events.items()
        }
    if described.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(by_type[described.body])}
    return operation


def _error(by_type: dict[Any, Any]) -> dict[str, Any]:
    return {"description": "what went wrong", "content": _json(by_type[ErrorAnswer])}


def _operation(endpoint: Endpoint, by_type: dict[Any, Any]) -> dict[str, Any]:
    content = _json(by_type[endpoint.answer])
    if endpoint.also:
        content[endpoint.also] = {"schema": {"type": "string"}}
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": {
            str(endpoint.status): {
                "description": endpoint.summary,
                "content": content,
            },
            "default": _error(by_type),
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": _needs_fields(endpoint.body),
            "content": _json(by_type[endpoint.body]),
        }
    return operation


def _needs_fields(body: Any) -> bool:
    """Whether an empty one, which is what no body at all counts as, is refused."""
    try:
        msgspec.convert({}, body)
    except msgspec.ValidationError:
        return True
    return False


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PLACEHOLDER.findall(endpoint.path)
    ]
    for query in endpoint.query:
        schema: dict[str, Any] = {"type": "boolean"}
        if query.kind is str:
            schema = {"type": "string"} | ({"enum": query.choices} if query.choices else {})
            schema |= {"pattern": query.pattern} if query.pattern else {}
        if query.kind is int:
            schema = {"type": "integer", "minimum": query.minimum, "maximum": query.maximum}
        found.append(
            {
                "name": query.name,
                "in": "query",
                "required": query.needed,
                "description": query.about,
                "schema": schema,
            }
        )
    return found


def _json(schema: Any) -> dict[str, Any]:
    return {JSON_TYPE: {"schema": schema}}
