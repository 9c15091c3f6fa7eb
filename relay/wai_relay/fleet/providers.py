"""Cloud providers: services that speak OpenAI's API, as upstreams beside the nodes.

To the gateway a provider is one more upstream, to the scheduler one more candidate that is not our
own. What goes there is the request's body and nothing of who asked: neither the caller's headers
nor its key. What comes back is the answer; what a provider says about its customer (us) stays here.

When to use one is `selection`'s.
"""

from __future__ import annotations

import json
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Final

from wai_protocol.errors import Fault, NodeUnavailable, WaiError
from wai_protocol.status import ModelStatus, NodeStatus
from wai_protocol.surface import ROUTES, Headers
from wai_protocol.websocket import PROTOCOL_FIELD, protocol_fields, protocols_in
from wai_relay.contracts.records import TokenCounts
from wai_relay.contracts.upstream import Fleet, ServingNode, Sink, UpstreamStream
from wai_transport.http_client import HttpClient
from wai_transport.http_proxy import DIRECT, ProxySettings
from wai_transport.http_request import ClientRequest
from wai_transport.origin import Origin
from wai_transport.version import VERSION

from .provider_config import ProviderConfig, ProviderModel
from .provider_trouble import REFUSES_US, ProviderTrouble, Trouble

NAME_PREFIX: Final = "provider:"  # no node's name has a colon
API_PREFIX: Final = "/v1"  # of our paths; a provider's base URL has its own
# Response bytes that may wait for a slow caller, as a stream from a node has at the beginning.
WINDOW_BYTES: Final = 256 * 1024
# A provider that limits us and does not say for how long.
DEFAULT_REST_S: Final = 5.0
LONGEST_REST_S: Final = 300.0  # what one answer may keep a provider out of service for
_MILLION: Final = 1_000_000
_FORWARDED: Final = frozenset({b"content-type", b"accept", PROTOCOL_FIELD})

log = logging.getLogger("wai.providers")


