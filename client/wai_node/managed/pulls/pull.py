"""One deployment on a server that is there: what it is doing, and its public status. Pure."""

from __future__ import annotations

import anyio
import msgspec

from wai_node.managed.deployment import State
from wai_node.managed.entry import DeploymentStatus
from wai_node.managed.load_policy import LoadPolicy
from wai_node.managed.options import DEFAULT
from wai_node.models.download import Progress
from wai_protocol.status import COMPLETION, EMBEDDING, ModelStatus, guessed_load_s

from .pulled import PulledModel


class Pull(msgspec.Struct):
    """A deployment. `state` is that of the work on it; once it is served, the server says.

    `seen`: the server's last word of it, None while it says nothing. `kind`: the server's.
    `refused`: it was not loaded, which is so until it is. `hold_until`: what the server said before
    may be older than what was done. `scope`: the work that is under way.
    """

    model: PulledModel
    kind: str
    state: State = State.DOWNLOADING
    reason: str = ""
    progress: Progress | None = None
    seen: ModelStatus | None = None
    in_flight: int = 0
    refused: bool = False
    hold_until: float = 0.0
    scope: anyio.CancelScope | None = None
    told: DeploymentStatus | None = None
    ended: anyio.Event = msgspec.field(default_factory=anyio.Event)

    @property
    def working(self) -> bool:
        """Whether it is being fetched, loaded or removed."""
        return self.state in (State.DOWNLOADING, State.STARTING, State.STOPPING)

    def fail(self, reason: str) -> None:
        """Note why it is not served."""
        self.state, self.reason, self.progress = State.FAILED, reason, None

    def see(self, seen: ModelStatus | None, in_flight: int, now: float, *, up: bool) -> None:
        """Take the server's word, if it is `up`: whether it has the model, and whether loaded."""
        self.seen, self.in_flight = seen, in_flight
        if self.working or self.state is State.ABSENT or not self.model.model:
            return
        held = now < self.hold_until
        if seen is None and held:
            return
        if not up:
            self.fail(f"no {self.kind} answers on this node; start it")
        elif seen is None:
            self.fail(
                f"{self.kind} has {self.model.model} no more: it was deleted there; deploy it"
                " again, or remove it"
            )
        elif seen.loaded is not False:
            self.state, self.reason, self.refused = State.READY, "", False
        elif not held and not self.refused:
            self.state, self.reason = State.ASLEEP, ""

    def status(self) -> DeploymentStatus:
        """Its public status."""
        seen = self.seen
        context = self.model.context_tokens or (seen.context_tokens if seen else None) or 0
        words = seen.capabilities if seen is not None else ()
        embeds = EMBEDDING in words and COMPLETION not in words
        return DeploymentStatus(
            alias=self.model.alias,
            state=self.state,
            reason=self.reason,
            log_tail=(),
            swap_error="",
            context_tokens=context,
            context_served=(seen.context_tokens if seen and seen.loaded else None),
            slots=(seen.slots_total if seen else None) or 0,
            options=DEFAULT,
            purpose="embedding" if embeds else "chat",
            mmproj="",
            policy=LoadPolicy("on_demand", self.model.idle_unload_s),
            wakes=True,
            load_s=guessed_load_s(self.model.size_bytes or 0),
            changing=False,
            given_up=self.state is State.FAILED,
            size_bytes=self.model.size_bytes or (self.progress.total_bytes if self.progress else 0),
            in_flight=self.in_flight,
            progress=self.progress if self.state is State.DOWNLOADING else None,
            served_by=self.kind,
            called=self.model.model,
        )
