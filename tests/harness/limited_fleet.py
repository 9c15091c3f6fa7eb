"""Several relays as values, one judge, and what their callers really did, to hold limits against.

No loop and no database: `judge` is the model, time is a number, and each message is told whether it
arrives. `Truth` knows nothing of shares.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from tests.harness.limit_judge import GRACE_S, LimitJudge
from wai_api.limits import KeyLimits
from wai_protocol.errors import RequestError
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.policy.admission import Permit, TokenClaim
from wai_relay.policy.grants import Ask
from wai_relay.policy.shared_admission import SharedAdmission

START = 1_795_435_200.0  # 2026-11-23 12:00 UTC, a time of all clocks here


def limited_key(key_id: str = "key_1", **limits: Any) -> ApiKey:
    return ApiKey(key_id, "app", b"", "wai_sk_", KeyLimits(**limits), 1, 0.0)


class Verdict:
    """What a request waits with."""

    def __init__(self) -> None:
        self.known = False
        self.error: Exception | None = None

    def __await__(self) -> Generator[Any, None, None]:
        raise AssertionError("nobody waits here")

    def done(self) -> bool:
        return self.known

    def set_result(self, result: None, /) -> None:
        self.known = True

    def set_exception(self, exception: Exception, /) -> None:
        self.known, self.error = True, exception

    def go_away(self) -> None:
        self.known, self.error = True, RequestError("its caller went away")


@dataclass(eq=False)
class Call:
    """One request. `state`: entering, entered, reserving, running or over."""

    relay: SimulatedRelay
    key: ApiKey
    permit: Permit
    claim: TokenClaim | None
    state: str = "entering"
    error: Exception | None = None
    cut_off: bool = False
    """Its relay's lease was over while it ran: others may have its slot."""

    @property
    def runs(self) -> bool:
        return self.state in ("entered", "reserving", "running")


@dataclass(eq=False)
class SimulatedRelay:
    fleet: LimitedFleet
    name: str
    alive: bool = True
    unwritten: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.admission = SharedAdmission(
            Verdict, usage=lambda key_id: (self.unwritten[key_id], self.written[key_id])
        )

    # -- callers
    def call(self, key: ApiKey, claim: TokenClaim | None = None) -> Call | None:
        """A request, None if it is refused at once."""
        now = self.fleet.now
        try:
            permit = self.admission.enter(key, now, now)
        except RequestError:
            return None
        made = Call(self, key, permit, claim)
        self.fleet.calls.append(made)
        self._go_on(made)
        return made

    def _go_on(self, call: Call) -> None:
        """Let `call` do what it does as soon as it is not waiting."""
        fleet = self.fleet
        waiter = call.permit.asking
        if call.state in ("entering", "reserving") and isinstance(waiter, Verdict):
            if not waiter.known:
                return
            if waiter.error is not None:
                call.error = waiter.error
                self.end(call, 0)
                return
        if call.state == "reserving":
            call.state = "running"
        if call.state == "entering":
            call.state = "entered"
            fleet.truth.entered(call.key.id, fleet.now)
            if call.claim is None:
                call.state = "running"
                return
            try:
                self.admission.reserve(call.permit, call.key, call.claim, fleet.now, fleet.now)
            except RequestError as error:
                call.error = error
                self.end(call, 0)
                return
            call.state = "running" if call.permit.asking is None else "reserving"

    def end(self, call: Call, tokens: int) -> None:
        """`call` is over and took so many tokens."""
        if call.state == "over":
            return
        waiter = call.permit.asking
        if isinstance(waiter, Verdict) and not waiter.known:
            waiter.go_away()
        call.state = "over"
        self.fleet.calls.remove(call)
        self.admission.settle(call.permit, tokens, self.fleet.now)
        self.unwritten[call.key.id] += tokens
        if not call.cut_off:
            self.fleet.truth.took(call.key.id, tokens, self.fleet.now)

    def flush(self) -> None:
        """Its usage is written."""
        for key_id, tokens in self.unwritten.items():
            self.fleet.judge.stored[key_id] += tokens
            self.written[key_id] += tokens
        self.unwritten.clear()

    # -- messages
    def exchange(self, fate: str = "arrives", *, beat: bool = False) -> None:
        """One message. `fate`: "arrives", "is lost", "reply is lost" or "is late"."""
        now = self.fleet.now
        if not self.alive:
            return
        if beat:
            self.admission.beat(now)
        asks = self.admission.asks(now)
        if self.fleet.down:
            self.admission.unheard(asks)
            self.admission.database_down = True
        elif fate == "arrives":
            reply = self.fleet.judge.exchange(self.name, asks, now, beat=beat)
            self.admission.hear(asks, reply, now, now, now)
        else:
            if fate == "reply is lost":
                self.fleet.judge.exchange(self.name, asks, now, beat=beat)
            elif fate == "is late":
                self.fleet.late.append((self, asks))
            self.admission.unheard(asks)
            self.admission.database_down = False
        self.admission.give_up(now)
        for call in [call for call in self.fleet.calls if call.relay is self]:
            self._go_on(call)

    def talk(self) -> None:
        """Exchange until it has nothing to ask."""
        self.exchange(beat=True)
        for _ in range(20):
            if not self.admission.has_something_to_ask:
                return
            self.exchange()
        raise AssertionError("a relay asks without end")

    def die(self) -> None:
        """It is killed: its requests end, and nobody says so."""
        self.alive = False
        self.fleet.calls = [call for call in self.fleet.calls if call.relay is not self]


