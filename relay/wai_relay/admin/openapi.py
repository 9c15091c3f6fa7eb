"""The OpenAPI document of the admin API, made from the table of endpoints and their types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from .endpoint import JSON_TYPE, Endpoint
from .types import ErrorAnswer

OPENAPI_VERSION: Final = "3.1.0"
_REFS: Final = "#/components/schemas/{name}"
_PLACEHOLDER: Final = re.compile(r"{(\w+)}")


def document(endpoints: Sequence[Endpoint], version: str, base: str) -> dict[str, Any]:
    """The document as JSON can say it; paths are below `base`."""
    types = [t for endpoint in endpoints for t in (endpoint.answer, endpoint.body) if t is not None]
    schemas, components = msgspec.json.schema_components([*types, ErrorAnswer], ref_template=_REFS)
    by_type = dict(zip([*types, ErrorAnswer], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        methods = paths.setdefault(base + endpoint.path, {})
        methods[endpoint.method.lower()] = _operation(endpoint, by_type)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "wai relay: admin API", "version": version},
        "security": [{"adminToken": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"adminToken": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, by_type: dict[Any, Any]) -> dict[str, Any]:
    error = {"description": "what went wrong", "content": _json(by_type[ErrorAnswer])}
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": {
            str(endpoint.status): {
                "description": endpoint.summary,
                "content": _json(by_type[endpoint.answer]),
            },
            "default": error,
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(by_type[endpoint.body])}
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PLACEHOLDER.findall(endpoint.path)
    ]
    for query in endpoint.query:
        schema: dict[str, Any] = {"type": "boolean"}
        if query.kind is str:
            schema = {"type": "string"} | ({"enum": query.choices} if query.choices else {})
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
