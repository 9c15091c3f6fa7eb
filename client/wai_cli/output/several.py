"""Follow the deployments of one model on several nodes until each is settled. Only reads."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from wai_cli.client.admin_client import AdminClient
from wai_protocol.errors import TransportError

from .deployment import CONNECTED, LOOK_EVERY_S, MAX_MISSES, RELAY_AWAY_S, settled, state_text
from .progress import ProgressLine


def follow_all(
    relay: AdminClient, views: list[dict[str, Any]], line: ProgressLine | None = None
) -> list[dict[str, Any]]:
    """Show how far each is, until all are settled; return their last states.

    One that its node does not list any more is returned as absent. Raises `TransportError` if the
    relay stays away.
    """
    line = line or ProgressLine()
    at = {view["node"]: view for view in views}
    misses: Counter[str] = Counter()
    lost_at: float | None = None
    try:
        while not all(map(settled, at.values())):
            text = "; ".join(f"{node}: {state_text(view)}" for node, view in at.items())
            line.show(text, " ".join(view["state"] for view in at.values()))
            time.sleep(LOOK_EVERY_S)
            try:
                _look(relay, at, misses)
                lost_at = None
            except TransportError as error:
                lost_at = time.monotonic() if lost_at is None else lost_at
                if time.monotonic() - lost_at > RELAY_AWAY_S:
                    raise TransportError(
                        f"{error}. The nodes continue; see `wai model list`"
                    ) from error
                line.show("the relay is away; the nodes continue; waiting for it", "relay away")
    finally:
        line.end()
    return list(at.values())


def _look(relay: AdminClient, at: dict[str, dict[str, Any]], misses: Counter[str]) -> None:
    """Take in how things stand. A node that is away may come back."""
    listed = {(row["node"], row["model"]): row for row in relay.get("/deployments")["data"]}
    missing = []
    for node, view in at.items():
        if (found := listed.get((node, view["model"]))) is not None:
            at[node] = found
            misses.pop(node, None)
        elif not settled(view):
            missing.append(node)
    if not missing:
        return
    states = {row["name"]: row["state"] for row in relay.get("/nodes")["data"]}
    for node in missing:
        misses[node] += states.get(node) in CONNECTED
        if misses[node] >= MAX_MISSES:
            at[node] = {**at[node], "state": "absent", "changing": False}
