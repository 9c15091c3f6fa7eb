"""Who gets a request: what the gateway asks of whatever chooses, and the plainest chooser.

The gateway asks for a lease, uses its upstream, and gives it back with what happened. How long
`acquire` waits, and by which rules, is the dispatcher's business.
"""

from __future__ import annotations

import abc
import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from wai_protocol.errors import Fault, NodeUnavailable, RequestError, WaiError
from wai_protocol.status import NodeStatus
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.records import TokenCounts
from wai_relay.contracts.upstream import Fleet, RelayUpstream, ServingNode
from wai_relay.policy.demands import OVERFLOW_AFTER_S, Demand, Readiness
from wai_relay.policy.fingerprints import Fingerprint
from wai_relay.policy.model_names import ModelNames
from wai_relay.policy.scheduler import MAX_WAIT_S, Placement, Result, Scheduler, Ticket, Tokens
from wai_relay.policy.scoring import FIRST_TOKEN_WEIGHT
from wai_relay.policy.served_names import ServedNames

from .failed_models import failure_of

_NOBODY: Final = (Fault.MODEL_NOT_FOUND, Fault.NODE_NOT_FOUND)
# Who is there may have room after all, for the prompt's length is only estimated.
_HOPE: Final = (Fault.CONTEXT_EXCEEDED, Fault.NO_NODE)


class RequestInfo(msgspec.Struct, frozen=True):
    """What a choice may depend on. `route`: the path of its route, whose dialect is `api`.
    `prompt_tokens` is an estimate, and `certain_tokens` what the prompt surely has (None: the
    estimate is exact); `context_tokens` the context that the caller asks for, if it does; `pin` the
    node that the caller insists on; `takes_slot`: a model works on it; `excluded` the upstreams
    that must not get it, since they failed it. `wait_until`: the end of its patience for a slot, in
    seconds of `time.monotonic`; each time it waits for `MAX_WAIT_S` at most."""

    request_id: str
    key: ApiKey
    model: str
    api: str = "openai"
    route: str = ""
    generates: bool = True
    takes_slot: bool = True
    stream: bool = False
    prompt_tokens: int = 0
    certain_tokens: int | None = None
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    prefix: Fingerprint = ()
    pin: str | None = None
    excluded: frozenset[str] = msgspec.field(default_factory=frozenset)
    wait_until: float = math.inf


class Outcome(msgspec.Struct, frozen=True):
    """How a lease was used. `fault` is None unless the upstream failed; a caller's own mistake or
    its going away is no failure. `begun`: the caller got content. `full`: the node had no room for
    it, because other relays had filled it. `refused`: it found fault with the request. Times in
    seconds, from when the upstream was given the request; `ttft_s` to the first content."""

    fault: Fault | None
    cancelled: bool
    ttft_s: float | None
    duration_s: float
    tokens: TokenCounts
    begun: bool = False
    full: bool = False
    refused: bool = False


class Lease(abc.ABC):
    """A claim on one upstream for one request. `model` is what to ask it for; `fallback` says that
    this is not what the caller asked for, or not one of our own nodes."""

    upstream: RelayUpstream
    model: str
    reason: str
    queue_ms: float = 0.0
    candidates: tuple[object, ...] = ()
    fallback: bool = False

    def answering(self) -> None:  # noqa: B027 - of use to those who count prefills only
        """The answer's first content has come: the prompt was read."""

    def blame(self) -> None:  # noqa: B027 - of use to those who learn from failures only
        """After its release another upstream served the request that this one failed."""

    def acquit(self) -> None:  # noqa: B027 - as `blame`
        """... or none did: the failure may have been the request's, and says nothing."""

    def cost(self, tokens: TokenCounts) -> float:
        """What these tokens cost there, in the operator's currency."""
        del tokens
        return 0.0

    @abc.abstractmethod
    def release(self, outcome: Outcome) -> None:
        """Give the claim back. Called exactly once, whatever happens."""


class Dispatcher(Protocol):
    """Chooses an upstream for a request, and may make it wait for one."""

    async def acquire(self, info: RequestInfo) -> Lease:
        """A claim that is already counted. Raises `RequestError` (404, 400, 403, 429) for what will
        not work later either, `NodeUnavailable` (503) for what may. Cancelled: no claim."""


