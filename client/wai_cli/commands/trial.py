"""Run a relay, and this machine as its node, with an available model (`wai up`).

Relay and node are child processes, started by the usual commands. The invite and the API key are
made at the first start and kept.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio

from wai_api.health import ProblemList
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import Target, local_target
from wai_cli.output.tables import plain
from wai_node.config import JoinConfig
from wai_node.demo.demo import DemoModel
from wai_node.main import join
from wai_node.membership import load_key, load_membership
from wai_node.upstreams import Consent, Verdict, installed_kinds, look_around
from wai_protocol.errors import TransportError, WaiError
from wai_protocol.identity import NONCE_BYTES, inference_key
from wai_transport.folder import DataFolder

from .child import Child

START_TIMEOUT_S: Final = (
    60.0  # long enough to read Python, cryptography and a model from a slow disk
)
POLL_S: Final = 0.05
SLOW_AFTER_S: Final = 2.0  # then a message says what is being waited for
DRAIN_S: Final = 3.0  # lets short answers finish after Ctrl-C
DEMO_ANSWER_TOKENS: Final = 300  # so small a model may repeat itself to the end of its context
KEY_FILE: Final = "up-key.json"
UPSTREAMS_VARIABLE: Final = "WAI_NODE_UPSTREAMS"


@dataclass(frozen=True, slots=True)
class Server:
    """An inference server that `wai up` is told to serve; `key` is "" where it asks for none."""

    url: str
    key: str = field(repr=False)


def run(data: Path, listen: str, given: Server | None) -> None:
    """Run relay and node in `data` until a signal ends them. Raises `WaiError`.

    `given`: the server to serve; None: those of the node's settings or on the usual ports.
    """
    anyio.run(_main, Up(data, listen, given))


async def _main(up: Up) -> None:
    """Run `up` until a signal asks it to stop. Raises its failures without an ExceptionGroup."""
    failure: Exception | None = None
    # Held to the end: a second Ctrl-C would be a KeyboardInterrupt amid what stops the parts.
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:

            async def work() -> None:
                nonlocal failure
                try:
                    await up.run()
                except Exception as error:
                    failure = error
                tasks.cancel_scope.cancel()

            tasks.start_soon(work)
            async for _ in signals:
                _say("\nstopping …")
                tasks.cancel_scope.cancel()
                break
    while isinstance(
        failure, ExceptionGroup
    ):  # the first failure cancels the others, so there is one
        failure = failure.exceptions[0]
    if failure is not None:
        raise failure


@dataclass(frozen=True, slots=True)
class Up:
    """One run of `wai up`, with its options."""

    data: Path
    listen: str
    given: Server | None = None

    async def run(self) -> None:
        """Start everything, print how to use it, and wait until cancelled or a part ends."""
        DataFolder.open(self.data)
        async with AsyncExitStack() as running:
            demos: list[DemoModel] = []  # empty if there is a server to serve
            servers: list[Server] = [self.given] if self.given is not None else []
            async with anyio.create_task_group() as starting:
                # Both take about half a second, so they run at the same time.
                if self.given is None and UPSTREAMS_VARIABLE not in os.environ:
                    starting.start_soon(self._find_upstream, running, demos, servers)
                relay = await self._start_relay(running)
            target = self._target()
            node = await self._start_node(running, target, servers)
            model = await self._ready_model(target, node)
            key = await anyio.to_thread.run_sync(self._key, target)
            link = await anyio.to_thread.run_sync(_sign_in_link, target)
            self._explain(target, key, model, link, demo=bool(demos))
            async with anyio.create_task_group() as watching:
                watching.start_soon(relay.wait)
                watching.start_soon(node.wait)
                for demo in demos:
                    watching.start_soon(_watch, demo)

    # -- the parts
    async def _start_relay(self, running: AsyncExitStack) -> Child:
        relay = await Child.start(
            "relay",
            ["relay", "--data", str(self._relay_data), "--listen", self.listen],
            {**os.environ, "WAI_RELAY_DRAIN_TIMEOUT_S": str(DRAIN_S)},
            self.data / "relay.log",
        )
        running.push_async_callback(relay.stop)
        await _until(partial(self._announced_by, relay), "the relay to start", relay)
        return relay

    async def _start_node(
        self, running: AsyncExitStack, target: Target, servers: list[Server]
    ) -> Child:
        await anyio.to_thread.run_sync(self._join, target)
        environment = {**os.environ, "WAI_NODE_DRAIN_TIMEOUT_S": str(DRAIN_S)}
        if servers:  # in the environment, because all users of the machine can read command lines
            environment[UPSTREAMS_VARIABLE] = f"[{', '.join(map(_as_setting, servers))}]"
        address = target.url.partition("://")[2]
        node = await Child.start(
            "node",
            ["node", "run", "--data", str(self._node_data), "--relay", address],
            environment,
            self.data / "node.log",
        )
        running.push_async_callback(node.stop)
        return node

    async def _find_upstream(
        self, running: AsyncExitStack, demos: list[DemoModel], servers: list[Server]
    ) -> None:
        """Start the demo's model, unless the machine has an inference server with a model."""
        if await _has_models(self._node_data):
            return
        _say("no inference server with a model found here: serving a small chat model")
        folder = DataFolder.open(self._node_data)
        key = inference_key(load_key(folder), secrets.token_bytes(NONCE_BYTES))
        demo = DemoModel(key, self.data / "demo.log")
        running.push_async_callback(demo.stop)
        demos.append(demo)
        serving = await demo.start()
        servers.append(Server(serving.url, serving.key))

    # -- invite, model and API key
    def _join(self, target: Target) -> None:
        """Let the node join, unless it has joined this relay before."""
        with AdminClient(target) as relay:
            known = {node["id"] for node in relay.get("/nodes")["data"]}
            try:
                member: str | None = load_membership(DataFolder.open(self._node_data)).node_id
            except WaiError:
                member = None  # not joined yet, or damaged: join again
            if member in known:
                return
            invite = relay.post("/invites", {"ttl_s": 600.0})["invite"]
        join(JoinConfig(data=self._node_data, invite=invite, name=_machine_name()))

    async def _ready_model(self, target: Target, node: Child) -> str:
        """Wait until the node serves a model, and say why it can't; return the first one's id."""
        models: list[str] = []
        told: set[str] = set()

        def ready() -> bool:
            with AdminClient(target) as relay:
                for seen in relay.get("/nodes")["data"]:
                    if seen["state"] == "ready":
                        models.extend(m["id"] for m in seen["serving"] if m["ready"])
                for trouble in [] if models else _upstream_troubles(relay):
                    if trouble not in told:
                        told.add(trouble)
                        _say(trouble)
            return bool(models)

        await _until(ready, "the node to serve a model", node)
        return models[0]

    def _key(self, target: Target) -> str:
        """Return the API key of the last start if it is still valid, else a new one."""
        folder = DataFolder.open(self.data)
        with AdminClient(target) as relay:
            if (kept := folder.read(KEY_FILE)) is not None:
                try:
                    key = json.loads(kept)
                    key_id, secret = str(key["id"]), str(key["key"])
                except (ValueError, KeyError, TypeError):
                    key_id, secret = "", ""
                if key_id in {key["id"] for key in relay.get("/keys")["data"]}:
                    return secret
            created = relay.post("/keys", {"name": "wai up"})
        kept_fields = {"id": created["id"], "key": created["key"]}
        folder.write(KEY_FILE, json.dumps(kept_fields).encode() + b"\n")
        return str(created["key"])

    # -- folders and output
    @property
    def _relay_data(self) -> Path:
        return self.data / "relay"

    @property
    def _node_data(self) -> Path:
        return self.data / "node"

    def _announced_by(self, relay: Child) -> bool:
        try:
            running: dict[str, Any] = json.loads((self._relay_data / "relay.json").read_bytes())
        except (OSError, ValueError):
            return False
        return running.get("pid") == relay.pid

    def _target(self) -> Target:
        return local_target(self._relay_data)

    def _explain(self, target: Target, key: str, model: str, link: str, *, demo: bool) -> None:
        certificate = self._relay_data / "relay-ca.crt"
        if not certificate.exists():  # a folder of an earlier version
            certificate = self._relay_data / "relay.crt"
        question = {
            "model": model,
            "stream": True,
            "messages": [{"role": "user", "content": "Tell me a fact about the sea."}],
        }
        if demo:
            question["max_tokens"] = DEMO_ANSWER_TOKENS
        body = json.dumps(question)
        _say(f"""
base URL   {target.url}/v1
API key    {key}
model      {model}
trust      {certificate}
dashboard  {link}
           (the link signs one browser in, within ten minutes)

curl -sSN --cacert {shlex.quote(str(certificate))} {target.url}/v1/chat/completions \
-H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d {shlex.quote(body)}

Ctrl-C stops everything; keys and data stay in {self.data}
""")


