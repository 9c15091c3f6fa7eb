"""How a node is run: the settings that `wai node run` takes from its file, environment and flags.

Values and their checks only; `wai_cli.options.settings` merges the sources. Where the relay is and
how to know it came with the invite, and is kept by the node, not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from wai_protocol.errors import RequestError
from wai_protocol.surface import extra_route
from wai_transport.origin import UNIX_PREFIX

LogLevel = Literal["debug", "info", "warning", "error"]
EngineInstalls = Literal["ask", "auto", "never"]
MAX_SLOTS: Final = 4096  # no server works on more requests at once
MAX_EXTRA_ROUTES: Final = 32  # of one upstream
MAX_TUNNELS: Final = 8  # more connections to one relay gain nothing


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """An inference server given by URL: `http://host:port` or `unix:///path`, the key that it asks
    for, and how many requests it works on at once where it does not tell (None: the relay learns
    it). `extra`: routes that it has beside those of wai, as `POST /custom/*`; callers may ask for
    them."""

    url: str
    key: str | None = field(default=None, repr=False)
    slots: int | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            good = good or self.url.startswith(UNIX_PREFIX)
        except ValueError:
            good = False
        if not good:
            raise RequestError(f"the upstream {self.url!r} is not http://HOST:PORT or unix:///PATH")
        if self.slots is not None and not 1 <= self.slots <= MAX_SLOTS:
            raise RequestError(f"slots of the upstream {self.url!r} is 1 to {MAX_SLOTS}")
        if len(self.extra) > MAX_EXTRA_ROUTES:
            raise RequestError(f"extra of the upstream {self.url!r} has up to {MAX_EXTRA_ROUTES}")
        for text in self.extra:
            extra_route(text)


@dataclass(frozen=True, slots=True)
class DeployConfig:
    """What the relay's admins may have this node run.

    `allow`: models at all. `publishers`: the only ones on the hub whose models are taken; empty:
    any. `disk_quota_gib`: what all of them may take, None: what the disk has. `models_folder`:
    where they lie, None: in the data folder. `server`: the llama-server to run, None: the one that
    `wai node engine` chose or finds; `server_flags` are added to its own. `threads`: None leaves it
    to llama-server. `load_timeout_s`: when a server that still loads counts as hung, None: 120 s
    and more for large files. `engine`: on a node without an engine a deployment installs one if it
    asks for that, by itself ("auto"), or never. `engine_manifest`: the file that lists what may be
    installed, None: the shipped one. `allow_engine_flags`: a deployment may add flags to its
    server's, with all that llama-server can do by them. `folders`: GGUF files below them may be
    deployed by their paths.
    """

    allow: bool = True
    publishers: tuple[str, ...] = ()
    disk_quota_gib: float | None = None
    models_folder: Path | None = None
    server: str | None = None
    server_flags: tuple[str, ...] = ()
    threads: int | None = None
    load_timeout_s: float | None = None
    engine: EngineInstalls = "ask"
    engine_manifest: Path | None = None
    allow_engine_flags: bool = False
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything that `wai node run` needs.

    `upstreams`: the only ones to serve; empty means those found on the usual ports. `relay`: a
    HOST:PORT to dial instead of the relay's own address, which is expected to answer with the same
    pin (a forwarder). Raises `RequestError` for values that make no sense.
    """

    data: Path
    relay: str | None = None
    upstreams: tuple[UpstreamConfig, ...] = ()
    tunnels: int = 1
    """Connections to keep to the relay, on which streams are spread."""
    log_level: LogLevel = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: float = 600.0
    """How long a stopping node lets answers in flight end by themselves."""
    deploy: DeployConfig = field(default_factory=DeployConfig)
    hf_endpoint: str = "https://huggingface.co"
    """Where models come from (`HF_ENDPOINT`)."""
    hf_token: str | None = field(default=None, repr=False)
    """Who we are there (`HF_TOKEN`); None: anybody."""
    engine_mirror: str | None = None
    """Where engines come from (`WAI_ENGINE_MIRROR`): a URL below which the files of each release
    lie in a folder with the release's name; None: from where the manifest says."""
    https_proxy: str | None = field(default=None, repr=False)
    """The HTTP proxy for the relay and the hub (`HTTPS_PROXY`): http://[USER:PASSWORD@]HOST:PORT."""
    no_proxy: str = ""
    """What is reached without it (`NO_PROXY`)."""
    ping_s: float = 10.0
    """Silence from the relay after which it is asked for a sign of life."""
    dead_s: float = 25.0
    """Silence after which the connection is given up and the relay is dialled again."""

    def __post_init__(self) -> None:
        if not 0 < self.ping_s < self.dead_s:
            raise RequestError("ping_s is more than 0, and dead_s more than ping_s")
        if not 1 <= self.tunnels <= MAX_TUNNELS:
            raise RequestError(f"tunnels is 1 to {MAX_TUNNELS}")
        if self.drain_timeout_s < 0:
            raise RequestError("drain_timeout_s is 0 or more")
        if self.relay is not None:
            _check_address(self.relay)


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """Everything that `wai node join` needs. `name` is None where the invite's shall do."""

    data: Path
    invite: str = field(repr=False)
    name: str | None = None
    relay: str | None = None
    allow_deploy: bool = True
    """Whether the relay's admins may have this node run models."""
    https_proxy: str | None = field(default=None, repr=False)
    no_proxy: str = ""

    def __post_init__(self) -> None:
        if self.relay is not None:
            _check_address(self.relay)


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
        raise RequestError(f"relay is HOST:PORT, not {address!r}")
