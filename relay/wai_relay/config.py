"""How a relay is run: the settings that `wai relay` takes from its file, environment and flags.

Values and their checks only; `wai_cli.options.settings` merges the sources. What can be changed
while the relay runs is in `settings`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from wai_protocol.errors import RequestError
from wai_protocol.invite import MAX_PINS
from wai_transport.http_proxy import ProxySettings
from wai_transport.origin import Origin

from .fleet.provider_config import ProviderConfig
from .gateway.limits import GatewayLimits
from .health.config import HealthConfig
from .http.cors import CorsConfig
from .http.trusted_proxies import ProxyConfig
from .notify.config import NotifyConfig
from .policy.demands import OVERFLOW_AFTER_S
from .policy.scoring import FIRST_TOKEN_WEIGHT
from .storage.postgres_address import PostgresAddress

DEFAULT_LISTEN: Final = "127.0.0.1:8443"  # a first try must not be open to the world
LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"
HTTPS_PORT: Final = 443
LogLevel = Literal["debug", "info", "warning", "error"]
# Two labels or more of a lower-case host name. No address, no wildcard: they need other challenges.
_DOMAIN: Final = re.compile(r"(?=.{4,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*")
_PROXY_KEYS: Final = re.compile(rf"[0-9a-fA-F]{{64}}(, ?[0-9a-fA-F]{{64}}){{0,{MAX_PINS - 1}}}")
_EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """How the relay chooses among nodes (`[routing]`)."""

    first_token_weight: float = FIRST_TOKEN_WEIGHT
    """What a second until the first token counts beside a second of generating the answer. 1: only
    the time to the answer's end matters; the more, the more the first token matters."""

    def __post_init__(self) -> None:
        if not 0 < self.first_token_weight <= 1e6:
            raise RequestError("routing.first_token_weight is more than 0, up to 1000000")


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """Everything that `wai relay` needs. Raises `RequestError` for values that make no sense."""

    data: Path
    listen: str = DEFAULT_LISTEN
    """HOST:PORT ([HOST]:PORT for IPv6), or :PORT for every address of this machine, IPv4 and IPv6
    where there is one."""
    shared_listen: str | None = None
    """HOST:PORT that several relays of this machine listen on at the same time, each beside its own
    `listen`: the kernel spreads callers over them."""
    tls: str = "self-signed"
    """self-signed, off (a proxy ends TLS), acme (a certificate for `domain` from an authority), or
    CERT,KEY (two PEM files)."""
    public_url: str | None = None
    """How nodes and callers reach this relay, where that is not the address that it listens on."""
    node_url: str | None = None
    """How nodes reach this very relay, where `public_url` leads to several relays that share a
    database."""
    proxy_key_sha256: str = ""
    """With `tls` off: the SHA-256 of the public key in the certificate that the proxy shows, in
    hex; up to four, by commas. Invites carry them, and nodes then believe no other key."""
    log_level: LogLevel = "info"
    """What is written to the log: this, and what is more serious."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or a JSON object in each line."""
    metrics_token: str | None = None
    """What Prometheus shows at `/metrics`; an admin's token is good there too."""
    otlp_endpoint: str | None = None
    """Where spans go (OTLP over HTTP); without it: none are made. Needs the extra `otel`."""
    drain_timeout_s: float = 600.0
    """How long a stopping relay lets answers in flight end by themselves."""
    session_ttl_s: float = 60.0
    """How long a node's session outlives its connection, before its streams are given up."""
    ping_s: float = 10.0
    """Silence from a node after which it is asked for a sign of life."""
    dead_s: float = 25.0
    """Silence after which its connection is given up; its session waits for the next one."""
    domain: str | None = None
    """The name that an ACME authority gives a certificate for."""
    acme_directory: str = LETS_ENCRYPT
    """The ACME authority."""
    cluster_key_file: Path | None = None
    """A file with a secret that all relays of a fleet have: with it they share the certificate that
    an authority gives for `domain`, through their database."""
    acme_email: str | None = None
    """Where the authority may write to."""
    acme_ca: Path | None = None
    """Whom to believe that it is that authority, in PEM; without it: the system's authorities."""
    acme_challenge: Literal["tls-alpn-01", "http-01"] = "tls-alpn-01"
    """How the domain is proved: on the relay's own port, which must be reached as port 443 of the
    domain, or on port 80."""
    acme_http_listen: str = ":80"
    """Where HTTP-01 is answered, while the authority looks."""
    gateway: GatewayLimits = field(default_factory=GatewayLimits)
    """Bounds of requests."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Other names of models: what callers say, and what is served for it."""
    fallbacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Models that may stand in for one that can't be served, best first."""
    providers: tuple[ProviderConfig, ...] = ()
    """Cloud services beside the nodes."""
    provider_after_s: float = OVERFLOW_AFTER_S
    """How long a request may wait for a node's slot before it goes to a provider, if it may."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    """How the relay chooses among nodes."""
    cors: CorsConfig = field(default_factory=CorsConfig)
    """Which web pages may call the API from a browser."""
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    """The proxies in front of the relay."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """What counts as a problem."""
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    """Who is told of problems."""
    database: str | None = field(default=None, repr=False)
    """PostgreSQL, shared by several relays: postgresql://USER@HOST:PORT/DATABASE, where several
    hosts may stand, by commas; without it: a file in the data folder. Needs the extra
    `postgres`."""
    database_password_file: Path | None = None
    """The password for `database`, in a file's first line, which is read for each connection."""
    https_proxy: str | None = field(default=None, repr=False)
    """The HTTP proxy by which the relay reaches providers and the ACME authority (`HTTPS_PROXY`):
    http://[USER:PASSWORD@]HOST:PORT."""
    no_proxy: str = ""
    """What is reached without it (`NO_PROXY`)."""

    def __post_init__(self) -> None:
        split_address(self.listen)
        if self.shared_listen is not None and split_address(self.shared_listen)[1] == 0:
            raise RequestError("shared_listen needs a port, the same for each relay")
        if self.tls not in ("self-signed", "off", "acme") and len(self.tls.split(",")) != 2:
            raise RequestError("tls is self-signed, off, acme, or CERT,KEY (two files)")
        if self.tls == "acme":
            self._check_acme()
        elif self.domain is not None:
            raise RequestError(
                "a domain is for tls = acme, which gets a certificate for it; add --tls acme,"
                " or leave the domain out"
            )
        self._check_proxy_key()
        _check_url("public_url", self.public_url)
        _check_url("node_url", self.node_url)
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(
            ("https://", "http://")
        ):
            raise RequestError("otlp_endpoint is a URL, such as http://127.0.0.1:4318/v1/traces")
        if not 0 < self.ping_s < self.dead_s:
            raise RequestError("ping_s is more than 0, and dead_s more than ping_s")
        if self.drain_timeout_s < 0 or self.session_ttl_s <= 0:
            raise RequestError("drain_timeout_s is 0 or more, session_ttl_s more than 0")
        if self.provider_after_s < 0:
            raise RequestError("provider_after_s is 0 or more")
        if self.database is not None:
            _ = self.postgres
        elif self.database_password_file is not None:
            raise RequestError("database_password_file is for a database = postgresql://…")
        if len({provider.name for provider in self.providers}) < len(self.providers):
            raise RequestError("two providers have the same name")

    def _check_proxy_key(self) -> None:
        if not self.proxy_key_sha256:
            return
        if self.tls != "off" or not (self.public_url or "").startswith("https://"):
            raise RequestError(
                "proxy_key_sha256 is for tls = off, with the proxy's https:// address as public_url"
            )
        if _PROXY_KEYS.fullmatch(self.proxy_key_sha256) is None:
            raise RequestError(
                f"proxy_key_sha256 is 64 hexadecimal digits, or up to {MAX_PINS} times 64 by commas"
            )

    @property
    def proxy_pin(self) -> bytes | None:
        """What invites say of the key of the proxy that ends TLS, None where nothing is known."""
        return bytes.fromhex(self.proxy_key_sha256.replace(",", " ")) or None

    @property
    def postgres(self) -> PostgresAddress | None:
        """The shared database, None for a file in the data folder. Raises `RequestError`."""
        if self.database is None:
            return None
        return PostgresAddress(self.database, self.database_password_file)

    @property
    def proxies(self) -> ProxySettings:
        """The way to what the relay connects to."""
        return ProxySettings(self.https_proxy, self.no_proxy)

    def _check_acme(self) -> None:
        if self.domain is None or _DOMAIN.fullmatch(self.domain) is None:
            raise RequestError(
                "tls = acme needs a domain, such as llm.example.com, in its ASCII form"
            )
        if not self.acme_directory.startswith("https://"):
            raise RequestError("acme_directory begins with https://")
        split_address(self.acme_http_listen)

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port to listen on."""
        return split_address(self.listen)

    @property
    def shared_address(self) -> tuple[str, int] | None:
        """The host and the port to listen on together with other relays, if there are any."""
        return None if self.shared_listen is None else split_address(self.shared_listen)

    @property
    def given_certificate(self) -> tuple[Path, Path] | None:
        """The operator's certificate and key, where `tls` names them."""
        certificate, _, key = self.tls.partition(",")
        return (Path(certificate), Path(key)) if key else None

    def local_url(self, port: int | None = None) -> str:
        """How this machine reaches the relay; `port` where the system chose it (listen on 0)."""
        host, chosen = self.address
        return self._url(_EVERY_ADDRESS.get(host, host), port or chosen)

    def invite_url(self, port: int | None = None) -> str:
        """How nodes reach the relay."""
        if self.public_url is None and self.tls == "acme":
            port = port or self.address[1]
            return f"https://{self.domain}" + (f":{port}" if port != HTTPS_PORT else "")
        return self.public_url or self.local_url(port)

    def _url(self, host: str, port: int) -> str:
        scheme = "http" if self.tls == "off" else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _check_url(name: str, url: str | None) -> None:
    """Refuse an address that no node and no caller could use. Raises `RequestError`."""
    if url is None:
        return
    if not url.startswith(("https://", "http://")):
        raise RequestError(f"{name} begins with https://")
    try:
        Origin.parse(url)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error


def split_address(address: str) -> tuple[str, int]:
    """ "HOST:PORT" or "[HOST]:PORT" as a pair. Raises `RequestError`."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise RequestError(f"{address!r}: write an IPv6 address as [HOST]:PORT")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise RequestError(f"{address!r} is not HOST:PORT")
    return host, int(port)
