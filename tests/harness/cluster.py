"""The whole path in real processes: a relay, nodes and their upstreams, each in its own folder.

Everything uses the public commands (`wai relay`, `wai node run`, …) and HTTP APIs. What tests ask
for again and again is asked by the admin API: starting Python for a command takes half a second.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from wai_cli.client.admin_client import AdminClient
from wai_cli.client.target import local_target
from wai_node.config import JoinConfig
from wai_node.main import join

from .processes import Daemon, free_port, wait_until
from .real import script

_COMMAND_TIMEOUT_S: Final = 60.0
_ANSWER_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The result of `wai key create`: the id is for revoking, the secret for callers."""

    id: str
    secret: str


@dataclass(frozen=True, slots=True)
class Node:
    """A joined node; `daemon` is its running `wai node run`."""

    name: str
    data: Path
    daemon: Daemon


class CommandError(Exception):
    """A `wai` command ended with a status other than 0."""

    def __init__(self, argv: list[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(argv)} ended with {status}:\n{output}")
        self.status = status
        self.output = output


def wai(*arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a `wai` command and return its stdout. Raises `CommandError` if it fails."""
    argv = [script("wai"), *map(str, arguments)]
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
        env=dict(env) if env is not None else None,
    )
    if done.returncode:
        raise CommandError(argv, done.returncode, done.stdout + done.stderr)
    return done.stdout


@dataclass(slots=True)
class Cluster:
    """A relay in `folder`/relay and the nodes that were added to it. Made by `cluster(folder)`."""

    folder: Path
    port: int
    relay: Daemon
    _command: list[str]
    _ending: ExitStack
    _env: Mapping[str, str] | None = None
    nodes: dict[str, Node] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """`https://127.0.0.1:PORT`."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """The base URL for an OpenAI SDK."""
        return f"{self.url}/v1"

    @property
    def data(self) -> Path:
        """The relay's data folder."""
        return self.folder / "relay"

    @property
    def ca(self) -> Path:
        """The certificate that callers trust."""
        return self.data / "relay.crt"

    def tls(self) -> ssl.SSLContext:
        """A context for callers in Python, which trusts this relay alone."""
        return ssl.create_default_context(cafile=str(self.ca))

    def create_key(self, name: str = "test", *options: str) -> ApiKey:
        """Create an API key; `options` are those of `wai key create`, which then does it."""
        if options:
            answer = json.loads(wai("key", "create", name, *options, "--data", self.data, "--json"))
        else:
            answer = self.admin("post", "/keys", {"name": name})
        return ApiKey(answer["id"], answer["key"])

    def revoke(self, key: ApiKey) -> None:
        """Revoke an API key."""
        self.admin("delete", f"/keys/{key.id}")

    def invite(self) -> str:
        """Create a join string for one node."""
        invite: str = self.admin("post", "/invites")["invite"]
        return invite

    def list_nodes(self) -> list[dict[str, Any]]:
        """Return what `wai node list --json` prints."""
        nodes: list[dict[str, Any]] = self.admin("get", "/nodes")["data"]
        return nodes

    def usage(self, by: str) -> list[dict[str, Any]]:
        """Return the rows of `wai usage --json`, without their names."""
        rows: list[dict[str, Any]] = self.admin("get", f"/usage?by={by}")["data"]
        return rows

    def admin(self, method: str, path: str, *body: dict[str, Any]) -> Any:
        """Call the admin API, as a method of `AdminClient`. Raises `WaiError`."""
        with AdminClient(local_target(self.data)) as relay:
            return getattr(relay, method)(path, *body)

    def add_node(
        self,
        name: str,
        upstream: str,
        *,
        upstream_key: str = "",
        models: int = 1,
        options: tuple[str, ...] = (),
    ) -> Node:
        """Join a node and run it with one upstream, until it is ready with `models` models.

        `options` go to `wai node run` as they are.
        """
        self.join(name)
        key_options = ("--upstream-key", upstream_key) if upstream_key else ()
        return self.run_node(name, "--upstream", upstream, *key_options, *options, models=models)

    def join(self, name: str, *options: str) -> None:
        """Have a node join; `options` are those of `wai node join`, which then does it."""
        data, invite = self.folder / name, self.invite()
        if options:
            wai("node", "join", invite, "--data", data, "--name", name, *options)
            return
        config = JoinConfig(data=data, invite=invite, name=name)
        with ThreadPoolExecutor(1) as pool:  # here there may be an event loop already
            pool.submit(join, config).result()

    def run_node(self, name: str, *options: str, models: int = 1) -> Node:
        """`wai node run` for a node that has joined, until it is ready with `models` models."""
        node = self.start_node(name, *options)
        node.daemon.wait_until(partial(self._serves, name, models), f"{name} is not ready")
        return node

    def start_node(self, name: str, *options: str, through: tuple[str, ...] = ()) -> Node:
        """`wai node run` for a node that has joined; it may not be connected yet.

        `through`: a command that starts it, as `("ip", "netns", "exec", "NAME")`.
        """
        data = self.folder / name
        daemon = self._ending.enter_context(
            Daemon(
                [*through, script("wai"), "node", "run", "--data", str(data), *options],
                log=self.folder / f"node-{name}.log",
            )
        )
        node = self.nodes[name] = Node(name, data, daemon)
        return node

    def restart_relay(self) -> None:
        """Stop the relay with SIGTERM and start the same command again, on the same port."""
        self.relay.stop()
        self.start_relay_again()

    def start_relay_again(self) -> None:
        """Start the same command again after the relay has ended; wait until it answers."""
        self.relay = self._ending.enter_context(
            Daemon(self._command, log=self.relay.log, env=self._env)
        )
        self.relay.wait_until(self._answers, "the relay does not answer")

    def wait_for_state(self, name: str, state: str) -> None:
        """Wait until the relay's list shows `name` in `state`."""
        wait_until(lambda: self.state_of(name) == state, f"{name} is not {state}")

    def state_of(self, name: str) -> str | None:
        """The state that the relay's list shows; None for a node that is not in it."""
        return next((n["state"] for n in self.list_nodes() if n["name"] == name), None)

    def get(self, path: str) -> int:
        """The status of `GET path` at the relay, without a key."""
        try:
            with urllib.request.urlopen(
                self.url + path, timeout=_ANSWER_TIMEOUT_S, context=self.tls()
            ) as answer:
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def _serves(self, name: str, models: int) -> bool:
        return any(
            node["name"] == name and node["state"] == "ready" and _ready(node) >= models
            for node in self.list_nodes()
        )

    def _answers(self) -> bool:
        try:
            announced = (self.data / "relay.json").exists()  # commands find it by that
            return announced and self.ca.exists() and self.get("/healthz") == 200
        except (urllib.error.URLError, ConnectionError, ssl.SSLError):
            return False


def _ready(node: dict[str, Any]) -> int:
    """Return how many models a node serves now; its list also has those that are away."""
    return sum(1 for model in node["serving"] if model["ready"])


@contextmanager
def cluster(
    folder: Path,
    *options: str,
    host: str = "127.0.0.1",
    env: Mapping[str, str] | None = None,
    through: tuple[str, ...] = (),
) -> Iterator[Cluster]:
    """Run a relay without nodes, with its data in `folder`; `options` are passed to `wai relay`.

    `host` is where it listens: 0.0.0.0 for peers in another network namespace. `through`: a command
    that starts it, as `start_node` has one.
    """
    port = free_port()
    command = [*through, script("wai"), "relay", "--data", str(folder / "relay")]
    command += ["--listen", f"{host}:{port}", *options]
    relay = Daemon(command, log=folder / "relay.log", env=env)
    with ExitStack() as ending:
        ending.enter_context(relay)
        running = Cluster(folder, port, relay, command, ending, env)
        relay.wait_until(running._answers, "the relay does not answer")
        yield running
