"""Which dialects there are, and whose a path is. Pure, but for `installed_dialects`.

Ours are in the table below. Other packages add theirs by the entry-point group `wai.dialects`
(docs/extending.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from wai_protocol.errors import RequestError
from wai_protocol.surface import ANY_PART, Route, RouteTable, matches
from wai_transport.plugins import load_plugins

from .anthropic import ANTHROPIC
from .dialect import EVENT_STREAM, NDJSON, Dialect
from .extra import EXTRA
from .llama_cpp import LLAMA_CPP
from .lm_studio import LM_STUDIO
from .ollama import OLLAMA
from .openai import OPENAI

ENTRY_POINTS: Final = "wai.dialects"


class Dialects:
    """The dialects of one relay. It is never changed; `extended` makes a longer one.

    The first dialect is also that of every path that no dialect claims.
    """

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        """Raises `RequestError` where two dialects share a name or a route, or one is unfit."""
        self._dialects = tuple(dialects)
        self._routes = RouteTable(route for one in self._dialects for route in one.routes)
        self._by_name: dict[str, Dialect] = {}
        for dialect in self._dialects:
            _check(dialect)
            if dialect.name in self._by_name:
                raise RequestError(f"The dialect {dialect.name!r} is there already.")
            self._by_name[dialect.name] = dialect
        self._by_path: dict[str, Dialect] = {}
        for route in self._routes:
            dialect = self._by_name[route.api]
            if self._by_path.setdefault(route.path, dialect) is not dialect:
                raise RequestError(f"The path {route.path} belongs to two dialects.")
        self._by_prefix = sorted(
            ((prefix, one) for one in self._dialects for prefix in one.error_prefixes),
            key=lambda entry: -len(entry[0]),
        )
        aliases = [pair for one in self._dialects for pair in one.aliases.items()]
        self._exact_aliases = {name: path for name, path in aliases if not name.endswith("/")}
        self._aliases = [
            (re.compile(re.escape(name).replace(re.escape(ANY_PART), "[^/]+")), prefix)
            for name, prefix in aliases
            if name.endswith("/")
        ]

    def extended(self, dialect: Dialect) -> Dialects:
        """These and `dialect`. Raises `RequestError` as the constructor does."""
        return Dialects((*self._dialects, dialect))

    def upstream_path(self, path: str) -> str:
        """The path that an upstream knows, where `path` may be another name for it. What is a route
        or a list itself is no other name."""
        if path in self._by_path or self.of(path).is_list(path):
            return path
        if (exact := self._exact_aliases.get(path)) is not None:
            return exact
        for alias, prefix in self._aliases:
            if (found := alias.match(path)) is not None:
                return prefix + path[found.end() :]
        return path

    def of(self, path: str) -> Dialect:
        """The dialect of `path`, whether or not there is such a route."""
        found = self._by_path.get(path)
        if found is not None:
            return found
        for prefix, dialect in self._by_prefix:
            if path.startswith(prefix):
                return dialect
        return self._dialects[0]

    def find_route(self, method: str, path: str) -> Route | None:
        """The route for `method` and `path`, or None: then nothing is forwarded."""
        return self._routes.find(method, path)

    def operation_of(self, path: str) -> str:
        """What OpenTelemetry's conventions call a request to `path`; "" if they have no name."""
        return next((route.operation for route in self._routes if matches(route.path, path)), "")

    def methods(self, path: str) -> list[str]:
        """The methods by which `path` may be asked; [] where it is unknown."""
        return self._routes.methods(path) or (
            ["GET", "HEAD"] if self.of(path).is_list(path) else []
        )


def _check(dialect: Dialect) -> None:
    """Raise `RequestError` where the registry can't work with `dialect`."""
    where = f"The dialect {dialect.name!r}"
    if any(route.api != dialect.name for route in dialect.routes):
        raise RequestError(f"{where} has a route of another dialect.")
    if dialect.stream_type not in (EVENT_STREAM, NDJSON):
        raise RequestError(f"{where} has streams that are neither events nor lines.")
    if dialect.stream_type == NDJSON and dialect.heartbeat:
        raise RequestError(f"{where} has a heartbeat, which a stream of lines can't carry.")
    if not dialect.model_fields:
        raise RequestError(f"{where} names no field for the model.")


DIALECTS: Final = Dialects((OPENAI, ANTHROPIC, OLLAMA, LLAMA_CPP, LM_STUDIO, EXTRA))
"""Those that the relay comes with."""


def installed_dialects() -> Dialects:
    """Ours, and those of the packages installed beside us. One that can't be used is left out."""
    dialects = DIALECTS

    def accept(plugin: object) -> None:
        nonlocal dialects
        if isinstance(plugin, type) and issubclass(plugin, Dialect):
            plugin = plugin()
        if not isinstance(plugin, Dialect):
            raise RequestError("It is not a `Dialect`.")
        dialects = dialects.extended(plugin)

    load_plugins(ENTRY_POINTS, accept)
    return dialects
