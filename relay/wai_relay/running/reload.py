"""A changed configuration for a relay that runs (SIGHUP): what takes it over at once, what can't.

The parts that follow the configuration are given as functions in two steps: the first makes what
the new one needs, and may fail; only when all have succeeded do the second steps put it to use. So
a relay has the whole of a new configuration or the whole of the old one. It reads no files itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Final, TypeAlias

from wai_protocol.errors import WaiError
from wai_relay.config import RelayConfig

Use: TypeAlias = Callable[[], None]
"""Puts to use what was made ready. Can't fail."""

Prepare: TypeAlias = Callable[[RelayConfig], Use]
"""Makes ready what a new configuration needs. Raises `WaiError`, and has changed nothing then."""

NEED_RESTART: Final = ("data", "listen", "otlp_endpoint")
"""The folder is locked and the port is open from the start on, and a successor inherits both; what
sends spans has a thread."""

_TLS_FIELDS: Final = tuple(
    field.name
    for field in fields(RelayConfig)
    if field.name in ("tls", "domain") or field.name.startswith("acme_")
)

_log = logging.getLogger("wai.relay")


class LiveConfig:
    """A running relay's configuration: `now`, and how it is read again."""

    def __init__(self, config: RelayConfig, read: Callable[[], RelayConfig]) -> None:
        self.now = config
        self.parts: list[Prepare] = []
        """Who follows it, in this order."""
        self._read = read

    def reload(self) -> None:
        """Read it again and use it; one that can't be used changes nothing, and the log says why.

        Every part is asked even if nothing has changed: a file that the configuration names may
        have another content.
        """
        try:
            wanted = self._read()
            given = changes(self.now, wanted)
            waiting = needing_restart(self.now, wanted)
            usable = replace(wanted, **{name: getattr(self.now, name) for name in waiting})
            uses = [prepare(usable) for prepare in self.parts]
        except WaiError as error:
            _log.error("the new configuration can't be used, the old one stays: %s", error)
            return
        for use in uses:
            use()
        self.now = usable
        said = ", ".join(name for name in given if name not in waiting) or "no setting has changed"
        if waiting := [name for name in waiting if name in given]:
            said += f"; needs a restart: {', '.join(waiting)}"
        _log.info("configuration reloaded: %s", said)


def changes(old: RelayConfig, new: RelayConfig) -> list[str]:
    """The settings in which two configurations differ, by name."""
    names = (field.name for field in fields(RelayConfig))
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def needing_restart(old: RelayConfig, new: RelayConfig) -> list[str]:
    """The settings of `new` that a running relay has to leave as they are in `old`."""
    found = [name for name in NEED_RESTART if getattr(old, name) != getattr(new, name)]
    if (old.tls == "off") != (new.tls == "off"):  # the open port is one or the other
        found += _TLS_FIELDS  # which belong together
    return found
