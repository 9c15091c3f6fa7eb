"""One request's way to an answer: choose an upstream, try it, else try another.

Owns the lease, the stream and the upload of one attempt at a time, and gives all three back on
every way out; a caller who goes away is the cancelling of the task that runs this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec.structs import replace

from wai_protocol.errors import Fault, WaiError
from wai_protocol.status import PER_TOKEN_TIMINGS, ModelStatus
from wai_protocol.surface import Headers, headers_for_upstream
from wai_relay.contracts.records import Attempt, Corrector, RequestRecord, TokenCounts
from wai_relay.contracts.upstream import ServingNode, Spent
from wai_relay.policy.admission import Admission
from wai_relay.policy.scheduler import MAX_WAIT_S

from .answer import RETRY_FAULTS, Answer, Failure
from .bodies import Change, asks_timings, asks_usage
from .conversation import Conversation, offered_protocols, target_with_model
from .dispatch import Dispatcher, Lease, Outcome, RequestInfo
from .heartbeat import CallLater, Timer
from .lately import Lately
from .limits import GatewayLimits
from .routed_request import RoutedRequest
from .sending import UPLOAD_BYTES, beside, listen, size_of, upload
from .strict_servers import FORGOTTEN_AFTER_S, refuses_a_field


class _Watchdog:
    """Has an answer look at its deadline. That moves with every chunk and the timer does not: a
    timer that comes too early is set again."""

    __slots__ = ("_answer", "_call_later", "_clock", "_timer")

    def __init__(self, answer: Answer, clock: Callable[[], float], call_later: CallLater) -> None:
        self._answer = answer
        self._clock = clock
        self._call_later = call_later
        self._timer: Timer | None = None
        self._set()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        delay_s = self._answer.next_deadline() - self._clock()
        self._timer = self._call_later(delay_s, self._check)

    def _check(self) -> None:
        self._answer.handle_timeout(self._clock())
        if not self._answer.over:
            self._set()


# The answer's figures are read as it passes, so it must not come compressed; and the node's log and
# the upstream's know a request by the name that ours has, and the caller was told.
_OURS: Final = frozenset({b"accept-encoding", b"x-request-id"})
# An upstream found fault with the request.
_REFUSALS: Final = (Fault.BAD_REQUEST, Fault.CONTEXT_EXCEEDED)


class RequestForwarder:
    """Runs calls. One for the whole gateway; between two calls it keeps only which servers are
    strict."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: GatewayLimits,
        clock: Callable[[], float],
        call_later: CallLater,
        admission: Admission,
        correct: Corrector,
    ) -> None:
        self._dispatcher = dispatcher
        self._admission = admission
        self._correct = correct
        self.limits = limits
        self._clock = clock
        self._call_later = call_later
        self._strict = Lately(clock, FORGOTTEN_AFTER_S)

    async def forward(self, call: RoutedRequest, info: RequestInfo) -> Failure | None:
        """Get the caller an answer. None: it has one, whole or cut. Else what the last attempt that
        was made came to; where it was to go on with an answer, that has begun. Raises `WaiError`
        when no upstream could be tried at all."""
        failure: Failure | None = None
        suspects: list[Lease] = []
        tries = self.limits.attempts
        try:
            while tries:
                tries -= 1
                try:
                    lease = await self._acquire(call, info)
                except WaiError as error:
                    if failure is None or _says_more(error, failure):
                        raise
                    break  # nobody else: what the last one said is the better answer
                given_at = self._clock()
                failure = await self._attempt(call, lease, info, suspects)
                if failure is None or not (failure.retryable and call.body.repeatable):
                    break
                if failure.fault is Fault.NODE_FULL:  # it is known to be now: wait, or go elsewhere
                    tries += 1
                    call.record.attempts -= 1
                    forget_repeated(call.record.tried)
                    continue
                if failure.fault in RETRY_FAULTS:
                    suspects.append(lease)
                if failure.midway:
                    tries = self.limits.attempts
                    self._continue(call)
                info = self._for_another(call, lease, failure, info, given_at)
        finally:
            for lease in suspects:
                lease.acquit()
        return failure

    def _for_another(
        self,
        call: RoutedRequest,
        lease: Lease,
        failure: Failure,
        info: RequestInfo,
        given_at: float,
    ) -> RequestInfo:
        """`info` for the next attempt, after the one that `lease` was given at `given_at`."""
        excluded = info.excluded | {lease.upstream.name}
        # All attempts share one time to wait in, which they do not use up themselves.
        wait_until = info.wait_until + self._clock() - given_at
        if failure.midway:
            wait_until = self._clock() + MAX_WAIT_S
            # A node that was lost is gone, or what is there under its name is a new process.
            lost = failure.fault is Fault.SESSION_LOST
            excluded = frozenset() if lost else frozenset({lease.upstream.name})
        if failure.fault is Fault.CONTEXT_EXCEEDED:
            call.prompt_tokens = failure.prompt_tokens or call.prompt_tokens
            least = call.prompt_tokens or (_context_of(lease) or 0) + 1
            tokens = call.prompt_tokens or max(info.prompt_tokens, least)
            info = replace(info, prompt_tokens=tokens, certain_tokens=least)
        return replace(info, excluded=excluded, wait_until=wait_until)

    def _continue(self, call: RoutedRequest) -> None:
        """Another upstream is to go on with the answer; the caller may have to wait for it."""
        assert call.continuation is not None
        call.continuation.go_on()
        call.record.continued += 1
        if call.heartbeat is not None:
            call.heartbeat.answer = None

    async def _acquire(self, call: RoutedRequest, info: RequestInfo) -> Lease:
        record = call.record
        asked_at = self._clock()
        try:
            lease = await self._dispatcher.acquire(info)
        finally:
            queue_ms = (self._clock() - asked_at) * 1000.0
            record.queue_ms += queue_ms
        record.attempts += 1
        record.node = lease.upstream.name
        record.served_model = lease.model
        record.reason = lease.reason
        record.fallback = lease.fallback
        record.tried.append(
            Attempt(record.node, lease.model, lease.reason, queue_ms, lease.candidates)
        )
        return lease

    async def _attempt(
        self, call: RoutedRequest, lease: Lease, info: RequestInfo, suspects: list[Lease]
    ) -> Failure | None:
        """Try one upstream. The `suspects` failed the same request before: once this one begins to
        serve it, the failures were theirs and not the request's."""
        given_at = self._clock()
        dialect = call.reply.dialect
        model, asked = lease.model, call.body.facts.model
        ask_usage = ask_timings = False
        capabilities = frozenset[str]()
        if call.body.facts.stream:  # nothing is asked for and nothing continued otherwise
            capabilities = _capabilities(_told(lease))
            takes_ours = not self._strict.knows(lease.upstream.name, lease.model)
            ask_usage = takes_ours and asks_usage(dialect, call.route, call.body.facts)
            ask_timings = (
                takes_ours
                and PER_TOKEN_TIMINGS in capabilities
                and asks_timings(dialect, call.route, call.body.json)
            )
        if asked != model and (told := _told(lease)) and all(asked in m.aliases for m in told):
            model = asked  # the server's own name for it stays
        change = Change(model, ask_usage=ask_usage, ask_timings=ask_timings)
        answer = self._answer(call, lease, info, suspects, given_at, change)
        cancelled = True
        try:
            await self._exchange_with(call, lease, answer, capabilities, change)
            if (ask_usage or ask_timings) and call.body.repeatable and _may_be_ours(answer.failure):
                change = Change(model)
                answer = self._answer(call, lease, info, suspects, given_at, change)
                await self._exchange_with(call, lease, answer, capabilities, change)
                if not _may_be_ours(answer.failure):
                    self._strict.note(lease.upstream.name, lease.model)
            cancelled = False
        finally:
            call.live.answer = None
            counts = answer.counts(info.prompt_tokens)
            call.record.tokens = call.continuation.whole(counts) if call.continuation else counts
            self._account(call, lease, answer, counts, given_at, cancelled=cancelled)
            if (stream := call.stream) is not None:
                call.record.tried[-1].load = stream.load
                if not counts.exact:
                    stream.on_spent = partial(self._found_out, call, counts)
                call.stream = None
        return answer.failure

    def _answer(
        self,
        call: RoutedRequest,
        lease: Lease,
        info: RequestInfo,
        suspects: list[Lease],
        given_at: float,
        change: Change,
    ) -> Answer:
        """The answer to the request with `change`, which is yet to be sent."""

        def begin(answer: Answer) -> None:  # told which, so that none is held by what it holds
            call.begun = True
            call.settle()
            if call.heartbeat is not None:
                call.heartbeat.answer = answer
            while suspects:
                suspects.pop().blame()
            lease.answering()

        labels = labels_of(call.record) + self._admission.headers(info.key, given_at)
        common = (call.reply, call.route, labels, self.limits, self._clock, begin)
        answer: Answer
        if call.route.is_websocket:
            answer = Conversation(*common, on_tokens=call.on_tokens)
        else:
            answer = Answer(
                *common,
                strip_usage=change.ask_usage and not call.reply.reads_usage,
                strip_timings=change.ask_timings,
                continuation=call.continuation,
            )
        call.live.answer = answer
        return answer

    def _found_out(self, call: RoutedRequest, counts: TokenCounts, spent: Spent) -> None:
        """An attempt that was given up with `counts` has taken `spent`: set the books right."""
        prompt = 0 if spent.prompt is None else spent.prompt - counts.prompt
        cached = 0 if spent.cached is None else spent.cached - counts.cached
        completion = 0 if spent.completion is None else spent.completion - counts.completion
        record = call.record
        known = record.tokens
        exact = spent.exact and not record.continued
        self._correct(
            record,
            TokenCounts(
                max(known.prompt + prompt, 0),
                max(known.cached + cached, 0),
                max(known.completion + completion, 0),
                exact=exact,
            ),
        )
        more = record.tokens.total - known.total
        self._admission.correct(call.permit, more, self._clock())

    async def _exchange_with(
        self,
        call: RoutedRequest,
        lease: Lease,
        answer: Answer,
        capabilities: frozenset[str],
        change: Change,
    ) -> None:
        """Send the request with `change` and see its answer through. Leaves no stream behind."""
        if call.continuation is not None:
            change = call.continuation.changed(change, capabilities)
        outgoing = call.body.outgoing(change)
        headers = headers_for_upstream(call.reply.exchange.request.headers, without=_OURS)
        headers.append((b"x-request-id", call.record.request_id.encode()))
        body, whole, target = call.body, None, call.target
        if isinstance(answer, Conversation):
            headers += offered_protocols(call.reply.exchange.request)
            target = target_with_model(target, change.model)
        elif body.complete and body.held is None:
            whole = body.in_hand(outgoing)
        size = size_of(call, outgoing) if whole is None else len(whole)
        if whole is not None and len(whole) > UPLOAD_BYTES:
            whole = None
        if size is not None and whole is None:  # else the node finds out by itself
            headers.append((b"content-length", b"%d" % size))
        try:
            stream = lease.upstream.open(
                call.route.method, target, headers, lease.model, answer, end=False
            )
        except WaiError as error:
            answer.on_reset(error.fault, str(error))
            return
        answer.attach(stream)
        call.stream = stream
        call.reply.exchange.on_resume = answer.resume
        try:
            if whole is not None:
                stream.write(whole)
                stream.end()
                await self._watch(answer)
            else:
                if isinstance(answer, Conversation):
                    work = listen(call, stream, answer)
                else:
                    call.uploading = True
                    work = upload(call, stream, answer, outgoing)
                del outgoing  # the upload's alone, which drops it as it goes
                async with beside(work, call, answer):
                    await self._watch(answer)
                # An answer may come before all of the request was sent: the rest is not wanted.
                stream.reset(Fault.CANCELLED, "answered already")
        finally:
            call.reply.exchange.on_resume = None
            if not answer.over:
                stream.reset(Fault.CANCELLED, "the caller went away")
            answer.detach()

    async def _watch(self, answer: Answer) -> None:
        """Wait until the answer is over, or gives up."""
        if answer.over:
            return
        watchdog = _Watchdog(answer, self._clock, self._call_later)
        try:
            await answer.wait()
        finally:
            watchdog.stop()

    def _account(
        self,
        call: RoutedRequest,
        lease: Lease,
        answer: Answer,
        counts: TokenCounts,
        given_at: float,
        *,
        cancelled: bool,
    ) -> None:
        now = self._clock()
        record = call.record
        ttft_s = None
        record.first_byte_at = record.first_byte_at or answer.first_byte_at
        if answer.first_content_at is not None:
            ttft_s = answer.first_content_at - given_at
            record.first_content_at = record.first_content_at or answer.first_content_at
        if answer.failure is None:
            record.status = answer.status if call.reply.exchange.started else 0
            record.fault = answer.fault.row.openai_code if answer.fault else ""
        record.cost += lease.cost(counts)
        record.tried[-1].fault = answer.fault.row.openai_code if answer.fault else ""
        failed = answer.fault is not None and answer.fault in RETRY_FAULTS
        lease.release(
            Outcome(
                fault=answer.fault if failed else None,
                # how long a conversation was says nothing of how fast its node is
                cancelled=cancelled or call.route.is_websocket,
                ttft_s=ttft_s,
                duration_s=now - given_at,
                tokens=counts,
                begun=answer.first_content_at is not None,
                full=answer.fault is Fault.NODE_FULL,
                refused=answer.fault in _REFUSALS,
            )
        )


