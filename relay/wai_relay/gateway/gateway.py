"""Answers the callers' API: whose key, which route, which model; then it forwards, or says why not.

Every error a caller sees is made here, in its route's dialect. What is chosen is the dispatcher's,
how an attempt goes `forwarding`'s, what an answer looks like `answer`'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import parse_qs

import msgspec
from msgspec.structs import replace

from wai_protocol.errors import Fault, RequestError, WaiError
from wai_protocol.surface import Headers, Route
from wai_relay.contracts.api_keys import ApiKey, KeyRefused
from wai_relay.contracts.records import Corrector, Recorder, RequestRecord, leave_uncorrected
from wai_relay.contracts.upstream import Fleet
from wai_relay.http.exchange import Exchange, Request
from wai_relay.observe.captures import Captures
from wai_relay.observe.explain import Explanations
from wai_relay.observe.live import ENDED_BY_ADMIN, LiveRequest, LiveRequests
from wai_relay.policy.admission import Admission, Permit
from wai_relay.policy.model_names import ModelNames
from wai_relay.policy.scheduler import MAX_WAIT_S
from wai_relay.policy.served_names import ServedNames

from .answer import Failure
from .bodies import check_model
from .body_budget import BodyBudget
from .catalog import Catalog, listed_models
from .claims import FREE_TASKS, largest_context, prompt_to_read, token_claim
from .continuation import continuation_for
from .dialects.extra import EXTRA
from .dialects.registry import DIALECTS, Dialects
from .dispatch import Dispatcher, RequestInfo
from .extra_routes import extra_route_of
from .forwarding import RequestForwarder, labels_of
from .heartbeat import CallLater, Heartbeat, Timer
from .held_body import Spool
from .intake import Body, Intake
from .lately import Lately
from .limits import GatewayLimits
from .reply import OUR_FAULT, CallerReply
from .routed_request import RoutedRequest
from .stored_answers import StoredAnswers, StoredAt, referred_to, stored_id
from .tokens import TokenEstimator, least_tokens
from .translated_call import translate
from .translation.misses import FORGOTTEN_AFTER_S, MISSING_STATUSES
from .translation.same_body import route_that_is_there
from .translation.table import is_translatable, is_translated, local_answer, translation_of
from .translation.translated_reply import TRANSLATED
from .translation.translation import Asked

log = logging.getLogger("wai.gateway")

MAX_QUERY_FIELDS: Final = 32
RETRY_AFTER_S: Final = 1.0  # where an error that will pass does not say when
_RETRIED_STATUSES: Final = frozenset({429, 503})


class KeyCheck(Protocol):
    """Who knows the API keys (`keys.KeyRing`)."""

    def authenticate(self, headers: Headers) -> ApiKey:
        """The key in `headers`. Raises `AuthError` (401)."""


class Gateway:
    """The handler for `/v1/*`, `/api/v1/*` and Ollama's `/api/*`. Belongs to one loop.

    `live` are the requests that run now, `explanations` the last that are over, `captures` what is
    kept of their prompts and answers, if anything is. `admission` holds the keys' limits. `correct`
    hears what requests took that were given up, some time after they were recorded.
    """

    def __init__(
        self,
        keys: KeyCheck,
        fleet: Fleet,
        dispatcher: Dispatcher,
        recorder: Recorder,
        limits: GatewayLimits | None = None,
        *,
        dialects: Dialects = DIALECTS,
        names: ModelNames | None = None,
        served: ServedNames | None = None,
        admission: Admission | None = None,
        correct: Corrector = leave_uncorrected,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        call_later: CallLater | None = None,
        spool_folder: Path | None = None,
    ) -> None:
        self.live = LiveRequests()
        self.explanations = Explanations()
        self.traced = False
        """Whether records need the callers' `traceparent`."""
        call_later = call_later or _call_later
        self.captures = Captures(clock=clock, wall_clock=wall_clock, call_later=call_later)
        self._keys = keys
        self._dialects = dialects
        self._fleet = fleet
        self._recorder = recorder
        self._limits = limits or GatewayLimits()
        self._clock = clock
        self._wall_clock = wall_clock
        self._call_later = call_later
        self._names = names or ModelNames()
        self._admission = admission or Admission()
        self._forwarder = RequestForwarder(
            dispatcher, self._limits, clock, call_later, self._admission, correct
        )
        self._budget = BodyBudget(self._limits.held_total_bytes)
        self._spool = Spool(spool_folder, self._limits.spooled_total_bytes)
        self._estimator = TokenEstimator()
        self._misses = Lately(clock, FORGOTTEN_AFTER_S)
        self._served = served or ServedNames()
        self._stored = StoredAnswers()
        self._created = int(wall_clock())

    def configure(self, limits: GatewayLimits, names: ModelNames) -> None:
        """Other bounds and names, for requests that begin from now on."""
        self._limits, self._names = limits, names
        self._forwarder.limits = limits
        self._budget.limit_bytes = limits.held_total_bytes
        self._spool.budget.limit_bytes = limits.spooled_total_bytes

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Cancelling it closes what it has open and records it all the same."""
        request = exchange.request
        path = self._dialects.upstream_path(request.path)
        record = RequestRecord(request.request_id, self._wall_clock(), request.method, path)
        record.address = request.peer
        if self.traced:
            record.operation = self._dialects.operation_of(path)
            record.traceparent = request.header(b"traceparent").decode("latin-1")
        arrived_at = self._clock()
        task = asyncio.current_task()
        assert task is not None
        live = self.live.enter(record, arrived_at, task.cancel)
        reply = CallerReply(exchange, self._dialects.of(path))
        try:
            await self._handle(reply, path, live)
        except WaiError as error:
            row = error.fault.row  # not its message, which may quote the caller
            log.log(row.log_level, "%s refused: %s", request.request_id, row.openai_code)
            if isinstance(error, KeyRefused):
                record.refused_key = error.key
            self._refuse(reply, path, live, error)
        except asyncio.CancelledError:
            record.cancelled = True
            if live.ended and not task.uncancel():  # the caller is there still
                self._refuse(reply, path, live, WaiError(ENDED_BY_ADMIN, Fault.CANCELLED))
                return
            record.status = record.status or Fault.CANCELLED.row.http_status
            raise
        except Exception:
            log.exception("%s failed", request.request_id)
            self._refuse(reply, path, live, WaiError(OUR_FAULT))
        finally:
            self._finish(exchange, live)

    async def _handle(self, reply: CallerReply, path: str, live: LiveRequest) -> None:
        request, record = reply.exchange.request, live.record
        key = self._keys.authenticate(request.headers)
        live.key, record.key_id = key, key.id
        if request.method in ("GET", "HEAD") and reply.dialect.is_list(path):
            self._answer_list(reply, path, key, record)
            return
        route = self._dialects.find_route(request.method, path)
        if route is None:
            route = extra_route_of(self._fleet.nodes(), request.method, path)
            if route is None:
                raise self._no_route(request.method, path)
            reply.dialect = EXTRA
        if route.is_websocket and not reply.exchange.websocket_key:
            raise RequestError(
                f"{path} is a WebSocket: connect to it by `wss://`, over HTTP/1.1, with version 13."
            )
        reply.exchange = self.captures.watched(reply.exchange, record, key.id)
        permit = self._admission.enter(key, self._clock(), self._wall_clock())
        try:
            if permit.asking is not None:
                await permit.asking
            await self._forward(reply, path, route, key, live, permit)
        finally:
            self._admission.settle(permit, record.tokens.total, self._clock())

    # -- requests that go to a model
    async def _forward(
        self,
        reply: CallerReply,
        path: str,
        route: Route,
        key: ApiKey,
        live: LiveRequest,
        permit: Permit,
    ) -> None:
        request, record = reply.exchange.request, live.record
        pin, stored = _pin(request), None
        if route.stored:
            stored = self._stored.find(key.id, stored_id(path, route))
            if stored is None:
                raise RequestError("No such answer is known here.", Fault.NOT_FOUND)
            pin = pin or stored.node
        intake = Intake(
            *(reply.exchange, reply.dialect, route, key.id),
            *(self._limits, self._budget, self._clock),
            lambda: stored.model if stored else self._default_model(request, key, pin),
            spool=self._spool,
        )
        call: RoutedRequest | None = None
        try:
            body = await intake.take()
            self._served.look(self._fleet)
            models = self._names.allowed(body.facts.model, key.limits, self._served)
            if body.json is not None and (answer_id := referred_to(route, body.json.fields)):
                found = self._stored.find(key.id, answer_id)
                pin = pin or (found.node if found is not None else None)
            there = route_that_is_there(route, self._fleet.nodes(), models)
            if there is not route:
                path, route = there.path, there
            translated = self._limits.translate and is_translated(
                route, self._fleet.nodes(), key, models, pin, self._misses
            )
            if translated:
                body = await intake.decodable(body)
            facts = body.facts
            record.model = facts.model
            record.stream = facts.stream
            prompt_tokens = self._estimator.estimate(facts.model, facts.prompt)
            live.prompt_tokens = prompt_tokens
            if key.limits.tpm is not None or key.limits.monthly_tokens is not None:
                context = largest_context(self._fleet.nodes(), models)
                template = self._estimator.template(facts.model, facts.prompt)
                claim = token_claim(route, facts, prompt_tokens + template, context)
                self._admission.reserve(permit, key, claim, self._clock(), self._wall_clock())
                if permit.asking is not None:
                    await permit.asking
            target = f"{path}?{request.query}" if request.query else path
            call = RoutedRequest(reply, route, target, intake, body, record, live, permit)
            call.heartbeat = self._heartbeat(reply, route, body)
            if route.is_websocket:
                record.stream = True
                call.on_tokens = partial(self._spend, request, permit)
            if translated:
                asked = self._asked(facts.model, prompt_tokens, models)
                record.translated = "relay"
                if (answer := local_answer(route, body.data, asked)) is not None:
                    record.status = 200
                    _send(reply, 200, [(TRANSLATED, b"relay")], answer)
                    return
                translate(call, translation_of(route, body.data, asked), self._dialects)
            if call.body.repeatable:
                call.continuation = continuation_for(
                    request, call.reply.dialect, call.route, key, call.body.json
                )
            wait_until = self._clock() + MAX_WAIT_S
            to_read = prompt_to_read(route, facts, prompt_tokens)
            certain = least_tokens(facts.prompt) if route.generates else None
            info = _info(request, call.route, key, body, to_read, certain, wait_until, pin)
            failure = await self._forwarder.forward(call, info)
            if failure is not None and self._lacks_route(call, failure):
                asked = self._asked(facts.model, prompt_tokens, models)
                call.body = body = await intake.decodable(body)
                translate(call, translation_of(route, body.data, asked), self._dialects)
                info = replace(info, api=call.route.api, route=call.route.path)
                failure = await self._forwarder.forward(call, info)
            if failure is not None:
                self._fail(reply, route, live, failure)
            else:
                self._remember_answer(call, key)
            if failure is None and record.tokens.exact and route.generates:
                self._estimator.observe(facts.model, facts.prompt, record.tokens.prompt)
        finally:
            if call is not None:
                call.stop_heartbeat()
                if call.prompt_tokens is not None:
                    self._estimator.observe(
                        record.model, call.body.facts.prompt, call.prompt_tokens
                    )
            intake.release()

    def _spend(self, request: Request, permit: Permit, tokens: int) -> None:
        """A conversation took `tokens`. Raises `WaiError` where it must not go on: its key was
        revoked meanwhile, has expired, or has no tokens left."""
        key = self._keys.authenticate(request.headers)
        self._admission.spend(permit, key, tokens, self._clock(), self._wall_clock())

    def _remember_answer(self, call: RoutedRequest, key: ApiKey) -> None:
        """A later request may refer to the answer, which is on the node that gave it."""
        reader = call.reply.reader
        if reader is not None and reader.answer_id:
            place = StoredAt(call.record.node, call.record.model)
            self._stored.note(key.id, reader.answer_id, place)

    def _default_model(self, request: Request, key: ApiKey, pin: str | None) -> str | None:
        """What is asked for where a request need not name a model: the query may, and where the key
        can use one model only, there is no choice."""
        named = parse_qs(request.query, max_num_fields=MAX_QUERY_FIELDS).get("model")
        if named:
            return check_model(named[0])
        models = listed_models(self._fleet.nodes(), key, pin=pin)
        return models[0].id if len(models) == 1 else None

    def _lacks_route(self, call: RoutedRequest, failure: Failure) -> bool:
        """Whether the upstreams that were tried have no such route, and a translation may help."""
        refusal, body = failure.refusal, call.body
        if refusal is None or refusal.status not in MISSING_STATUSES or call.record.translated:
            return False
        if not (self._limits.translate and is_translatable(call.route) and body.json is not None):
            return False
        self._misses.note(call.record.node, call.route.path)
        return not call.reply.exchange.started

    def _asked(self, model: str, prompt_tokens: int, models: Collection[str]) -> Asked:
        context = largest_context(self._fleet.nodes(), models)

        def capabilities() -> set[str]:
            return {
                word
                for node in self._fleet.nodes()
                for one in node.status.models
                if one.id in models
                for word in one.capabilities
            }

        return Asked(model, prompt_tokens, self._wall_clock, _new_id, context, capabilities)

    def _heartbeat(self, reply: CallerReply, route: Route, body: Body) -> Heartbeat | None:
        if not (body.facts.stream and route.generates and reply.dialect.heartbeat):
            return None
        if reply.exchange.request.header(b"x-wai-heartbeat") == b"0":
            return None
        return Heartbeat(reply, self._limits.heartbeat_s, self._clock, self._call_later)

    # -- lists, which are answered here
    def _answer_list(
        self, reply: CallerReply, path: str, key: ApiKey, record: RequestRecord
    ) -> None:
        nodes, pin = list(self._fleet.nodes()), _pin(reply.exchange.request)
        catalog = Catalog(
            *(nodes, key, self._names.aliases, pin, self._created),
            translated=self._limits.translate,
            resolve=self._model_called,
        )
        answer = reply.dialect.list_answer(path, catalog)
        record.status = 200
        _send(reply, 200, [], msgspec.json.encode(answer))

    def _model_called(self, name: str) -> str:
        """The model that `name` stands for."""
        self._served.look(self._fleet)
        return self._names.served_by(name, self._served)[0]

    # -- what went wrong
    def _no_route(self, method: str, path: str) -> RequestError:
        if self._dialects.methods(path):
            return RequestError(f"{method} is not how {path} is asked.", Fault.METHOD_NOT_ALLOWED)
        return RequestError(f"There is no {method} {path[:256]} here.", Fault.ROUTE_REFUSED)

    def _fail(self, reply: CallerReply, route: Route, live: LiveRequest, failure: Failure) -> None:
        """Tell the caller what the last attempt came to, in the upstream's words if any."""
        record = live.record
        refusal = failure.refusal
        if refusal is None or reply.exchange.started:
            self._refuse(reply, route.path, live, WaiError(failure.message, failure.fault))
            return
        if refusal.status in (401, 403):  # the caller's own key is good
            message = "The node's inference server refuses the key that the node gives it."
            self._refuse(reply, route.path, live, WaiError(message, Fault.UPSTREAM_BROKE))
            return
        words = reply.dialect.too_long_words
        unsaid = failure.fault is Fault.CONTEXT_EXCEEDED and words not in refusal.body.lower()
        if record.translated or unsaid:  # its body is in the upstream's dialect
            refusal = replace(
                refusal,
                headers=[pair for pair in refusal.headers if pair[0] != b"content-type"],
                body=reply.dialect.error_body(failure.fault, failure.message),
            )
        record.status = refusal.status
        mine = failure.fault is not Fault.BAD_REQUEST  # else the upstream found the caller wrong
        record.fault = failure.fault.row.openai_code if mine else ""
        headers = refusal.headers
        if refusal.status in _RETRIED_STATUSES and all(
            name != b"retry-after" for name, _ in headers
        ):
            headers = [*headers, (b"retry-after", b"%d" % RETRY_AFTER_S)]
        _send(reply, refusal.status, headers, refusal.body)

    def _refuse(self, reply: CallerReply, path: str, live: LiveRequest, error: WaiError) -> None:
        record, row = live.record, error.fault.row
        record.fault = row.openai_code
        record.status = row.http_status
        if reply.exchange.started:  # a heartbeat has, or our own bug struck in mid-answer
            reply.break_off(error.fault, str(error))
            return
        headers: Headers = []
        headers += _retry_headers(error)
        if error.fault is Fault.METHOD_NOT_ALLOWED:
            headers.append((b"allow", ", ".join(self._dialects.methods(path)).encode()))
        if error.fault in (Fault.KEY_MISSING, Fault.KEY_INVALID):
            headers.append((b"www-authenticate", b"Bearer"))
        headers += labels_of(record)
        if live.key is not None:
            headers += self._admission.headers(live.key, self._clock())
        _send(reply, row.http_status, headers, reply.dialect.error_body(error.fault, str(error)))

    def _finish(self, exchange: Exchange, live: LiveRequest) -> None:
        record, arrived_at = live.record, live.arrived_at
        self.live.leave(live)
        record.cancelled = record.cancelled or live.ended
        record.duration_ms = (self._clock() - arrived_at) * 1000.0
        if record.first_byte_at is not None:
            record.first_byte_ms = (record.first_byte_at - arrived_at) * 1000.0
        if record.first_content_at is not None:
            record.ttft_ms = (record.first_content_at - arrived_at) * 1000.0
        record.bytes_in = exchange.bytes_in
        record.bytes_out = exchange.bytes_out
        self.explanations.remember(record)
        self._recorder.finish(record)


