"""`GET /metrics`: what the relay did since its start, in Prometheus' text format.

A `Recorder` that counts what passes and hands it on. Histograms have the names and the buckets of
OpenTelemetry's conventions for generative AI where there is one. Labels are bounded: a model counts
by its name once a node was found for it, the rest as ""; no key and no caller is ever a label.
"""

from __future__ import annotations

import hmac
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from wai_api.hardware import MachineNow
from wai_protocol.errors import AuthError, Fault
from wai_protocol.status import NodeStatus
from wai_relay.contracts.records import LimitsState, Recorder, RequestRecord, UsageState
from wai_relay.http.edge import EdgeCounters
from wai_relay.http.exchange import Exchange
from wai_transport.version import VERSION

from .live import LiveRequests
from .machine_metrics import machine_lines
from .metric_lines import Labels, head, line

MAX_MODELS: Final = 64
"""Counted by name; each has three histograms of about 17 lines, which a scrape has to carry."""

# The buckets that the conventions ask for, in seconds.
DURATION_S: Final = tuple(0.01 * 2.0**n for n in range(14))
FIRST_TOKEN_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0),  # home GPUs are slower than the conventions
)
PER_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

_BEARER: Final = b"bearer "
_CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


class NodeGauges(Protocol):
    """What is shown of a node (`fleet.node.Node`)."""

    @property
    def name(self) -> str:
        """Its name: the label of its gauges."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""

    @property
    def reconnects(self) -> int:
        """How often it came back into a session."""

    @property
    def status(self) -> NodeStatus:
        """What it said last of itself."""


class Histogram:
    """Values by bucket."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: Labels) -> Iterable[str]:
        """Prometheus' lines, if it has any value; a bucket's count holds the smaller ones'."""
        total = 0
        if not any(self._counts):
            return
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            total += count
            le = "+Inf" if bound is None else f"{bound:g}"
            yield line(f"{name}_bucket", (*labels, ("le", le)), total)
        yield line(f"{name}_sum", labels, self._sum)
        yield line(f"{name}_count", labels, total)


class ModelFigures:
    """What was done for one model: all that a request counts for, found at once."""

    __slots__ = ("cached", "duration", "first_token", "input", "output", "per_token", "requests")

    def __init__(self) -> None:
        self.requests: dict[int | str, int] = {}  # by status, or "cancelled"
        self.input = self.cached = self.output = 0  # tokens
        self.duration = Histogram(DURATION_S)
        self.first_token = Histogram(FIRST_TOKEN_S)
        self.per_token = Histogram(PER_TOKEN_S)

    def add(self, record: RequestRecord) -> None:
        """Count one request."""
        outcome = "cancelled" if record.cancelled else record.status
        self.requests[outcome] = self.requests.get(outcome, 0) + 1
        tokens = record.tokens
        self.input += tokens.prompt
        self.cached += tokens.cached
        self.output += tokens.completion
        if record.failed or not record.attempts:
            return  # a refusal takes no time, and would make the models look fast
        self.duration.observe(record.duration_ms / 1000.0)
        if record.ttft_ms is not None:
            self.first_token.observe(record.ttft_ms / 1000.0)
        if speed := record.tokens_per_second:
            self.per_token.observe(1.0 / speed)


_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[ModelFigures], Histogram]], ...]] = (
    (
        "gen_ai_server_request_duration_seconds",
        "From arrival to the last byte.",
        lambda of: of.duration,
    ),
    (
        "gen_ai_server_time_to_first_token_seconds",
        "From arrival to the first byte of the answer.",
        lambda of: of.first_token,
    ),
    (
        "gen_ai_server_time_per_output_token_seconds",
        "Between the tokens of an answer, on average.",
        lambda of: of.per_token,
    ),
)