class Truth:
    """What was let in and what it took, whoever let it in."""

    def __init__(self) -> None:
        self._entered: dict[str, list[float]] = {}
        self._took: dict[str, list[tuple[float, int]]] = {}

    def entered(self, key_id: str, now: float) -> None:
        self._entered.setdefault(key_id, []).append(now)

    def took(self, key_id: str, tokens: int, now: float) -> None:
        self._took.setdefault(key_id, []).append((now, tokens))

    def requests(self, key_id: str, now: float) -> int:
        """In the last minute."""
        return sum(at > now - 60.0 for at in self._entered.get(key_id, []))

    def tokens(self, key_id: str, now: float) -> int:
        """In the last minute."""
        return sum(n for at, n in self._took.get(key_id, []) if at > now - 60.0)


class LimitedFleet:
    """Some relays. `down`: the database is, for all of them."""

    def __init__(self, relays: int = 3) -> None:
        self.now = START
        self.judge = LimitJudge()
        self.truth = Truth()
        self.calls: list[Call] = []
        self.late: list[tuple[SimulatedRelay, list[Ask]]] = []
        self.down = False
        self.relays = [SimulatedRelay(self, f"relay{n}") for n in range(relays)]
        for relay in self.relays:
            relay.exchange(beat=True)

    def replace(self, number: int) -> None:
        """A relay that died is started again: another process."""
        relay = SimulatedRelay(self, f"{self.relays[number].name}'")
        self.relays[number] = relay

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for call in self.calls:
            until = self.judge.holders.get(call.relay.name, -math.inf)
            if until + GRACE_S <= self.now and not self.down:
                call.cut_off = True

    def come_late(self) -> None:
        """The oldest late message arrives; nobody waits for its reply."""
        relay, asks = self.late.pop(0)
        self.judge.exchange(relay.name, asks, self.now)

    def come_up(self) -> None:
        """The database is back; all relays hear of it within seconds."""
        self.down = False
        for relay in self.relays:
            relay.exchange(beat=True)

    def check(self, key: ApiKey) -> None:
        """No limit is passed."""
        limits, now, key_id = key.limits, self.now, key.id
        running = [
            call
            for call in self.calls
            if call.key is key and call.runs and not call.cut_off and call.relay.alive
        ]
        if limits.concurrency is not None:
            assert len(running) <= limits.concurrency
        if limits.rpm is not None:
            assert self.truth.requests(key_id, now) <= limits.rpm
        reserved = sum(call.permit.reserved for call in running)
        if limits.tpm is not None:
            assert self.truth.tokens(key_id, now) + reserved <= limits.tpm
        if limits.monthly_tokens is not None:
            unwritten = sum(relay.unwritten[key_id] for relay in self.relays if relay.alive)
            assert self.judge.stored[key_id] + unwritten + reserved <= limits.monthly_tokens