def _call_later(delay_s: float, call: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(delay_s, call)


def _new_id() -> str:
    return secrets.token_hex(12)


def _retry_headers(error: WaiError) -> Headers:
    """When another try makes sense, and whether an SDK should make one by itself: it must not where
    that is next month, or never."""
    if error.fault.row.http_status not in _RETRIED_STATUSES:
        return []
    seconds = error.retry_after_s
    limited = error.fault.row.http_status == 429
    headers: Headers = []
    if seconds is None and not limited:
        seconds = RETRY_AFTER_S
    if seconds is not None:
        headers.append((b"retry-after", b"%d" % max(math.ceil(seconds), 1)))
    if limited and (seconds is None or error.fault is Fault.QUOTA_EXCEEDED):
        headers.append((b"x-should-retry", b"false"))
    return headers


def _info(
    request: Request,
    route: Route,
    key: ApiKey,
    body: Body,
    prompt_tokens: int,
    certain_tokens: int | None,
    wait_until: float,
    pin: str | None,
) -> RequestInfo:
    return RequestInfo(
        request_id=request.request_id,
        key=key,
        model=body.facts.model,
        api=route.api,
        route=route.path,
        generates=route.generates,
        takes_slot=route.task not in FREE_TASKS,
        stream=body.facts.stream,
        prompt_tokens=prompt_tokens,
        certain_tokens=certain_tokens,
        context_tokens=body.facts.context_tokens,
        max_output_tokens=body.facts.max_output_tokens,
        prefix=body.facts.prefix,
        pin=pin,
        wait_until=wait_until,
    )


def _pin(request: Request) -> str | None:
    return request.header(b"x-wai-node").decode("latin-1").strip() or None


def _send(reply: CallerReply, status: int, headers: Headers, body: bytes) -> None:
    """Answer with `body` as a whole; `headers` may name another content type than JSON."""
    framed = [*headers, (b"content-length", b"%d" % len(body))]
    if all(name != b"content-type" for name, _ in headers):
        framed.append((b"content-type", b"application/json"))
    reply.start(status, framed)
    if reply.exchange.request.method != "HEAD":
        reply.exchange.write(body)
    reply.exchange.end()