class Metrics:
    """The relay's figures. A `Recorder` on the way to the `following` one. Belongs to one loop."""

    def __init__(self, following: Recorder) -> None:
        self._following = following
        self._models: dict[str, ModelFigures] = {}
        self._faults: Counter[str] = Counter()

    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        self._following.finish(record)
        (self._models.get(record.model) or self._figures_of(record)).add(record)
        if record.fault:
            self._faults[record.fault] += 1

    def text(
        self,
        nodes: Iterable[NodeGauges],
        live: LiveRequests,
        counters: EdgeCounters,
        certificate_ends: float | None = None,
        usage: UsageState | None = None,
        problems: Mapping[str, int] | None = None,
        machines: Sequence[tuple[str, MachineNow]] = (),
        limits: LimitsState | None = None,
    ) -> str:
        """Everything, as Prometheus reads it. `certificate_ends`: seconds since 1970; 0 while there
        is none by the authority, None without TLS. `problems`: how many there are of each kind.
        `machines`: by node, those that told lately. `limits`: those that relays share, None where
        they share none."""
        lines = [*head("wai_build_info", "The version.", "gauge")]
        lines.append(line("wai_build_info", (("version", VERSION),), 1))
        lines += self._model_lines()
        for name, value in (
            ("wai_connections_total", counters.connections),
            ("wai_connections_refused_total", counters.connections_refused),
            ("wai_heads_refused_total", counters.heads_refused),
            ("wai_answers_cut_total", counters.cut),
        ):
            lines += [*head(name, "At the callers' port.", "counter"), line(name, (), value)]
        lines += head("wai_requests_running", "Requests under way.", "gauge")
        lines.append(line("wai_requests_running", (), len(live)))
        if usage is not None:
            name = "wai_usage_unwritten_requests"
            lines += head(name, "Requests whose usage the database does not have yet.", "gauge")
            lines.append(line(name, (), usage.unwritten))
            name = "wai_usage_lost_requests_total"
            lines += head(name, "Requests whose usage could not be kept.", "counter")
            lines.append(line(name, (), usage.lost))
        if limits is not None:
            lines += _limits_lines(limits)
        if certificate_ends is not None:
            name = "wai_certificate_end_timestamp_seconds"
            lines += head(name, "When the port's certificate is over; 0: not there yet.", "gauge")
            lines.append(line(name, (), certificate_ends))
        if problems is not None:
            name = "wai_problems"
            lines += head(name, "What is wrong now, by kind; `wai status` says what.", "gauge")
            lines += [line(name, (("kind", kind),), count) for kind, count in problems.items()]
        lines += _node_lines(list(nodes))
        lines += machine_lines(machines)
        return "\n".join(lines) + "\n"

    def _figures_of(self, record: RequestRecord) -> ModelFigures:
        """Where a request counts whose model is not counted by its name yet."""
        counted = sum(map(bool, self._models))
        name = record.model if record.attempts and counted < MAX_MODELS else ""
        if (found := self._models.get(name)) is None:
            found = self._models[name] = ModelFigures()
        return found

    def _model_lines(self) -> Iterator[str]:
        """The lines of requests, faults and tokens."""
        models = [((("gen_ai_request_model", name),), of) for name, of in self._models.items()]
        yield from head("wai_requests_total", "Requests that are over.", "counter")
        for model, of in models:
            for outcome, count in of.requests.items():
                yield line("wai_requests_total", (*model, ("status", str(outcome))), count)
        yield from head("wai_faults_total", "What went wrong, by its code.", "counter")
        for fault, count in self._faults.items():
            yield line("wai_faults_total", (("error_type", fault),), count)
        yield from head("wai_tokens_total", "Tokens; cached ones are among the input.", "counter")
        for model, of in models:
            tokens = (("input", of.input), ("cached", of.cached), ("output", of.output))
            for kind, count in tokens:
                if count:
                    yield line("wai_tokens_total", (*model, ("gen_ai_token_type", kind)), count)
        for name, help_text, histogram_of in _HISTOGRAMS:
            yield from head(name, help_text, "histogram")
            for model, of in models:
                yield from histogram_of(of).lines(name, model)


class MetricsPage:
    """Answers `GET /metrics` to who knows the metrics' token, or an admin's.

    `text` renders the page; `authenticate` raises `AuthError` unless it is given an admin's token.
    """

    def __init__(
        self,
        text: Callable[[], str],
        authenticate: Callable[[bytes], object],
        token: str | None,
    ) -> None:
        self._text = text
        self._authenticate = authenticate
        self.token = token

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Raises `AuthError`."""
        given = exchange.request.header(b"authorization")
        if given[: len(_BEARER)].lower() != _BEARER:
            raise AuthError("metrics are for who has a token: see docs", Fault.KEY_MISSING)
        offered = given[len(_BEARER) :].strip()
        token = self.token
        if not token or not hmac.compare_digest(offered, token.encode()):
            self._authenticate(offered)
        body = self._text().encode()
        exchange.start(
            200,
            [(b"content-type", _CONTENT_TYPE), (b"content-length", b"%d" % len(body))],
        )
        if exchange.request.method != "HEAD":
            exchange.write(body)
        exchange.end()


def _limits_lines(limits: LimitsState) -> Iterator[str]:
    name = "wai_limited_requests_total"
    yield from head(name, "Requests of keys with limits, by who judged them.", "counter")
    for word, count in (
        ("here", limits.here),
        ("database", limits.there),
        ("refused", limits.refused),
        ("unanswered", limits.unanswered),
    ):
        yield line(name, (("judged", word),), count)
    name = "wai_limits_round_trips_total"
    yield from head(name, "How often the database was asked for limits.", "counter")
    yield line(name, (), limits.round_trips)
    name = "wai_limits_away"
    yield from head(name, "1 while the database does not answer for limits.", "gauge")
    yield line(name, (), int(limits.away_since is not None))


def _node_lines(nodes: list[NodeGauges]) -> Iterable[str]:
    """Gauges of each node: as many as the owner has let join."""
    for name, help_text, value in (
        ("wai_node_ready", "Whether it takes requests.", lambda node: int(node.ready)),
        ("wai_node_reconnects", "Connections after its first.", lambda node: node.reconnects),
        (
            "wai_node_slots",
            "Places for requests, of the models that are ready.",
            lambda node: sum(m.slots_total or 0 for m in node.status.models if m.ready),
        ),
        (
            "wai_node_slots_busy",
            "Places that are taken.",
            lambda node: sum(m.slots_busy for m in node.status.models if m.ready),
        ),
    ):
        yield from head(name, help_text, "gauge")
        for node in nodes:
            yield line(name, (("node", node.name),), value(node))
