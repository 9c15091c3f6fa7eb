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
    """An inference server given by URL. Raises `RequestError` for values that make no sense."""

    url: str
    """http://HOST:PORT, or unix:///PATH."""
    key: str | None = field(default=None, repr=False)
    """The key that it asks for."""
    slots: int | None = None
    """How many requests it works on at once, where it does not tell; without it: the relay learns
    that."""
    extra: tuple[str, ...] = ()
    """Routes that it has beside those of wai, as `POST /custom/*`; callers may ask for them."""

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
    """What the relay's admins may have this node run."""

    allow: bool = True
    """Whether they may have it run models at all."""
    publishers: tuple[str, ...] = ()
    """The only ones on the hub whose models are taken; empty: any."""
    disk_quota_gib: float | None = None
    """What all models may take; without it: what the disk has."""
    models_folder: Path | None = None
    """Where models lie; without it: in the data folder."""
    server: str | None = None
    """The llama-server to run; without it: the one that `wai node engine` chose or finds."""
    server_flags: tuple[str, ...] = ()
    """Flags that are added to its own."""
    threads: int | None = None
    """Its threads; without it they are left to llama-server."""
    load_timeout_s: float | None = None
    """When a server that still loads counts as hung; without it: after 120 s, and more for large
    files."""
    engine: EngineInstalls = "ask"
    """Whether a deployment on a node without an engine installs one: if it asks for that, by itself
    (auto), or never."""
    engine_manifest: Path | None = None
    """The file that lists what may be installed; without it: the shipped one."""
    allow_engine_flags: bool = False
    """Whether a deployment may add flags to its server's, with all that llama-server can do by
    them."""
    allow_environment: tuple[str, ...] = ()
    """The names of the environment variables that a deployment may set for its server."""
    folders: tuple[Path, ...] = ()
    """GGUF files below these may be deployed by their paths."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything that `wai node run` needs. Raises `RequestError` for values that make no sense."""

    data: Path
    relay: str | None = None
    """HOST:PORT to dial instead of the relay's own address, which is expected to answer with the
    same pin (a forwarder)."""
    upstreams: tuple[UpstreamConfig, ...] = ()
    """The only inference servers to serve; empty: those found on the usual ports."""
    tunnels: int = 1
    """Connections to keep to the relay, on which streams are spread."""
    log_level: LogLevel = "info"
    """What is written to the log: this, and what is more serious."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or a JSON object in each line."""
    drain_timeout_s: float = 600.0
    """How long a stopping node lets answers in flight end by themselves."""
    deploy: DeployConfig = field(default_factory=DeployConfig)
    """What the relay's admins may have this node run."""
    hf_endpoint: str = "https://huggingface.co"
    """Where models come from (`HF_ENDPOINT`)."""
    hf_token: str | None = field(default=None, repr=False)
    """Who we are there (`HF_TOKEN`); without it: anybody."""
    engine_mirror: str | None = None
    """Where engines come from (`WAI_ENGINE_MIRROR`): a URL below which the files of each release
    lie in a folder with the release's name; without it: from where the manifest says."""
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
