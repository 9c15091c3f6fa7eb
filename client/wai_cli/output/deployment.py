"""Show a deployment in one line, and follow it until it is served or has failed.

Only reads: neither the relay nor the node is asked to change anything here.
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
"""The interval at which a node reports a download's progress."""
RELAY_AWAY_S: Final = 300.0
"""Longer than a restart of the relay's machine with updates; then this gives up."""
MAX_MISSES: Final = 12
"""How often a connected node may fail to list the model before it counts as removed, since a node
that has just reconnected may be slow."""
CONNECTED: Final = ("ready", "draining")
"""States of a node in which it reports what it serves."""
_SETTLED: Final = ("ready", "asleep", "failed", "absent")


def follow(
    relay: AdminClient, view: dict[str, Any], line: ProgressLine | None = None
) -> dict[str, Any]:
    """Show a deployment's progress until it is settled; return its last state.

    Node and relay may be away for a while, since the node stores what to serve. Raises `WaiError`
    if the relay stays away, or if somebody removed the model.
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
                    raise TransportError(f"{error}. {_continues_text(view)}") from error
                line.show(
                    f"the relay is away; {view['node']} continues; waiting for the relay",
                    "relay away",
                )
                continue
            lost_at = None
            if isinstance(found, dict):
                view, missing = found, 0
                line.show(state_text(view), view["state"])
            elif found in CONNECTED:
                missing += 1
                if missing >= MAX_MISSES:
                    raise RequestError(
                        f"{view['model']} is not deployed on {view['node']} any more"
                    )
            else:
                missing = 0
                line.show(f"node {view['node']} is away; waiting for it to come back", "away")
    except KeyboardInterrupt:
        line.end()
        say(_continues_text(view), sys.stderr)
        raise
    finally:
        line.end()
    return view


def _look(relay: AdminClient, view: dict[str, Any]) -> dict[str, Any] | str:
    """Return the deployment's present state, or the node's state if it does not list it."""
    for listed in relay.get("/deployments")["data"]:
        if listed["node"] == view["node"] and listed["model"] == view["model"]:
            return dict(listed)
    return str(relay.get(f"/nodes/{quote(view['node'], safe='')}")["state"])


def _continues_text(view: dict[str, Any]) -> str:
    """Return the message for when watching stops before the end."""
    return f"{view['node']} continues with {view['model']}; `wai model list` shows its progress"


def shown_state(view: dict[str, Any]) -> str:
    """Return the state in the words of the list: a server that starts is one that loads."""
    return "loading" if view["state"] == "starting" else str(view["state"])


def settled(view: dict[str, Any]) -> bool:
    """Return whether no change is in progress. Older nodes do not report `changing`."""
    return view["state"] in _SETTLED and not view.get("changing")


def state_text(view: dict[str, Any]) -> str:
    """Return one line that says what the deployment does now."""
    if view["progress"] is not None:
        return f"{view['state']} {_progress_text(view['progress'], bar)}"
    text = f"{shown_state(view)} {view['model']}"
    if view["state"] == "starting" and view["reason"]:
        text += f", which {view['reason']}"
    return f"{text}, {_change_text(view)}" if view.get("changing") else text


def note(view: dict[str, Any]) -> str:
    """Return a note beside the state, usually ""."""
    if view["state"] == "failed" or (view["reason"] and view["state"] in ("starting", "asleep")):
        return str(view["reason"])
    if view["progress"] is not None:
        return _progress_text(view["progress"], share_text)
    if view.get("changing"):
        return _change_text(view)
    if view.get("called"):
        return f"on {view['served_by']} as {view['called']}"
    if view["swap_error"]:
        return f"it was not changed: {view['swap_error']}"
    said = _purpose_text(view), _memory_text(view), options_text(view).removeprefix(", ")
    return ", ".join(filter(None, said))


def _memory_text(view: dict[str, Any]) -> str:
    """Return what it takes in memory, beside the estimate; "" where that is not known."""
    seen, estimated = view.get("seen_bytes"), view.get("estimated_bytes")
    if seen is None or estimated is None:
        return ""
    return f"takes {size_text(seen)} of {size_text(estimated)} estimated"


def _purpose_text(view: dict[str, Any]) -> str:
    """Return what it is for, if that is not chat. Older nodes do not say."""
    purpose = str(view.get("purpose", ""))
    return "" if purpose == "chat" else purpose


def options_text(view: dict[str, Any]) -> str:
    """Return the options that are not the defaults, as `, cache q8_0`; "" for none."""
    layers, moe = view.get("gpu_layers"), view.get("cpu_moe")
    flags = view.get("engine_flags")
    said = (
        str(view.get("served_by") or ""),
        f"sees images by {view['mmproj']}" if view.get("mmproj") else "",
        f"also called {view['alias']}" if view.get("alias") else "",
        policy_text(view),
        f"adapted by {view['lora']}" if view.get("lora") else "",
        f"cache {view['cache_type']}" if view.get("cache_type", "f16") != "f16" else "",
        f"drafted by {view['draft']}" if view.get("draft") else "",
        f"{view['draft_max']} tokens a draft" if view.get("draft_max") else "",
        f"{layers} layers on the GPU" if layers is not None else "",
        f"experts of {moe} layers in RAM" if moe is not None else "",
        f"GPUs {', '.join(map(str, view['gpus']))}" if view.get("gpus") else "",
        f"flash attention {view['flash_attention']}"
        if view.get("flash_attention", "auto") != "auto"
        else "",
        f"reasoning format {view['reasoning_format']}"
        if view.get("reasoning_format", "auto") != "auto"
        else "",
        " ".join(flags) if flags else "",
        " ".join(view.get("environment") or ()),
    )
    return "".join(f", {one}" for one in said if one)


def policy_text(view: dict[str, Any]) -> str:
    """Return when it is in memory, if that is not the default; "" else."""
    ttl_s, priority = view.get("idle_unload_s"), view.get("priority", 0)
    text = ""
    if view.get("load") == "on_demand" and view.get("served_by") in (None, "", "vllm"):
        load_ms = view.get("load_ms") or 0
        text = f"on demand (loads in {seconds_text(load_ms / 1000)})" if load_ms else "on demand"
    if ttl_s is not None:
        text += f"{', ' if text else ''}unloaded after {seconds_text(ttl_s)}"
    if priority:
        text += f"{', ' if text else ''}priority {priority}"
    return text


def served_text(view: dict[str, Any]) -> str:
    """Return how it is served, for the end of a sentence."""
    server = view.get("served_by")
    if not server or view["slots"]:
        served = view["context_served"] or view["context"]
        return f"{view['slots']} slots of {served} tokens{options_text(view)}"
    called = view.get("called") or view["model"]
    return f"callers ask for {called}, and {server} loads it as it is asked for"


def _change_text(view: dict[str, Any]) -> str:
    return f"changing to {view['slots']} slots of {view['context']} tokens{options_text(view)}"


def _progress_text(progress: dict[str, Any], how_far: Callable[[int, int], str]) -> str:
    text = how_far(progress["done_bytes"], progress["total_bytes"])
    text += f" of {size_text(progress['total_bytes'])}, {size_text(progress['rate_bps'])}/s"
    if progress["eta_s"] is not None:
        text += f", {seconds_text(progress['eta_s'])} left"
    return text
