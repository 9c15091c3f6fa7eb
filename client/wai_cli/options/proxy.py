"""The HTTP proxy that the environment names, if any, as settings of commands, nodes and relays."""

from __future__ import annotations

import os


def proxy_settings(prefix: str = "") -> dict[str, str]:
    """Return the environment's proxy settings. Names may be in upper or lower case.

    `prefix`: that of our own variables; one such as `WAI_RELAY_NO_PROXY` replaces `NO_PROXY`.
    """
    found = {}
    for name in ("https_proxy", "no_proxy"):
        if prefix and prefix + name.upper() in os.environ:
            continue
        if value := os.environ.get(name) or os.environ.get(name.upper()):
            found[name] = value
    return found