def forget_repeated(tried: list[Attempt]) -> None:
    """Of attempts in a row at nodes that were full keep the last one of each node."""
    last = tried[-1]
    for earlier in reversed(tried[:-1]):
        if earlier.fault != Fault.NODE_FULL.row.openai_code:
            return
        if earlier.node == last.node:
            tried.remove(earlier)
            return


def _says_more(error: WaiError, failure: Failure) -> bool:
    """Whether the caller should rather hear that nobody else can serve the request (`error`) than
    how the last attempt failed."""
    if failure.fault is Fault.CONTEXT_EXCEEDED:  # one with more context will be back
        return error.retry_after_s is not None
    return error.fault is Fault.CONTEXT_EXCEEDED


def _may_be_ours(failure: Failure | None) -> bool:
    """Whether a server may have refused the fields that we added, for all that is known."""
    return (
        failure is not None
        and failure.refusal is not None
        and failure.fault is Fault.BAD_REQUEST
        and refuses_a_field(failure.refusal.status, failure.refusal.body)
    )


def _told(lease: Lease) -> list[ModelStatus]:
    """What the node's upstreams with the model tell of it; the node chooses among them."""
    upstream = lease.upstream
    models = upstream.status.models if isinstance(upstream, ServingNode) else ()
    return [model for model in models if model.id == lease.model]


def _capabilities(told: list[ModelStatus]) -> frozenset[str]:
    """What the request may ask for: the capabilities that all of the upstreams have."""
    words = [frozenset(model.capabilities) for model in told]
    return frozenset.intersection(*words) if words else frozenset()


def _context_of(lease: Lease) -> int | None:
    """The context that an upstream has for its model; None where that is not known."""
    return min((m.context_tokens for m in _told(lease) if m.context_tokens), default=None)


def labels_of(record: RequestRecord) -> Headers:
    """What each answer of a model, and each refusal, says of how it came about: by which node, if
    one was found, and why; else the code of what is in the way."""
    labels = [
        (b"x-wai-node", record.node.encode("latin-1", "replace")),
        (b"x-wai-reason", (record.reason or record.fault).encode("latin-1", "replace")),
        (b"x-wai-queue-ms", b"%d" % record.queue_ms),
        (b"x-wai-attempts", b"%d" % record.attempts),
    ]
    return labels if record.node else labels[1:]
