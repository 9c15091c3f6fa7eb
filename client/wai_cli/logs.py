"""Where the daemons' log goes: stderr, one line an event; a service manager keeps it."""

from __future__ import annotations

import logging


def log_to_stderr(level: str) -> None:
    """Show everything from `level` on ("debug", "info", "warning", "error")."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # Each selector, refused header table and question to the hub are of no use to an operator.
    for talkative in ("asyncio", "hpack", "httpx2"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
