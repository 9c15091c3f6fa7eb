"""One attempt's answer on its way from an upstream to the caller: a `Sink` that judges it.

Until its first content nothing of an answer is shown to the caller (`opening` holds it), so the
attempt can fail without a trace and another upstream can try. From then on the answer is the
caller's: it ends cleanly, or visibly broken. No socket, no task and no clock of its own; the
gateway drives it (`next_deadline`, `handle_timeout`) and waits until it is over.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault
from wai_protocol.status import MAX_COUNT
from wai_protocol.surface import (
    REDIRECTED,
    Headers,
    Route,
    headers_for_caller,
    is_redirect,
    length_of_answer,
)
from wai_relay.contracts.records import TokenCounts
from wai_relay.contracts.upstream import UpstreamStream

from .continuation import Continuation
from .dialects.dialect import EVENT_STREAM, sentence_in
from .dialects.usage import UsageReader, decode
from .limits import GatewayLimits
from .opening import HOLD, Opening, OpeningVerdict
from .reply import CallerReply, is_failure

# Credit is given back for so many bytes at a time, not for each token: the session passes it on by
# half a window, which is 32 KiB or more.
CREDIT_EVERY_BYTES: Final = 4 * 1024
REFUSAL_BYTES: Final = 64 * 1024  # of a refusal's body that is kept; the real ones are under 1 kB
# How llama.cpp and OpenAI say that a prompt is longer than the context.
_TOO_LONG: Final = frozenset({"exceed_context_size_error", "context_length_exceeded"})
# ... and others, which have no code for it: vLLM, older servers, Anthropic.
_TOO_LONG_WORDS: Final = re.compile(
    r"maximum context length|exceeds? the (?:available |model's )?context|prompt is too long", re.I
)
_MESSAGE_CHARS: Final = 1000  # of a message that are searched for them
# Faults that lie with one upstream or the way there, as long as nothing was answered.
RETRY_FAULTS: Final = frozenset(
    {
        Fault.INTERNAL,
        Fault.UPSTREAM_UNREACHABLE,
        Fault.UPSTREAM_TIMEOUT,
        Fault.UPSTREAM_BROKE,
        Fault.ROUTE_REFUSED,
        Fault.MODEL_NOT_FOUND,
        Fault.OVERLOADED,
        Fault.DRAINING,
        Fault.SESSION_LOST,
        Fault.FLOW_CONTROL,
        Fault.PROTOCOL,
        Fault.NO_NODE,
        Fault.STORAGE,
    }
)
# ... and one that nobody is to blame for: other relays have filled the node meanwhile.
PASSED_ON: Final = RETRY_FAULTS | {Fault.NODE_FULL}
# In the middle of an answer those after which another upstream may go on with it.
CONTINUABLE: Final = RETRY_FAULTS | {Fault.NODE_REMOVED}


class Refusal(msgspec.Struct, frozen=True):
    """A whole answer that was kept back: the caller gets it if nobody else does better."""

    status: int
    headers: Headers
    body: bytes


class Failure(msgspec.Struct, frozen=True):
    """Why an attempt came to nothing before its first content. `retryable`: another one may do.
    `midway`: it broke off later, and its continuation may go on with another. `prompt_tokens`: how
    long the upstream found the prompt that it has no context for."""

    fault: Fault
    message: str
    retryable: bool
    refusal: Refusal | None = None
    midway: bool = False
    prompt_tokens: int | None = None


class Phase(enum.Enum):
    """How far an answer is."""

    WAITING = enum.auto()  # for the head
    HEADED = enum.auto()  # the head is here, and held with the opening until the first content
    REFUSED = enum.auto()  # a whole refusal is being collected
    PASSING = enum.auto()  # the caller gets it
    OVER = enum.auto()


# To look a member of an enum up takes as long as a call in Python 3.11.
_WAITING: Final = Phase.WAITING
_HEADED: Final = Phase.HEADED
_REFUSED: Final = Phase.REFUSED
_PASSING: Final = Phase.PASSING
_OVER: Final = Phase.OVER


class Answer:
    """See the module. `failure` is set when it is over and the caller has not been answered.

    `labels`: the X-WAI headers that the response gets. `on_first_content` is called with it when it
    begins to pass, before anything is written. `continuation`: what keeps its text, if it may be
    continued.
    """

    def __init__(
        self,
        reply: CallerReply,
        route: Route,
        labels: Headers,
        limits: GatewayLimits,
        clock: Callable[[], float],
        on_first_content: Callable[[Answer], None],
        *,
        strip_usage: bool = False,
        strip_timings: bool = False,
        continuation: Continuation | None = None,
    ) -> None:
        self.over = False
        self._waiter: asyncio.Future[None] | None = None
        self.failure: Failure | None = None
        self.fault: Fault | None = None  # what cut the answer or made it fail
        self.status = 0
        self.first_byte_at: float | None = None
        """When any byte of the body came, a comment or a role included."""
        self.first_content_at: float | None = None
        """When it began to pass: for a stream, its first token."""
        self.sent_at = clock()
        """When the caller was sent something last."""
        self._reply = reply
        self._exchange = reply.exchange
        self._route = route
        self._labels = labels
        self._limits = limits
        self._clock = clock
        self._on_first_content = on_first_content
        self._strip_usage = strip_usage
        self._strip_timings = strip_timings
        self._continuation = continuation
        self._phase: Phase = _WAITING
        self._stream: UpstreamStream | None = None
        self._reader: UsageReader | None = None
        self._opening: Opening | None = None
        self._headers: Headers = []
        self._length: Headers = []  # the answer's Content-Length, if the upstream said it
        self._content_type = b""
        self._collected = bytearray()
        self._uncredited = 0  # bytes that passed, whose credit was not given back
        self._last_at = clock()

    # -- from the gateway
    def attach(self, stream: UpstreamStream) -> None:
        """The stream that this is the answer of: gets the credit back, and the reset."""
        self._stream = stream

    def detach(self) -> None:
        """The stream is over: it holds its sink, so that each would keep the other alive."""
        self._stream = None

    async def wait(self) -> None:
        """Return when it is over. One task at a time may wait."""
        if not self.over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def touch(self) -> None:
        """The request still makes its way to the upstream: the wait for an answer starts again."""
        self._last_at = self._clock()

    def resume(self) -> None:
        """The caller keeps up again."""
        self._give_credit()

    def next_deadline(self) -> float:
        """When `handle_timeout` is due, unless something comes before."""
        passing = self._phase is _PASSING
        limit = self._limits.between_chunks_s if passing else self._limits.first_byte_s
        return self._last_at + limit

    def handle_timeout(self, now: float) -> None:
        """Give up if the upstream has been silent for too long; else nothing."""
        if self._phase is _OVER or now < self.next_deadline():
            return
        waited = now - self._last_at
        if self._phase is _PASSING:
            message = f"The upstream sent nothing more for {waited:.0f} s."
            self.give_up(Fault.UPSTREAM_TIMEOUT, message)
        else:  # another one may be there, and if it answers the silence was this one's fault
            message = f"The upstream did not answer for {waited:.0f} s."
            self._give_up_upstream(Fault.UPSTREAM_TIMEOUT, message)

    def give_up(self, fault: Fault, message: str) -> None:
        """End the attempt from this side; no other upstream will do better."""
        if self._phase is _OVER:
            return
        if self._stream is not None:
            self._stream.reset(fault, message)
        if self._phase is _PASSING:
            self._cut(fault, message)
        else:
            self._fail(Failure(fault, message, retryable=False))

    def counts(self, estimated_prompt: int) -> TokenCounts:
        """What it cost so far. An answer that is an error cost nothing."""
        if self._reader is None or self.status >= 400:
            return TokenCounts()
        return self._reader.counts(estimated_prompt)

    # -- from the upstream
    def on_data(self, data: bytes) -> None:
        """See `Sink`. Once per token: keep it short."""
        if self._phase is _PASSING and self._reader is not None:
            self._last_at = self._clock()
            out = self._reader.feed(data)
            exchange = self._exchange
            if out and self._continuation is not None:
                out = self._continuation.take(out)
            if out:
                self.sent_at = self._last_at
                exchange.write(out)
            self._uncredited += len(data)
            if self._uncredited >= CREDIT_EVERY_BYTES and not exchange.paused:
                self._give_credit()
        else:
            self._early_data(data)

    def on_headers(self, status: int, headers: Headers) -> None:
        """See `Sink`."""
        if self._phase is not _WAITING:
            return
        self._last_at = self._clock()
        if is_redirect(status):  # from a provider, or a node that passes one on
            self._give_up_upstream(Fault.UPSTREAM_BROKE, REDIRECTED.format(status))
            return
        self.status = status
        self._headers = headers_for_caller(headers)
        self._length = length_of_answer(headers)
        self._content_type = dict(headers).get(b"content-type", b"").strip().lower()
        begun = self._exchange.started  # by a heartbeat, as an event stream
        unfit = begun and not (status == 200 and self._content_type.startswith(EVENT_STREAM))
        ours = status == 422 and (self._strip_usage or self._strip_timings)
        if unfit or ours or not self._reply.passes(status):
            self._phase = _REFUSED
        else:
            self._phase = _HEADED
            self._opening = self._reply.opening(self._route, status, self._content_type)

    def on_end(self) -> None:
        """See `Sink`."""
        if self._phase is _HEADED:
            assert self._opening is not None
            if self._judge(self._opening.finish(), self._opening):
                self._end()
        elif self._phase is _PASSING:
            self._end()
        elif self._phase is _REFUSED:
            self._refused()
        elif self._phase is _WAITING:
            self.on_reset(Fault.UPSTREAM_BROKE, "The upstream ended without an answer.")

    def on_reset(self, fault: Fault, reason: str) -> None:
        """See `Sink`."""
        message = reason or "The upstream gave up."
        if self._phase is _PASSING:
            self._cut(fault, message)
        elif self._phase is not _OVER:
            self._fail(Failure(fault, message, retryable=fault in PASSED_ON))

    # -- inside
    def _give_up_upstream(self, fault: Fault, message: str) -> None:
        """What it answers is not fit for a caller; another upstream may do better."""
        if self._stream is not None:
            self._stream.reset(fault, message)
        self._fail(Failure(fault, message, retryable=True))

    def _give_credit(self) -> None:
        uncredited, self._uncredited = self._uncredited, 0
        if uncredited and self._stream is not None:
            self._stream.consume(uncredited)

    def _early_data(self, data: bytes) -> None:
        if self._phase is _OVER:
            return
        now = self._clock()
        if self.first_byte_at is None and data:
            self.first_byte_at = now
        if self._phase is _HEADED and self._exchange.started and not self._is_events:
            self._phase = _REFUSED  # a heartbeat began after the head had come
            if self._opening is not None:
                self._collected += self._opening.held
        self._uncredited += len(data)
        if self._phase is _HEADED:  # what is held may be comments for ever: it gains no time
            assert self._opening is not None
            self._judge(self._opening.feed(data), self._opening)
        elif self._phase is _REFUSED:
            self._last_at = now
            self._collected += data[: REFUSAL_BYTES - len(self._collected)]
            if len(self._collected) == REFUSAL_BYTES:  # no refusal is that long; it may be endless
                if self._stream is not None:
                    self._stream.reset(Fault.CANCELLED, "too long for a refusal")
                self._refused()
        # What is held is ours to take; what passed is the caller's.
        holding = self._phase is not _PASSING
        if holding or (self._uncredited >= CREDIT_EVERY_BYTES and not self._exchange.paused):
            self._give_credit()

    def _judge(self, verdict: OpeningVerdict, opening: Opening) -> bool:
        """Act on what is known of the answer by its opening; whether it passes from now on."""
        if verdict.fault is not None:
            self._give_up_upstream(verdict.fault, verdict.message)
        elif verdict.begins:
            self._opening = None
            self._begin()
            assert self._reader is not None
            self._pass_on(self._reader.feed(opening.held))
        return verdict.begins

    def _pass_on(self, out: bytes) -> None:
        """Send the caller what the reader let through; `on_data` does the same for each token."""
        if out:
            self._exchange.write(self._continuation.take(out) if self._continuation else out)

    def _end(self) -> None:
        """The upstream's answer is over. One that lacks its own end mark broke off."""
        reader = self._reader
        assert reader is not None
        rest = reader.finish()
        if self._route.generates and self.status == 200:
            if reader.failed:  # the caller has the upstream's own error event
                self.fault = Fault.UPSTREAM_BROKE
            elif not reader.ended:  # and `rest` is half an event, into which none may be written
                self._cut(Fault.UPSTREAM_BROKE, "The upstream's answer stopped before its end.")
                return
        self._pass_on(rest)
        self._exchange.end()
        self._finish()

    def _begin(self) -> None:
        """The point of no return: the caller gets this upstream's answer."""
        self._last_at = self.sent_at = self.first_content_at = self._clock()
        self._on_first_content(self)
        self._reply.reader = self._reader = self._reply.dialect.reader(
            self._route,
            self._content_type,
            strip_usage=self._strip_usage,
            strip_timings=self._strip_timings,
        )
        if self._continuation is not None and self._continuation.count:
            self._exchange.write(b": continued on " + dict(self._labels)[b"x-wai-node"] + b"\n\n")
        elif self._exchange.started:
            labels = b", ".join(name + b": " + value for name, value in self._labels)
            self._exchange.write(b": " + labels + b"\n\n")
        else:
            # Only a plain body passes as it is: from a stream the usage may be taken out, and an
            # error event may be added to it.
            length = self._length if self._reader.keeps_length else []
            self._reply.start(self.status, self._headers + self._labels + length)
        self._phase = _PASSING  # not before: where the head can't be sent, nothing has passed

    def _refused(self) -> None:
        body = bytes(self._collected)
        message = refusal_message(body) or "The upstream refused the request."
        refusal = Refusal(self.status, self._headers + self._labels, body)
        if self.status < 400:  # what it came as can't be sent any more
            verdict = self._judge_whole(body)
            broke = verdict.fault is not None
            message = verdict.message or message
            self._fail(Failure(Fault.UPSTREAM_BROKE, message, broke, refusal))
            return
        if not is_failure(self.status):
            too_long, tokens = _context_refusal(body)
            fault = Fault.CONTEXT_EXCEEDED if too_long else Fault.BAD_REQUEST
            self._fail(Failure(fault, message, too_long, refusal, prompt_tokens=tokens))
            return
        fault = Fault.OVERLOADED if self.status in (429, 503) else Fault.UPSTREAM_BROKE
        self._fail(Failure(fault, message, retryable=True, refusal=refusal))

    def _judge_whole(self, body: bytes) -> OpeningVerdict:
        """What a whole answer's beginning says of it."""
        opening = self._reply.opening(self._route, self.status, self._content_type)
        verdict = opening.feed(body)
        return opening.finish() if verdict is HOLD else verdict

    def _cut(self, fault: Fault, message: str) -> None:
        """The answer broke off: go on with another upstream, else break too."""
        if self._reader is not None:
            self._pass_on(self._reader.held_back())
        if self._continued(fault, message):
            return
        self.fault = fault
        try:
            self._reply.break_off(fault, message)
        finally:  # whatever it raises, the gateway must not wait on
            self._finish()

    def _continued(self, fault: Fault, message: str) -> bool:
        """Leave the rest of a cut answer to another upstream, if that can be."""
        continuation = self._continuation
        if continuation is None or fault not in CONTINUABLE or not self._is_plain_stream:
            return False
        if ending := continuation.ending():
            self._exchange.write(ending)
            self._exchange.end()
            self._finish()
            return True
        if continuation.possible:
            self._fail(Failure(fault, message, retryable=True, midway=True))
        return continuation.possible

    @property
    def _is_plain_stream(self) -> bool:
        """Whether what has passed is an answer in whole events."""
        whole = self._reader is not None and not self._reader.broken()
        return whole and self.status == 200 and self._is_events

    @property
    def _is_events(self) -> bool:
        return self._content_type.startswith(EVENT_STREAM)

    @property
    def takes_comment(self) -> bool:
        """Whether a comment may be sent to the caller now: not inside an event."""
        if self._phase is not _PASSING:
            return self._phase is not _OVER
        return self._reader is not None and self._is_events and self._reader.between_events

    def _fail(self, failure: Failure) -> None:
        self.failure = failure
        self.fault = failure.fault
        self._finish()

    def _finish(self) -> None:
        self._phase = _OVER
        self.over = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def refusal_message(body: bytes) -> str:
    """The sentence in an upstream's error body, whichever dialect it is in; "" if there is none."""
    return sentence_in(decode(body))


def _context_refusal(body: bytes) -> tuple[bool, int | None]:
    """Whether an upstream's 400 says that the prompt is too long for it, and how long it is."""
    found: Any = decode(body)
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        error = found if isinstance(found, dict) else {}
    named = {str(error.get("type")), str(error.get("code"))} & _TOO_LONG
    if not named and not _TOO_LONG_WORDS.search(str(error.get("message"))[:_MESSAGE_CHARS]):
        return False, None
    tokens = error.get("n_prompt_tokens")
    return True, tokens if isinstance(tokens, int) and 0 < tokens <= MAX_COUNT else None
