"""What the gateway forwards to: a node or a cloud provider, behind one small interface.

It holds no rule of how an upstream is chosen (`dispatch`) and none of how its answer is judged
(`answer`). Calls go one way, down; what comes back arrives as plain calls on a `Sink`, so that a
token costs no task switch. Everything here belongs to one loop.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Protocol

from wai_protocol.errors import Fault
from wai_protocol.status import NodeStatus
from wai_protocol.surface import Headers
from wai_relay.contracts.records import Load, TokenCounts

UpstreamKind = Literal["node", "provider"]


class Sink(Protocol):
    """Who takes a response: `on_headers` once, `on_data` any number of times, then exactly one of
    `on_end` and `on_reset`; `on_reset` may come at any point before. None of them may raise."""

    def on_headers(self, status: int, headers: Headers) -> None:
        """The response's head, as the upstream sent it (lower-case names)."""

    def on_data(self, data: bytes) -> None:
        """Body bytes. Each takes credit that `UpstreamStream.consume` gives back."""

    def on_end(self) -> None:
        """The response is complete."""

    def on_reset(self, fault: Fault, reason: str) -> None:
        """The response will not be completed. `reason` is a sentence for people."""


class Spent(NamedTuple):
    """What a request took that was given up, as it turned out afterwards; None: nobody knows.
    `exact`: the upstream counted it, and it is no share of what several took together."""

    prompt: int | None
    cached: int | None
    completion: int | None
    exact: bool


class UpstreamStream(abc.ABC):
    """One request on its way to an upstream. After its end every call is a harmless no-op."""

    on_spent: Callable[[Spent], None] | None = None
    """Called once, some time after `reset`, if the upstream can tell what the request took."""

    load: Load | None = None
    """Set before the answer begins, if the model was loaded first."""

    @abc.abstractmethod
    def write(self, data: bytes) -> bool:
        """Queue request body bytes; never blocks and never splits the caller's bytes in meaning.

        False: more than the stream's high-water mark waits; `await drain()` before the next one.
        """

    @abc.abstractmethod
    async def drain(self) -> None:
        """Return when `write` is welcome again, or when the stream is over (then see the sink)."""

    @abc.abstractmethod
    def end(self) -> None:
        """The request's body is complete."""

    @abc.abstractmethod
    def reset(self, fault: Fault, reason: str = "") -> None:
        """Give up now: the upstream's socket is closed at once. The sink hears nothing more."""

    @abc.abstractmethod
    def consume(self, n: int) -> None:
        """`n` response bytes were taken by the caller: grant that much credit back."""


class RelayUpstream(abc.ABC):
    """Something that answers model requests."""

    name: str
    kind: UpstreamKind

    @abc.abstractmethod
    def open(
        self, method: str, target: str, headers: Headers, model: str, sink: Sink, *, end: bool
    ) -> UpstreamStream:
        """Start a request. `target` is path and query, `headers` are already fit for an upstream
        (`surface.headers_for_upstream`), `end` says that there is no body. A `content-length` among
        them is the body's, in one plain number: not all servers take a body without it.

        Raises `WaiError` when it can't even be queued (session gone, draining, too many streams);
        every later failure comes by `sink.on_reset`, never from inside this call.
        """


class ServingNode(RelayUpstream):
    """A node of this relay, or a provider beside them, as selection and the model lists see it."""

    status: NodeStatus
    """What it last said of itself; an empty one until it has said something."""

    rtt_s: float | None = None
    """The way there and back as last measured; None until it was."""

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether it can be given new requests now: connected, and not draining."""

    @property
    def drained(self) -> bool:
        """Whether an admin keeps new requests from it."""
        return False

    def name_of(self, model: str) -> str:
        """What it calls `model`."""
        return model

    def cost(self, model: str, tokens: TokenCounts) -> float:
        """What a request for `model` that took `tokens` costs there, in the operator's currency."""
        del model, tokens
        return 0.0


class Fleet(Protocol):
    """The nodes of this relay."""

    @property
    def changes(self) -> int:
        """Another number whenever a node came, went, told something, or became ready or not: who
        remembers it need not look at all nodes for each request."""

    def nodes(self) -> Iterable[ServingNode]:
        """All that are connected or may come back, draining ones included."""
