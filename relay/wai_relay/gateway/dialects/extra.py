"""Routes that a node's owner adds for one server: forwarded, and not understood. Pure.

They cost a slot and are counted by their size; what their answers mean is nobody's business here.
"""

from __future__ import annotations

from typing import ClassVar, Final

from wai_protocol.surface import EXTRA_API, Route

from .dialect import Signal, SignalOf
from .openai import OpenAiDialect
from .usage import UsageReader


class ExtraDialect(OpenAiDialect):
    """See `Dialect`. Which paths it has is told by the nodes."""

    name = EXTRA_API
    routes: ClassVar[tuple[Route, ...]] = ()
    error_prefixes: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[dict[str, str]] = {}

    def reader(
        self,
        route: Route,
        content_type: bytes,
        *,
        strip_usage: bool = False,
        strip_timings: bool = False,
    ) -> UsageReader:
        """See `Dialect`."""
        del route, content_type, strip_usage, strip_timings
        return AsItComes()

    def signal_of(self, route: Route) -> SignalOf:
        """See `Dialect`."""
        del route
        return lambda name, payload: Signal.CONTENT


EXTRA: Final = ExtraDialect()


class AsItComes(UsageReader):
    """Passes everything on and reads nothing."""

    def feed(self, data: bytes) -> bytes:
        """See `UsageReader`."""
        return data

    def finish(self) -> bytes:
        """See `UsageReader`."""
        return b""
