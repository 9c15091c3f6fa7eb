"""A deployed model as commands show it: in a line, and watched until it is served or will not be.

What is shown is the node's word, by way of the relay; neither is asked to do anything here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from wai_cli.client.admin_client import AdminClient
from wai_protocol.errors import RequestError, TransportError

from .progress import ProgressLine, bar, seconds_text, share_text, size_text
from .tables import say

LOOK_EVERY_S: Final = 0.25
"""As often as a node tells of a download's progress."""
RELAY_AWAY_S: Final = 300.0
"""A restart of the relay's machine with updates: longer than that, and somebody should look."""
GONE_LOOKS: Final = 12
"""Looks at a connected node that does not list the model: one that is just back may be slow."""
CONNECTED: Final = ("ready", "draining")
"""A node's states in which it tells what it serves."""
_SETTLED: Final = ("ready", "asleep", "failed", "absent")


def follow(
    relay: AdminClient, view: dict[str, Any], line: ProgressLine | None = None
) -> dict[str, Any]:
    """Show how far a deployment is until it is served as wanted, or will not be; how it is then.

    Node and relay may be away for a while: what is wanted is on the node's disk. Raises `WaiError`:
    the relay stays away, or somebody removed the model.
    """
    line = line or ProgressLine()
    lost_at: float | None = None
    missing = 0
    try:
        line.show(state_text(view), view["state"])
        while not settled(view):
            time.sleep(LOOK_EVERY_S)
            try:
                found = _look(relay, view)
            except TransportError as error:
                lost_at = time.monotonic() if lost_at is None else lost_at
                if time.monotonic() - lost_at > RELAY_AWAY_S:
                    raise TransportError(f"{error}. {_goes_on(view)}") from error
                line.show(
                    f"the relay is away; {view['node']} goes on, waiting for the relay",
                    "relay away",
                )
                continue
            lost_at = None
            if isinstance(found, dict):
                view, missing = found, 0
                line.show(state_text(view), view["state"])
            elif found in CONNECTED:
                missing += 1
                if missing >= GONE_LOOKS:
                    raise RequestError(
                        f"{view['model']} is not deployed on {view['node']} any more"
                    )
            else:
                missing = 0
                line.show(f"node {view['node']} is away; waiting for it to come back", "away")
    except KeyboardInterrupt:
        line.end()
        say(_goes_on(view), sys.stderr)
        raise
    finally:
        line.end()
    return view


def _look(relay: AdminClient, view: dict[str, Any]) -> dict[str, Any] | str:
    """The deployment as it is now; its node's state where that does not list it."""
    for listed in relay.get("/deployments")["data"]:
        if listed["node"] == view["node"] and listed["model"] == view["model"]:
            return dict(listed)
    return str(relay.get(f"/nodes/{quote(view['node'], safe='')}")["state"])


def _goes_on(view: dict[str, Any]) -> str:
    """For who stops watching before the end."""
    return f"{view['node']} goes on with {view['model']} by itself; `wai model list` shows how far"


def settled(view: dict[str, Any]) -> bool:
    """Whether it stays as it is, unless something happens. Older nodes don't say `changing`."""
    return view["state"] in _SETTLED and not view.get("changing")


def state_text(view: dict[str, Any]) -> str:
    """What it does now, in a line."""
    if view["progress"] is not None:
        return f"{view['state']} {_progress_text(view['progress'], bar)}"
    text = f"{view['state']} {view['model']}"
    return f"{text}, {_change_text(view)}" if view.get("changing") else text


def note(view: dict[str, Any]) -> str:
    """What there is to say of it beside its state; mostly nothing."""
    if view["state"] == "failed":
        return str(view["reason"])
    if view["progress"] is not None:
        return _progress_text(view["progress"], share_text)
    if view.get("changing"):
        return _change_text(view)
    if view["swap_error"]:
        return f"the context is as it was: {view['swap_error']}"
    return ""


def _change_text(view: dict[str, Any]) -> str:
    return f"changing to {view['slots']} slots of {view['context']} tokens"


def _progress_text(progress: dict[str, Any], how_far: Callable[[int, int], str]) -> str:
    text = how_far(progress["done_bytes"], progress["total_bytes"])
    text += f" of {size_text(progress['total_bytes'])}, {size_text(progress['rate_bps'])}/s"
    if progress["eta_s"] is not None:
        text += f", {seconds_text(progress['eta_s'])} left"
    return text
