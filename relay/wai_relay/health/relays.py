"""What keeps relays that share a database from being one fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from wai_api.health import ProblemView

from .problem import RELAY, problem

DEAF_S: Final = 15.0
"""A connection that was lost is there again before that, if the database is."""


class WatchedRelay(Protocol):
    """A relay of the fleet (`fleet.relays.RelayRecord`)."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def url(self) -> str:
        """Where nodes reach it."""


class WatchedRelays(Protocol):
    """All of them (`fleet.relays.Relays`)."""

    own_id: str
    deaf_s: Callable[[], float]
    copied: bool
    clock_ahead_s: float

    @property
    def all(self) -> Iterable[WatchedRelay]:
        """Those that live."""

    @property
    def lost(self) -> Iterable[WatchedRelay]:
        """Those that died lately."""


def relay_problems(relays: WatchedRelays, *, database_away: bool) -> Iterator[ProblemView]:
    """Say what is wrong. While the database is away that is the problem, and no other."""
    known = {one.id: one for one in relays.all}
    own = known.get(relays.own_id)
    same = [one.name for one in known.values() if own is not None and one.url == own.url]
    if own is not None and len(same) > 1:
        others = ", ".join(name for name in same if name != own.name)
        yield problem(
            *("setup", RELAY, "same-address"),
            f"nodes are told the same address, {own.url}, for this relay and for {others}",
            "start each with a --node-url that leads to it alone; --public-url may lead to all",
        )
    for one in relays.lost:
        yield problem(
            *("relay", one.name, "lost"),
            f"the relay {one.name} ({one.url}) is lost: it gives no sign of life",
            "start it again, and see its log for why it ended. If it was taken away for good,"
            " nothing need be done: this is told for a day",
        )
    if relays.copied:
        yield problem(
            *("setup", RELAY, "copied"),
            "another process runs as this relay: its data folder was copied, and nodes go back and"
            " forth between the two",
            "stop one of the two, and start it with a fresh data folder (--data) and the same"
            " --database",
        )
    if relays.deaf_s() > DEAF_S and not database_away:
        yield problem(
            *("database", RELAY, "deaf"),
            f"what other relays change is not heard for {relays.deaf_s():.0f} s",
            "the database takes connections, but LISTEN brings nothing: reach it directly, or by a"
            " pooler that gives a session a connection of its own (PgBouncer's pool_mode=session)",
        )
