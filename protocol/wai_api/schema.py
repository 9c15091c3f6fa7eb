"""JSON schemas of the API's types, for the OpenAPI document and the dashboard's types."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

import wai_api

REFERENCE: Final = "#/components/schemas/{name}"


def api_types() -> tuple[type[Struct], ...]:
    """Every public struct of this package, in the order of its modules and their names."""
    return tuple(dict.fromkeys(_structs()))


def schemas(types: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A schema for each of `types`, and those of all structs of the API by name, to refer to."""
    everything = api_types()
    found, components = msgspec.json.schema_components(
        [*types, *everything], ref_template=REFERENCE
    )
    for struct in everything:
        if _is_always_whole(struct):
            components[struct.__name__]["required"] = list(struct.__struct_encode_fields__)
    return list(found[: len(types)]), components


def _structs() -> Iterator[type[Struct]]:
    for module in sorted(pkgutil.iter_modules(wai_api.__path__), key=lambda found: found.name):
        members = vars(importlib.import_module(f"wai_api.{module.name}"))
        for name, member in members.items():
            defined = isinstance(member, type) and issubclass(member, Struct)
            if defined and member.__module__.startswith("wai_api.") and not name.startswith("_"):
                yield member


def _is_always_whole(struct: type[Struct]) -> bool:
    """Whether its JSON always has all fields: an answer has, a request may leave some out."""
    config = struct.__struct_config__
    return not (config.forbid_unknown_fields or config.omit_defaults)
