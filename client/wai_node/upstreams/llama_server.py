"""llama.cpp's `llama-server`, single-model and router mode.

Polled are `/v1/models`, `/props` and `/metrics`, none of which wakes a sleeping model; `/slots`
may, and is read only where metrics are off and `/props` says that the model is awake.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, NamedTuple

import msgspec
from msgspec.structs import replace

from wai_protocol.errors import Fault, TransportError
from wai_protocol.status import CONTINUE_FINAL_MESSAGE, PER_TOKEN_TIMINGS, ModelStatus

from .found_routes import Way
from .tally import Counters
from .upstream import Asker, ModelList, Probe, Upstream, metric


class _Generation(msgspec.Struct):
    n_ctx: int = 0


class _Props(msgspec.Struct):
    total_slots: int = 0
    default_generation_settings: _Generation | None = None
    is_sleeping: bool = False


class _Slot(msgspec.Struct):
    is_processing: bool = False


class _Counts(NamedTuple):
    """Busy slots, queued requests, and the tokens counted so far where that is told."""

    busy: int
    queued: int
    counters: Counters | None = None


class LlamaServerUpstream(Upstream):
    """A llama-server. Without `-np`, slots share one pool; with it, `n_ctx` is already per slot."""

    kind: ClassVar[str] = "llama-server"
    usual_ports = (8080,)
    apis = ("openai", "anthropic", "llama.cpp")
    way = Way.BY_BODY
    capabilities = (PER_TOKEN_TIMINGS, CONTINUE_FINAL_MESSAGE)

    def __init__(self, url: str, key: str = "") -> None:
        super().__init__(url, key)
        self._last: tuple[ModelStatus, ...] = ()

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        """See `Upstream`. `/health` needs no key even where one is demanded."""
        _, headers, _ = await asker.get("/health")
        return dict(headers).get(b"server", b"").lower() == b"llama.cpp"

    async def probe(self) -> Probe:
        """Its models; while it loads (503) those it last had, not ready."""
        if (await self.get("/health"))[0] == 503:
            loading = (replace(m, ready=False, slots_busy=0, queued=0) for m in self._last)
            return Probe(tuple(loading))
        listed = await self.get_json("/v1/models", ModelList)
        if any(entry.status is not None for entry in listed.data):
            probe = self._routed(listed)
        else:
            probe = await self._single(listed)
        self._last = probe.models
        return probe

    def _routed(self, listed: ModelList) -> Probe:
        """Router mode: an unloaded model is loaded by its first request, so it counts as
        ready; a failed one does not. Slots and context are known to the model's process only."""
        models = []
        for entry in listed.data:
            state = entry.status or {}
            args = state.get("args")
            models.append(
                replace(
                    self.model(entry.id),
                    ready=state.get("failed") is not True,
                    slots_total=_number_after(args, "--parallel", "-np"),
                )
            )
        return Probe(self.models(models))

    async def _single(self, listed: ModelList) -> Probe:
        props = await self.get_json("/props", _Props)
        generation = props.default_generation_settings or _Generation()
        counts = await self._counts(props)
        busy, queued, counters = counts or _Counts(0, 0)
        models = [
            replace(
                self.model(entry.id),
                context_tokens=generation.n_ctx if generation.n_ctx > 0 else None,
                slots_total=props.total_slots if props.total_slots > 0 else None,
                slots_busy=busy,
                queued=queued,
                aliases=tuple(name for name in entry.aliases if name != entry.id),
            )
            for entry in listed.data
        ]
        return Probe(
            self.models(models),
            counted=counts is not None,
            counters=counters,
            asleep=props.is_sleeping,
        )

    async def _counts(self, props: _Props) -> _Counts | None:
        """What it has to do, None where the server does not tell."""
        status, _, body = await self.get("/metrics")
        if status == 200:
            text = body.decode("utf-8", "replace")
            busy = metric(text, "llamacpp:requests_processing")
            if busy is not None:
                queued = metric(text, "llamacpp:requests_deferred") or 0
                return _Counts(busy, queued, self._counters(text, busy + queued))
        if props.is_sleeping:
            return _Counts(0, 0)
        try:
            slots = await self.get_json("/slots", list[_Slot])
        except TransportError as error:
            if error.fault is Fault.UPSTREAM_TIMEOUT:
                raise
            return None  # started with --no-slots
        return _Counts(sum(slot.is_processing for slot in slots), 0)

    def _counters(self, text: str, at_work: int) -> Counters | None:
        """The tokens in `/metrics`; older servers don't tell cached ones apart."""
        read = metric(text, "llamacpp:prompt_tokens_total")
        cached = metric(text, "llamacpp:prompt_tokens_cached_total")
        written = metric(text, "llamacpp:tokens_predicted_total")
        if read is None or cached is None or written is None:
            return None
        return Counters(self.origin.place, read, cached, written, at_work)


def _number_after(args: object, *flags: str) -> int | None:
    """The number that follows one of `flags` in a router's argument list."""
    if not isinstance(args, list):
        return None
    for flag, value in pairwise(args):
        if flag in flags and isinstance(value, str) and value.isdigit() and len(value) < 6:
            return int(value)
    return None
