"""What an upstream says in a WebSocket as it passes: what its answers cost, and how it ends."""

from __future__ import annotations

from typing import Final

import msgspec

from wai_protocol.errors import Fault
from wai_protocol.websocket import CloseCode, MessageReader, close_frame
from wai_relay.contracts.records import TokenCounts

from .dialects.openai import counts_of
from .dialects.usage import MAX_EVENT_BYTES, UsageReader

_CODES: Final = {
    Fault.QUOTA_EXCEEDED: CloseCode.POLICY,
    Fault.KEY_INVALID: CloseCode.POLICY,
    Fault.CANCELLED: CloseCode.POLICY,
    Fault.UPSTREAM_TIMEOUT: CloseCode.GOING_AWAY,
    Fault.DRAINING: CloseCode.GOING_AWAY,
    Fault.RATE_LIMITED: CloseCode.TRY_AGAIN_LATER,
    Fault.SESSION_LOST: CloseCode.TRY_AGAIN_LATER,
}


class Messages(UsageReader):
    """Reads what answers cost from a server's messages: OpenAI's `response.done`, vLLM's
    `transcription.done` and others that have a `usage`. What is not told is counted by pieces."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = MessageReader(MAX_EVENT_BYTES)

    @property
    def ended(self) -> bool:
        """Whether the upstream closed the WebSocket itself."""
        return self._reader.closed

    @property
    def between_events(self) -> bool:
        """Whether a frame of ours may follow."""
        return self._reader.between_frames

    def feed(self, data: bytes) -> bytes:
        """See `UsageReader`."""
        for message in self._reader.feed(data):
            if b'"usage"' in message:
                self._add(_usage_in(message))
            elif b'.delta"' in message:
                self.chunks += 1
        return data

    def finish(self) -> bytes:
        """See `UsageReader`."""
        return b""

    def counts(self, estimated_prompt: int) -> TokenCounts:
        """See `UsageReader`. There is no prompt to be estimated."""
        del estimated_prompt
        said = self.said or TokenCounts()
        completion = said.completion + self.chunks
        exact = said.exact and not self.chunks
        return TokenCounts(said.prompt, said.cached, completion, exact=exact)

    def closing(self, fault: Fault, message: str) -> bytes:
        """The frame by which the relay ends the WebSocket in the upstream's place; b"" where the
        upstream's own bytes leave no place for one."""
        if self._reader.closed or not self._reader.between_frames:
            return b""
        return close_frame(_CODES.get(fault, CloseCode.INTERNAL), message)

    def _add(self, counts: TokenCounts | None) -> None:
        if counts is None:
            return
        self.chunks = 0
        if self.said is None:
            self.said = counts
        else:
            self.said.prompt += counts.prompt
            self.said.cached += counts.cached
            self.said.completion += counts.completion


def _usage_in(message: bytes) -> TokenCounts | None:
    """The `usage` of an event, or of the response within it."""
    try:
        event = msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(event, dict):
        return None
    response = event.get("response")
    usage = event.get("usage")
    if usage is None and isinstance(response, dict):
        usage = response.get("usage")
    return counts_of(usage, None)
