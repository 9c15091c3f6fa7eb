"""Apply a changed configuration to a running relay (SIGHUP), all of it or none.

Each part that follows the configuration is given as a function that works in two steps. The first
step prepares what the new configuration needs, and may fail. Only when every first step has
succeeded are the second steps run, which apply it. This module reads no files itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Final, TypeAlias

from wai_protocol.errors import WaiError
from wai_relay.config import RelayConfig

Use: TypeAlias = Callable[[], None]
"""The second step: apply what was prepared. Must not raise."""

Prepare: TypeAlias = Callable[[RelayConfig], Use]
"""The first step: prepare what a new configuration needs. Raises `WaiError`, with nothing changed
by then."""

NEED_RESTART: Final = (*("data", "listen", "otlp_endpoint", "database", "database_password_file"),)
"""The folder is locked and the port is open from the start on, and a successor inherits both; the
exporter of spans has a thread of its own; what was loaded from one database is not in another."""

_TLS_FIELDS: Final = tuple(
    field.name
    for field in fields(RelayConfig)
    if field.name in ("tls", "domain") or field.name.startswith("acme_")
)

_log = logging.getLogger("wai.relay")


class LiveConfig:
    """The configuration of a running relay: `now` is the current one, `reload` reads it again."""

    def __init__(self, config: RelayConfig, read: Callable[[], RelayConfig]) -> None:
        self.now = config
        self.parts: list[Prepare] = []
        """The first steps of the parts that follow it, in the order in which they are called."""
        self._read = read

    def reload(self) -> None:
        """Read the configuration again and apply it; on an error log why, and change nothing.

        Every part is called even if no setting has changed, since the content of a file that the
        configuration names may have changed.
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
    """Return the names of the settings in which two configurations differ."""
    names = (field.name for field in fields(RelayConfig))
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def needing_restart(old: RelayConfig, new: RelayConfig) -> list[str]:
    """Return the names of the settings of `new` that only a restart can apply."""
    found = [name for name in NEED_RESTART if getattr(old, name) != getattr(new, name)]
    if (old.tls == "off") != (new.tls == "off"):  # the open port is one or the other
        found += _TLS_FIELDS  # which belong together
    return found