class Provider(ServingNode):
    """One provider. Belongs to one loop; `aclose` ends what it has open."""

    kind = "provider"

    def __init__(
        self,
        config: ProviderConfig,
        key: str,
        *,
        proxies: ProxySettings = DIRECT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`key` is sent as a bearer token, "" for none. Raises `WaiError` for a bad CA file, or a
        proxy that can't be used."""
        self.given = (config, key, proxies)
        origin, self._base_path = Origin.parse(config.base_url)
        self.name = NAME_PREFIX + config.name
        self.status = NodeStatus(
            tuple(
                ModelStatus(
                    model.id, NAME_PREFIX + config.name, context_tokens=model.context_tokens
                )
                for model in config.models
            )
        )
        self._models = {model.id: model for model in config.models}
        self._key = key
        self._clock = clock
        self._rests_until = 0.0
        self._client = HttpClient(origin, tls=_tls(config, origin), proxies=proxies)
        self.watched = ProviderTrouble(
            self._client, f"{self._base_path}/models", self._own_headers(), clock=clock
        )

    @property
    def trouble(self) -> Trouble | None:
        """Why it can't be used; None while it can, as far as is known."""
        return self.watched.now

    @property
    def ahead_s(self) -> float | None:
        """How far its clock is ahead of ours; None if that is not known."""
        return self.watched.ahead_s

    @property
    def ready(self) -> bool:
        """Whether it takes requests: not while it limits us."""
        return self._clock() >= self._rests_until

    def name_of(self, model: str) -> str:
        """See `ServingNode`."""
        return self._models[model].name or model

    def cost(self, model: str, tokens: TokenCounts) -> float:
        """See `ServingNode`."""
        return price_of(self._models[model], tokens)

    def open(
        self, method: str, target: str, headers: Headers, model: str, sink: Sink, *, end: bool
    ) -> ProviderStream:
        """See `Upstream`. Only OpenAI's own paths exist there."""
        if not self.ready:
            raise NodeUnavailable(f"{self.name} limits this relay for now", Fault.OVERLOADED)
        sent = [(name, value) for name, value in headers if name in _FORWARDED]
        sent += self._own_headers()
        path = self._base_path + target.removeprefix(API_PREFIX)

        def begin(answer: ProviderStream, body_length: int | None) -> ClientRequest:
            return self._client.request(method, path, sent, answer, body_length=body_length)

        def connect(answer: ProviderStream, body_length: int | None) -> ClientRequest:
            del body_length
            return self._client.open_websocket(path, sent, answer)

        route = ROUTES.find(method, target.partition("?")[0])
        if route is not None and route.is_websocket:
            return ProviderStream(self, connect, sink, 0, at_once=True)
        told = dict(headers).get(b"content-length")
        stream = ProviderStream(self, begin, sink, None if told is None else int(told))
        if end:
            stream.end()
        return stream

    def _own_headers(self) -> Headers:
        """What says who we are."""
        own: Headers = [(b"user-agent", b"wai/" + VERSION.encode())]
        if self._key:
            own.append((b"authorization", b"Bearer " + self._key.encode()))
        return own

    def rest(self, seconds: float) -> None:
        """It limits us: offer it nothing for so long."""
        seconds = min(max(seconds, 0.0), LONGEST_REST_S)
        self._rests_until = max(self._rests_until, self._clock() + seconds)
        log.warning("%s limits this relay; it gets nothing for %.0f s", self.name, seconds)

    def retire(self) -> None:
        """It gets no new requests: close each connection when its request is over."""
        self._client.retire()

    @property
    def busy(self) -> bool:
        """Whether something is still open."""
        return self._client.open_connections > 0

    async def aclose(self) -> None:
        """Close its connections."""
        await self.watched.close()
        await self._client.aclose()


class ProviderStream(UpstreamStream):
    """One request to a provider; also the sink of its answer."""

    __slots__ = (
        *("_answered", "_begin", "_held", "_length", "_over", "_provider", "_request", "_sink"),
        "_waiting",
    )

    def __init__(
        self,
        provider: Provider,
        begin: Callable[[ProviderStream, int | None], ClientRequest],
        sink: Sink,
        length: int | None,
        *,
        at_once: bool = False,
    ) -> None:
        """`length`: of the request's body, if that is known already. `at_once`: begin without any
        of it; what then answers 101 is a WebSocket."""
        self._provider = provider
        self._length = length
        self._begin = begin
        self._sink = sink
        self._request: ClientRequest | None = None
        self._held: bytes | None = None  # the first piece of the body: it may be all of it
        self._over = False
        self._answered = False
        self._waiting = 0
        if at_once:
            self._request = begin(self, length)

    # -- the request
    def write(self, data: bytes) -> bool:
        """See `UpstreamStream`."""
        if self._over:
            return True
        if self._request is None:
            if self._length is None and self._held is None:
                self._held = data
                return True
            self._request = self._begin(self, self._length)
            if self._held is not None:
                self._request.write(self._held)
        return self._request.write(data)

    async def drain(self) -> None:
        """See `UpstreamStream`."""
        if self._request is not None:
            await self._request.drain()

    def end(self) -> None:
        """See `UpstreamStream`. A body in one piece goes with its length: not all take chunks."""
        if self._over:
            return
        if self._request is None:
            body = self._held or b""
            self._request = self._begin(self, len(body))
            self._request.write(body)
        self._held = None
        self._request.end()

    def reset(self, fault: Fault, reason: str = "") -> None:
        """See `UpstreamStream`."""
        self._over = True
        if self._request is not None:
            self._request.close()

    def consume(self, n: int) -> None:
        """See `UpstreamStream`."""
        self._waiting -= n
        request = self._request
        if request is not None and request.reading_paused and self._waiting < WINDOW_BYTES // 2:
            request.resume_reading()

    # -- the answer
    def on_headers(self, status: int, headers: Headers) -> None:
        """The head. What it refuses us is no refusal of the caller, and is told in our words."""
        named = dict(headers)
        self._answered = True
        self._provider.watched.answered(status)
        if status in REFUSES_US:
            log.error("%s refuses this relay's key (status %d)", self._provider.name, status)
            self._refuse(502, Fault.UPSTREAM_BROKE, "does not accept this relay's key", [])
        elif status == 429:
            seconds = _seconds(named.get(b"retry-after", b""))
            self._provider.rest(seconds)
            retry = (b"retry-after", b"%d" % max(round(seconds), 1))
            self._refuse(503, Fault.OVERLOADED, "limits this relay's requests", [retry])
        elif status == 101:
            self._sink.on_headers(200, protocol_fields(protocols_in(headers)))
        else:
            content_type = named.get(b"content-type", b"application/json")
            self._sink.on_headers(status, [(b"content-type", content_type)])

    def on_data(self, data: bytes) -> None:
        """Body bytes."""
        self._waiting += len(data)
        if self._waiting > WINDOW_BYTES and self._request is not None:
            self._request.pause_reading()
        self._sink.on_data(data)

    def on_end(self) -> None:
        """The answer is complete."""
        self._sink.on_end()

    def on_error(self, error: WaiError) -> None:
        """It can't be had, or broke off."""
        log.warning("%s: %s", self._provider.name, error)
        if not self._answered:  # else it is there, and only this answer was cut
            self._provider.watched.failed(error)
        self._sink.on_reset(error.fault, f"{self._provider.name} failed: {error}")

    def _refuse(self, status: int, fault: Fault, what: str, headers: Headers) -> None:
        assert self._request is not None
        self._request.close()  # nothing more comes from there
        row = fault.row
        message = f"{self._provider.name} {what}."
        error = {
            "message": message,
            "type": row.openai_type,
            "param": None,
            "code": row.openai_code,
        }
        self._sink.on_headers(status, [(b"content-type", b"application/json"), *headers])
        self._sink.on_data(json.dumps({"error": error}).encode())
        self._sink.on_end()


class ProvidedFleet:
    """The nodes of a fleet, and the providers beside them."""

    def __init__(self, fleet: Fleet, providers: Iterable[Provider]) -> None:
        self._fleet = fleet
        self._providers = tuple(providers)
        self._retired: list[Provider] = []
        self._seen: list[tuple[Provider, bool]] = []
        self._own_changes = 0

    def prepare(
        self, configs: Iterable[ProviderConfig], proxies: ProxySettings = DIRECT
    ) -> Callable[[], None]:
        """Make other providers; what is returned puts them in the place of those that are there.

        One that has not changed stays. Raises `WaiError`: a key or a certificate can't be used.
        """
        kept = {provider.given: provider for provider in self._providers}
        wanted = []
        for config in configs:
            key = config.read_key()
            given = (config, key, proxies)
            wanted.append(kept.get(given) or Provider(config, key, proxies=proxies))

        def use() -> None:
            gone = [provider for provider in self._providers if provider not in wanted]
            self._providers = tuple(wanted)
            for provider in gone:
                provider.retire()
            self._retired = [provider for provider in self._retired if provider.busy] + gone

        return use

    @property
    def changes(self) -> int:
        """See `Fleet`. A provider rests until a time, and tells nobody when that has come."""
        seen = [(provider, provider.ready) for provider in self._providers]
        if seen != self._seen:
            self._seen = seen
            self._own_changes += 1
        return self._fleet.changes + self._own_changes

    def nodes(self) -> Iterable[ServingNode]:
        """See `Fleet`."""
        yield from self._fleet.nodes()
        yield from self._providers

    @property
    def providers(self) -> tuple[Provider, ...]:
        """The providers alone."""
        return self._providers

    def look(self) -> None:
        """Ask the providers now and then whether they can be used."""
        for provider in self._providers:
            provider.watched.look()

    async def aclose(self) -> None:
        """Close the providers' connections."""
        for provider in (*self._providers, *self._retired):
            await provider.aclose()


def providers_of(
    configs: Iterable[ProviderConfig], proxies: ProxySettings = DIRECT
) -> list[Provider]:
    """The providers that are configured, with their keys. Raises `WaiError`."""
    return [Provider(config, config.read_key(), proxies=proxies) for config in configs]


def price_of(model: ProviderModel, tokens: TokenCounts) -> float:
    """What `tokens` cost; `prompt` includes the `cached` ones."""
    cached_price = model.input_price if model.cached_price is None else model.cached_price
    fresh = tokens.prompt - tokens.cached
    paid = fresh * model.input_price + tokens.cached * cached_price
    return (paid + tokens.completion * model.output_price) / _MILLION


def _seconds(retry_after: bytes) -> float:
    """The seconds of a Retry-After; dates are not sent by these services."""
    try:
        seconds = float(retry_after)
    except ValueError:
        return DEFAULT_REST_S
    return seconds if 0 <= seconds < float("inf") else DEFAULT_REST_S


def _tls(config: ProviderConfig, origin: Origin) -> ssl.SSLContext | None:
    if origin.scheme != "https" or config.ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(config.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise WaiError(f"provider {config.name}: {config.ca_file} is no PEM file") from error
