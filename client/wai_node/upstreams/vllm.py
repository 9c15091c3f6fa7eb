"""vLLM: continuous batching, so there are no slots to count, but running and waiting requests."""

from __future__ import annotations

from typing import ClassVar

from msgspec.structs import replace

from wai_protocol.status import CONTINUE_FINAL_MESSAGE

from .upstream import Asker, ModelList, Probe, Upstream, metric


class VllmUpstream(Upstream):
    """A vLLM server. Its key guards `/v1` only."""

    kind: ClassVar[str] = "vllm"
    usual_ports = (8000,)
    capabilities = (CONTINUE_FINAL_MESSAGE,)

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        """See `Upstream`."""
        listed = await asker.read("/v1/models", ModelList)
        return listed is not None and any(entry.owned_by == "vllm" for entry in listed.data)

    async def probe(self) -> Probe:
        """The models it lists, LoRA adapters too, with the engine's load on each."""
        listed = await self.get_json("/v1/models", ModelList)
        status, _, body = await self.get("/metrics")
        text = body.decode("utf-8", "replace") if status == 200 else ""
        running = metric(text, "vllm:num_requests_running")
        waiting = metric(text, "vllm:num_requests_waiting")
        models = [
            replace(
                self.model(entry.id),
                context_tokens=entry.max_model_len,
                slots_busy=running or 0,
                queued=waiting or 0,
            )
            for entry in listed.data
        ]
        return Probe(self.models(models), counted=running is not None)