def _as_setting(server: Server) -> str:
    key = f", key = {json.dumps(server.key)}" if server.key else ""
    return f"{{url = {json.dumps(server.url)}{key}}}"


async def _watch(model_server: DemoModel) -> None:
    """Wait until the demo's model ends, which is a fault: nothing would start it again."""
    raise TransportError(await model_server.wait())


async def _has_models(node_data: Path) -> bool:
    """Return whether an inference server on one of the usual ports serves a model."""
    serving = False
    for upstream, judged in await look_around(Consent(node_data), kinds=installed_kinds()):
        if judged.verdict is not Verdict.ALLOWED:
            _say(f"found {upstream.name}, which belongs to {judged.owner}: {judged.verdict.text}")
            await upstream.aclose()
            continue
        try:
            models = (await upstream.probe()).models
            _say(f"found {upstream.name} with {len(models)} models")
            serving = serving or bool(models)
        except WaiError as error:
            _say(f"found {upstream.name}, which does not answer: {error}")
        finally:
            await upstream.aclose()
    return serving


async def _until(done: Callable[[], bool], what: str, child: Child) -> None:
    """Poll `done`, and print a message if it takes long. Raises `TransportError`."""
    said = False
    start = anyio.current_time()
    while not await anyio.to_thread.run_sync(done):
        child.check()
        waited = anyio.current_time() - start
        if waited > START_TIMEOUT_S:
            raise TransportError(f"waited {START_TIMEOUT_S:g} s for {what}")
        if waited > SLOW_AFTER_S and not said:
            said = True
            _say(f"waiting for {what} …")
        await anyio.sleep(POLL_S)


def _upstream_troubles(relay: AdminClient) -> list[str]:
    """Why the servers that the node should serve are not used, as far as the relay knows."""
    problems = read_as(ProblemList, relay.get("/problems")).data
    return [one.text for one in problems if one.kind == "upstream"]


def _sign_in_link(target: Target) -> str:
    """Return a link that opens the dashboard, signed in."""
    with AdminClient(target) as relay:
        return str(relay.post("/sign-in-links")["url"])


def _machine_name() -> str:
    """Return this machine's name, as a valid node name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname().partition(".")[0])
    return name.strip("._-")[:63] or "node"


def _say(text: str) -> None:
    print(plain(text), flush=True)
