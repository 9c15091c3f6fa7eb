"""Check for `wai doctor` that requests are answered: one short request to each node that is ready.

On the relay's host they are sent with a key that the relay lends for minutes and keeps in memory
only, and what they take is not counted. It is given back: the doctor leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from wai_api.nodes import ModelView, NodeList, NodeView
from wai_cli.client.admin_client import AdminClient, call, open_connection
from wai_cli.client.answers import read_as
from wai_cli.client.target import Target
from wai_protocol.errors import Fault, RequestError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json

from .finding import Finding
from .known_problems import known_problems

ANSWER_TIMEOUT_S: Final = 120.0  # a slow machine may have to load its model first
MAX_TRIED: Final = 20  # nodes; their answers take a second each at best
_CHECK: Final = "request"
_KEY_FILE: Final = "give --key-file a file that has an API key alone, from `wai key create NAME`"
_SEE_LOGS: Final = "look at the relay's and the node's log"
_SEE_SERVER: Final = (
    "look at the log of the inference server on {node} that serves it, and ask it there:"
    " `wai requests list --failed` shows what callers met"
)


def whole_path(target: Target, key_file: Path | None) -> Iterator[Finding]:
    """Check the nodes, that requests through relay and nodes are answered, and what the relay
    itself says is wrong."""
    try:
        if key_file is not None:
            yield _ask(target, key_file.read_text(encoding="ascii").strip())
        elif target.token:
            with AdminClient(target) as relay:
                nodes = read_as(NodeList, relay.get("/nodes")).data
                yield _ready(nodes)
                yield from _tries(target, relay, nodes)
                yield from known_problems(relay)
        else:
            text = "not tried: there is no API key to call with (give --key-file FILE)"
            yield Finding(_CHECK, ok=True, text=text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        text = f"{key_file} cannot be read: {reason}"
        yield Finding(_CHECK, ok=False, text=text, advice=_KEY_FILE)
    except WaiError as error:
        yield Finding(_CHECK, ok=False, text=str(error), advice=_SEE_LOGS)


def _ready(nodes: tuple[NodeView, ...]) -> Finding:
    ready = [node for node in nodes if node.state == "ready"]
    serving = [f"{node.name} ({', '.join(node.models)})" for node in ready if node.models]
    if serving:
        return Finding("node", ok=True, text="ready: " + ", ".join(serving))
    if ready:
        advice = (
            "start an inference server there, or run `wai node run --upstream URL`; what is wrong"
            " with those that they have is said below"
        )
        return Finding("node", ok=False, text="the nodes serve no model", advice=advice)
    if nodes:
        text = "; ".join(f"{node.name} is {node.state}" for node in nodes)
        return Finding("node", ok=False, text=text, advice="run `wai node run` on its machine")
    advice = "`wai invite create` here, `wai node join` and `wai node run` there"
    return Finding("node", ok=False, text="no node has joined", advice=advice)


def _tries(target: Target, relay: AdminClient, nodes: tuple[NodeView, ...]) -> Iterator[Finding]:
    """A request to each node that is ready and serves a model for chats."""
    try:
        trial = relay.post("/trials")
    except RequestError as error:
        if error.fault is not Fault.NOT_FOUND:
            raise
        text = "not tried: this relay is older than this command (give --key-file FILE)"
        yield Finding(_CHECK, ok=True, text=text)
        return
    try:
        yield from _ask_each(target, trial["key"], nodes)
    finally:
        if "id" in trial:  # an older relay takes none back
            with contextlib.suppress(WaiError):  # it is away: the key ends by itself
                relay.delete(f"/trials/{trial['id']}")


def _ask_each(target: Target, key: str, nodes: tuple[NodeView, ...]) -> Iterator[Finding]:
    tried = 0
    for node in nodes:
        model = _chat_model(node) if node.state == "ready" else None
        if model is None or tried == MAX_TRIED:
            continue
        tried += 1
        try:
            yield _ask(target, key, node.name, model.id)
        except WaiError as error:
            yield Finding(_CHECK, ok=False, text=f"{node.name}: {error}", advice=_SEE_LOGS)
    if not tried:
        yield _ask(target, key)


def _chat_model(node: NodeView) -> ModelView | None:
    """The first model that is ready and may write text."""
    for model in node.serving:
        embeds = "embedding" in model.capabilities and "completion" not in model.capabilities
        if model.ready and not embeds:
            return model
    return None


def _ask(target: Target, key: str, node: str = "", model: str = "") -> Finding:
    """A request for one token; to `node` and its `model`, else for the first model that is listed.

    Raises `WaiError` where the relay can't be reached.
    """
    caller = replace(target, token=key)
    with open_connection(caller, ANSWER_TIMEOUT_S) as connection:
        if not model:
            status, _, text = call(connection, caller, "GET", "/v1/models")
            models = _listed(status, text)
            if not models:
                shown = f"GET /v1/models: {status}, no model"
                return Finding(_CHECK, ok=False, text=shown, advice=_SEE_LOGS)
            model = models[0]
        asked = {
            "model": model,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "Hi"}],
        }
        pinned = {"X-WAI-Node": node} if node else {}
        start = time.monotonic()
        status, _, text = call(
            connection, caller, "POST", "/v1/chat/completions", asked, also=pinned
        )
    took_s = time.monotonic() - start
    where = f"{model} on {node}" if node else model
    if status == 200:
        return Finding(_CHECK, ok=True, text=f"{where} answered in {took_s:.2f} s")
    shown = text[:300].decode(errors="replace")
    advice = _SEE_SERVER.format(node=node) if node else _SEE_LOGS
    return Finding(_CHECK, ok=False, text=f"{where}: {status} {shown}", advice=advice)


def _listed(status: int, text: bytes) -> list[str]:
    if status != 200:
        return []
    try:
        listed = read_json(text, dict[str, Any], "/v1/models")
        return [str(model["id"]) for model in listed["data"]]
    except (ForeignJsonError, KeyError, TypeError):
        return []