class ScheduledDispatcher:
    """The relay's dispatcher: the scheduler's best node, waiting if need be.

    It carries between the fleet, whose statuses it passes on, the scheduler, and callers' tasks,
    and holds no rule of its own. Let the fleet call `node_changed`: else what waits learns of a
    change by the scheduler's tick.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        names: ModelNames | None = None,
        served: ServedNames | None = None,
        overflow_after_s: float = OVERFLOW_AFTER_S,
        first_token_weight: float = FIRST_TOKEN_WEIGHT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names = names or ModelNames()
        self._served = served or ServedNames()
        self._fleet = fleet
        self._overflow_after_s = overflow_after_s
        self._clock = clock
        self._scheduler = Scheduler(first_token_weight=first_token_weight)
        self._known: dict[str, tuple[ServingNode, NodeStatus, Readiness]] = {}
        self._seen_changes = -1  # the fleet's, when all of it was looked at
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0

    async def acquire(self, info: RequestInfo) -> Lease:
        """See `Dispatcher`."""
        if self._fleet.changes != self._seen_changes:
            self._look(self._clock())
        if info.pin is not None and info.pin not in self._known:
            raise RequestError(f"There is no node `{info.pin}`.", Fault.NODE_NOT_FOUND)
        refusal: WaiError | None = None
        # Whoever stands in has what is left of the time, not as much again.
        until = min(info.wait_until, self._clock() + MAX_WAIT_S)
        self._served.look(self._fleet)
        models = self.names.allowed(info.model, info.key.limits, self._served)
        # Where it is likely to be too long, rather one that stands in than the hope that it is not.
        strict = replace(info, certain_tokens=None) if len(models) > 1 else info
        for asked in (strict, info):
            for model in models:
                try:
                    placement, node = await self._claim(asked, model, until)
                except (NodeUnavailable, RequestError) as error:
                    refusal = refusal or error  # of the model that was asked for
                    continue
                stands_in = node.kind != "node" or model != models[0]
                return _PlacedLease(
                    *(self, placement, node, model), streams=info.stream, stands_in=stands_in
                )
            assert refusal is not None
            if refusal.fault not in _HOPE or strict is info:
                break
        assert refusal is not None
        if refusal.fault in _NOBODY:
            failed = failure_of(models[0], info.key, info.pin, self._fleet.nodes())
            raise failed or refusal
        raise refusal

    def node_changed(self, node: ServingNode) -> None:
        """A node's state or status changed: those that wait may go there, or must not."""
        if node.name in self._known:
            self._note(node, self._clock())
            if self._fleet.changes == self._seen_changes + 1:
                self._seen_changes += 1  # this one, and nothing else
        else:  # a new one, or one that was removed: see who is there
            self._look(self._clock())
        self._arm()

    def configure(
        self, names: ModelNames, overflow_after_s: float, first_token_weight: float
    ) -> None:
        """Other names, and perhaps other providers: those that wait may go there, or must not."""
        self.names = names
        self._overflow_after_s = overflow_after_s
        self._scheduler.first_token_weight = first_token_weight
        self._look(self._clock())
        self._arm()

    @property
    def in_flight(self) -> int:
        """Leases that were not given back yet."""
        return self._scheduler.in_flight

    # -- inside
    async def _claim(
        self, info: RequestInfo, model: str, until: float
    ) -> tuple[Placement, ServingNode]:
        """A slot on a node that serves `model`. Raises `NodeUnavailable` or `RequestError`."""
        while True:
            now = self._clock()
            ticket = self._scheduler.submit(
                demand(info, model, self._overflow_after_s),
                info.key.id,
                now,
                priority=info.key.limits.priority,
                max_wait_s=max(until - now, 0.0),
                may_wait=info.takes_slot,
            )
            placement = ticket.placement or await self._wait(ticket)
            if (known := self._known.get(placement.node)) is not None:
                return placement, known[0]
            # It was removed after it was chosen and before this task's turn: ask for another one.
            self._scheduler.finish(placement, self._clock(), Result.CANCELLED)

    async def _wait(self, ticket: Ticket) -> Placement:
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket.on_change = lambda: None if changed.done() else changed.set_result(None)
        self._arm()
        try:
            await changed
        except asyncio.CancelledError:
            self._scheduler.cancel(ticket, self._clock())
            raise
        if ticket.error is not None:
            raise ticket.error
        assert ticket.placement is not None
        return ticket.placement

    def _look(self, now: float) -> None:
        """Pass on what changed in the fleet since we last looked."""
        self._seen_changes = self._fleet.changes
        seen = 0
        for node in self._fleet.nodes():
            seen += 1
            self._note(node, now)
        if seen != len(self._known):
            for name in self._known.keys() - {node.name for node in self._fleet.nodes()}:
                del self._known[name]
                self._scheduler.remove(name)

    def _note(self, node: ServingNode, now: float) -> None:
        """Pass on what changed in one node since it was last looked at."""
        status, readiness = node.status, Readiness.READY
        if not node.ready:
            readiness = Readiness.DRAINING if node.drained else Readiness.AWAY
        known = self._known.get(node.name)
        if known is not None and known[0] is node and known[1] is status and known[2] is readiness:
            return
        self._known[node.name] = (node, status, readiness)
        self._scheduler.update(
            node.name,
            status,
            now,
            readiness=readiness,
            rtt_s=node.rtt_s or 0.0,
            own=node.kind == "node",
        )

    def _arm(self) -> None:
        """See to it that the scheduler is woken when it wants to be."""
        when = self._scheduler.next_deadline()
        if when is None or (self._timer is not None and self._armed_for <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = when
        delay_s = max(when - self._clock(), 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock()
        self._look(now)
        self._scheduler.handle_timeout(now)
        self._arm()

    def answering(self, placement: Placement) -> None:
        """A lease's answer began."""
        self._scheduler.first_token(placement, self._clock())
        self._arm()

    def finished(self, placement: Placement, outcome: Outcome) -> None:
        """A lease is given back."""
        now = self._clock()
        counts = outcome.tokens
        result = Result.SERVED
        if outcome.fault is not None:
            result = Result.FAILED if outcome.begun else Result.SUSPECT
        elif outcome.full:
            result = Result.FULL
        elif outcome.cancelled:
            result = Result.CANCELLED
        elif outcome.refused:
            result = Result.REFUSED
        cached = counts.cached if counts.exact else None
        tokens = Tokens(counts.prompt, cached, counts.completion)
        self._scheduler.finish(placement, now, result, tokens)
        self._arm()

    def blamed(self, placement: Placement) -> None:
        """Another upstream served the request of a lease that failed."""
        self._scheduler.blame(placement, self._clock())

    def acquitted(self, placement: Placement) -> None:
        """No upstream served the request of a lease that failed."""
        self._scheduler.acquit(placement)


class _PlacedLease(Lease):
    def __init__(
        self,
        dispatcher: ScheduledDispatcher,
        placement: Placement,
        node: ServingNode,
        model: str,
        *,
        streams: bool,
        stands_in: bool,
    ) -> None:
        self.upstream = node
        self.model = node.name_of(model)
        self.reason = str(placement.decision.reason)
        self.queue_ms = placement.waited_s * 1000.0
        self.candidates = placement.decision.scores
        self.fallback = stands_in
        self._asked = model
        self._node = node
        self._streams = streams
        self._dispatcher = dispatcher
        self._placement = placement

    def answering(self) -> None:
        if self._streams:  # else the first byte is the end, and says nothing of the prompt
            self._dispatcher.answering(self._placement)

    def blame(self) -> None:
        self._dispatcher.blamed(self._placement)

    def acquit(self) -> None:
        self._dispatcher.acquitted(self._placement)

    def cost(self, tokens: TokenCounts) -> float:
        return self._node.cost(self._asked, tokens)

    def release(self, outcome: Outcome) -> None:
        self._dispatcher.finished(self._placement, outcome)


def demand(info: RequestInfo, model: str, overflow_after_s: float) -> Demand:
    """What the scheduler is asked for."""
    limits = info.key.limits
    return Demand(
        model,
        max(info.prompt_tokens, 1),
        info.max_output_tokens,
        prefix=info.prefix,
        pin=info.pin,
        nodes=frozenset(limits.nodes) if limits.nodes else None,
        avoid=info.excluded,
        local_only=limits.local_only,
        api=info.api,
        route=info.route,
        overflow_after_s=overflow_after_s,
        generates=info.generates,
        streams=info.stream and info.generates,
        certain_tokens=info.certain_tokens,
        asked_context=info.context_tokens or 0,
    )
