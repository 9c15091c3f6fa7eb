"""What the other relays of the fleet know: asked by this one, for an admin who looks at it.

Relays ask each other by their admin APIs, with a pass that each signs. The database is not asked,
and nobody is while nobody looks. A relay that does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from wai_protocol.errors import AuthError, Fault, WaiError
from wai_protocol.identity import RelayKey
from wai_protocol.relay_pass import make_pass, read_pass
from wai_relay.fleet.relays import RelayRecord, Relays
from wai_transport.http_client import HttpClient
from wai_transport.http_proxy import DIRECT, ProxySettings
from wai_transport.origin import Origin

BASE: Final = "/admin/v1"
OWN: Final = "own=true"
"""Asks a relay for what it knows itself: it must not ask the others in turn."""

ANSWER_S: Final = 2.0
MAX_ANSWER_BYTES: Final = 16 << 20  # of thousands of requests in progress

_Found = TypeVar("_Found")
_log = logging.getLogger("wai.admin")


class Peers:
    """Asks the other relays, and knows them when they ask. Belongs to one loop; `aclose` it."""

    def __init__(
        self,
        relays: Relays,
        key: RelayKey,
        knows_admin: Callable[[str], bool],
        proxies: ProxySettings = DIRECT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._relays = relays
        self._key = key
        self._knows_admin = knows_admin
        self._proxies = proxies
        self._clock = clock
        self._clients: dict[tuple[str, str, bytes | None], HttpClient] = {}

    @property
    def others(self) -> tuple[RelayRecord, ...]:
        """The relays to ask; none where this one is alone."""
        return self._relays.others

    def actor_of(self, shown: str) -> str:
        """Return the admin for whom another relay asks. Raises `AuthError`."""
        found = read_pass(shown, self._key.public, self._clock())
        if found.relay not in {one.public_key for one in self.others}:
            raise AuthError("this relay is not of this fleet", Fault.KEY_INVALID)
        if not self._knows_admin(found.actor):
            raise AuthError(f"there is no admin {found.actor[:80]!r}", Fault.KEY_INVALID)
        return found.actor

    async def ask_all(self, actor: str, path: str, kind: type[_Found]) -> list[_Found]:
        """`GET` a path at every other relay; return the answers of those that gave one."""
        found: list[_Found] = []
        for relay, answer in await self._ask_each(actor, "GET", path, kind):
            if isinstance(answer, WaiError):
                _log.debug("the relay %s does not say what it knows: %s", relay.name, answer)
            else:
                found.append(answer)
        return found

    async def tell_all(self, actor: str, method: str, path: str, kind: type[_Found]) -> list[str]:
        """Have every other relay do something; return the names of those that did not."""
        failed = []
        for relay, answer in await self._ask_each(actor, method, path, kind):
            if isinstance(answer, WaiError):
                _log.warning("the relay %s did not do what it was told: %s", relay.name, answer)
                failed.append(relay.name)
        return failed

    async def _ask_each(
        self, actor: str, method: str, path: str, kind: type[_Found]
    ) -> list[tuple[RelayRecord, _Found | WaiError]]:
        """Ask all other relays at once; return each with its answer, or why it gave none."""
        others = self.others
        asked = [self.ask(one, actor, method, path, kind) for one in others]
        found: list[tuple[RelayRecord, _Found | WaiError]] = []
        for relay, answer in zip(
            others, await asyncio.gather(*asked, return_exceptions=True), strict=True
        ):
            if isinstance(answer, BaseException) and not isinstance(answer, WaiError):
                raise answer
            found.append((relay, answer))
        return found

    async def ask_for(
        self, actor: str, method: str, path: str, kind: type[_Found]
    ) -> _Found | None:
        """Ask one relay after the other for something that one of them has; None if none has."""
        for relay in self.others:
            try:
                return await self.ask(relay, actor, method, path, kind)
            except WaiError as error:
                if error.fault is not Fault.NOT_FOUND:
                    _log.debug("the relay %s does not answer: %s", relay.name, error)
        return None

    async def ask(
        self, relay: RelayRecord, actor: str, method: str, path: str, kind: type[_Found]
    ) -> _Found:
        """Ask one relay. `path`: below /admin/v1, with its query. Raises `WaiError`."""
        shown = make_pass(self._key, relay.public_key, actor, self._clock())
        headers = [(b"authorization", b"Bearer " + shown.encode())]
        joined = f"{path}{'&' if '?' in path else '?'}{OWN}"
        status, _, body = await self._client(relay).fetch(
            *(method, BASE + joined, headers), limit_bytes=MAX_ANSWER_BYTES, timeout_s=ANSWER_S
        )
        if status == 404:
            raise WaiError("it has no such thing", Fault.NOT_FOUND)
        try:
            if status == 200:
                return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise WaiError(f"its answer can't be read: {error}", Fault.UPSTREAM_BROKE) from error
        raise WaiError(f"it answers with HTTP {status}", Fault.UPSTREAM_BROKE)

    def _client(self, relay: RelayRecord) -> HttpClient:
        # A certificate that was renewed gets a client of its own, and the former one has no use.
        where = (relay.url, relay.dial, relay.shown_pin or relay.pin)
        client = self._clients.get(where)
        if client is None:
            origin, _ = Origin.parse(relay.url)
            if relay.dial:
                origin, _ = Origin.parse(f"{origin.scheme}://{relay.dial}")
            client = HttpClient(origin, pin=where[2], proxies=self._proxies)
            self._clients[where] = client
        return client

    async def aclose(self) -> None:
        """Close every connection."""
        clients, self._clients = list(self._clients.values()), {}
        await asyncio.gather(*(client.aclose() for client in clients))
