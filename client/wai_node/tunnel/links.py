"""The tunnels of a node: some to each relay of its fleet.

A node begins with the relays that it knows from its disk, or the one that it joined. What a relay
tells later is followed: new relays are dialled at once, and those that are gone are dialled no
more. A relay that others call gone, but that is connected, is kept until that connection is lost:
it may only be cut off from the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from wai_node.supervision import Supervision
from wai_protocol.known_relay import KnownRelay
from wai_protocol.relay_list import RelayList

from .dial import RelayAddress
from .network import NetworkRoute
from .tunnel import Tunnel

_log = logging.getLogger("wai.node")


class _Link:
    """The tunnels to one relay. `left`: they are dialled no more."""

    def __init__(self, address: RelayAddress, tunnels: list[Tunnel]) -> None:
        self.address = address
        self.tunnels = tunnels
        self.running: dict[Tunnel, asyncio.Task[None]] = {}
        self.left = False

    @property
    def over(self) -> bool:
        """Whether it was left and has nothing open any more."""
        return self.left and all(tunnel.over for tunnel in self.tunnels)


class RelayLinks:
    """All tunnels of a node, by relay. `start` once, then `follow` what relays tell.

    `home` is the relay that the node joined, by the address that is known to work. `known` is the
    list that was kept, `make` makes the tunnels to one relay, `reach` says how a relay of the list
    is reached, and `keep` writes a newer list down.
    """

    def __init__(
        self,
        home: RelayAddress,
        known: RelayList,
        *,
        make: Callable[[RelayAddress], list[Tunnel]],
        reach: Callable[[KnownRelay], RelayAddress],
        keep: Callable[[RelayList], None],
    ) -> None:
        self._home = home
        self._known = known
        self._make = make
        self._reach = reach
        self._keep = keep
        self._parts: Supervision | None = None
        self._links: dict[bytes, _Link] = {}
        for address in self._wanted(known):
            self._links[address.public] = _Link(address, make(address))

    def _wanted(self, told: RelayList) -> list[RelayAddress]:
        if not told.relays:
            return [self._home]
        return [
            self._home if one.public == self._home.public else self._reach(one)
            for one in told.relays
        ]

    def start(self, parts: Supervision) -> None:
        """Dial, each tunnel as a part of its own."""
        self._parts = parts
        for link in self._links.values():
            self._run(link)

    def follow(self, told: RelayList) -> None:
        """Keep tunnels to the relays of a list, if it is newer than the one before."""
        if told.version <= self._known.version:
            return
        self._known = told
        self._keep(told)
        wanted = {address.public: address for address in self._wanted(told)}
        for public, link in list(self._links.items()):
            if public not in wanted:
                self._leave(link)
            if link.over or (public in wanted and wanted[public] != link.address):
                del self._links[public]  # a new address gets new tunnels; old ones go with theirs
                for tunnel in link.tunnels:
                    tunnel.leave()
        for public, address in wanted.items():
            known = self._links.get(public)
            if known is None:
                known = self._links[public] = _Link(address, self._make(address))
                _log.info("a relay more: %s", address.url)
            for tunnel in known.tunnels:
                tunnel.stay()
            self._run(known)

    def _leave(self, link: _Link) -> None:
        if not link.left:
            _log.info("a relay less: %s", link.address.url)
        link.left = True
        for tunnel in link.tunnels:
            tunnel.leave()

    def _run(self, link: _Link) -> None:
        """Have every tunnel of a relay run, unless it does."""
        link.left = False
        way = "" if link.address.public == self._home.public else f" to {link.address.url}"
        for number, tunnel in enumerate(link.tunnels):
            task = link.running.get(tunnel)
            if self._parts is not None and (task is None or task.done()):
                link.running[tunnel] = self._parts.start(f"tunnel {number}{way}", tunnel.run)

    def __iter__(self) -> Iterator[Tunnel]:
        """All tunnels, those to relays that were left too."""
        for link in self._links.values():
            yield from link.tunnels

    @property
    def relays(self) -> list[list[Tunnel]]:
        """The tunnels of each relay."""
        return [link.tunnels for link in self._links.values()]

    @property
    def several(self) -> bool:
        """Whether the node may get requests of several relays."""
        return len(self._links) > 1

    @property
    def connected(self) -> bool:
        """Whether any tunnel has a connection."""
        return any(tunnel.connected for tunnel in self)

    def routes(self) -> list[NetworkRoute]:
        """The routes to the relays."""
        return [tunnel.route for tunnel in self]

    def look_at_paths(self) -> None:
        """Dial again with smaller segments where a path drops large ones."""
        for tunnel in self:
            tunnel.look_at_path()

    def redial(self) -> None:
        """Dial every relay at once: the network has changed."""
        for tunnel in self:
            tunnel.redial()

    def close(self) -> None:
        """Close every session."""
        for tunnel in self:
            tunnel.close()


def reach_directly(relay: KnownRelay) -> RelayAddress:
    """Return the way to a relay at its URL, without a proxy."""
    return RelayAddress(relay.url, relay.public, relay.pin)
