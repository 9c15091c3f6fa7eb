"""What one request was and what it cost: filled in while it runs, handed over when it is done.

No prompt and no answer is ever in here. Storing, rolling up and pricing are the recorder's.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import msgspec

MOST_TOKENS_PER_S: Final = 10_000
"""No server writes one answer faster; what seems to was held back on the way and came at once."""


class TokenCounts(msgspec.Struct):
    """Tokens of one request. `prompt` includes the `cached` ones. `exact`: the upstream said so;
    else `prompt` is our estimate and `completion` counts the chunks that were seen."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    exact: bool = False

    @property
    def total(self) -> int:
        """Prompt and answer."""
        return self.prompt + self.completion


class Load(NamedTuple):
    """What a request waited for at its node: the model was loaded in `load_ms`, after `room_ms` in
    which others made room; `made_room`: those that were unloaded for it."""

    load_ms: int
    room_ms: int
    made_room: tuple[str, ...]


class Attempt(msgspec.Struct):
    """One upstream that was given the request: why it, with whom it was compared, and how that
    ended. `fault`: the OpenAI error code of its failure, "" if it answered. `load`: what was waited
    for there, if the model was loaded first."""

    node: str
    model: str
    reason: str
    queue_ms: float
    candidates: tuple[object, ...] = ()
    fault: str = ""
    load: Load | None = None


class RequestRecord(msgspec.Struct):
    """One request. Times in ms are since its arrival, None where that point was never reached."""

    request_id: str
    started_at: float
    """Unix time, seconds."""
    method: str
    path: str
    key_id: str = ""
    model: str = ""
    """As the caller named it."""
    served_model: str = ""
    """As the upstream was asked for it: differs after an alias or a fall-back."""
    node: str = ""
    """The upstream that answered, or that was tried last; a provider's name too."""
    status: int = 0
    """What the caller was sent, or what the error event behind a heartbeat's 200 stands for; 499
    where it went away before either."""
    fault: str = ""
    """The OpenAI error code of what went wrong on our side, "" if nothing did."""
    reason: str = ""
    """Why this upstream."""
    tried: list[Attempt] = msgspec.field(default_factory=list)
    """Its attempts in order, for `wai explain`."""
    tokens: TokenCounts = msgspec.field(default_factory=TokenCounts)
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    """Until the first content: text, reasoning, a tool call or audio."""
    first_byte_ms: float | None = None
    """Until any byte of an upstream's answer, a comment or a role included."""
    first_content_at: float | None = None
    first_byte_at: float | None = None
    """Monotonic, for `ttft_ms` and `first_byte_ms`."""
    duration_ms: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    attempts: int = 0
    translated: str = ""
    """The upstream's route to which it was translated; "relay" where no upstream was asked."""
    continued: int = 0
    """How many times another node went on with an answer whose node was lost."""
    cancelled: bool = False
    fallback: bool = False
    """Another model, or a provider, stood in for what was asked."""
    stream: bool = False
    traceparent: str = ""
    """The caller's (W3C Trace Context), where spans are made."""
    operation: str = ""
    """Its `gen_ai.operation.name`, where spans are made; "" if it has none."""
    cost: float = 0.0
    """In the operator's currency, 0 where the upstream has no price."""
    handed_over: bool = False
    """Whether the recorder has it: from then on its `tokens` alone may be corrected."""
    relay: str = ""
    """The id of the relay that it came by; "" where that is alone."""
    address: str = ""
    """The caller's, for the access log only: it is not stored."""
    refused_key: str = ""
    """The key that was shown and is not good: its id if it is known, else its first characters, ""
    where it does not look like a key of ours."""

    @property
    def failed(self) -> bool:
        """Whether the caller did not get what it asked for, its own going away aside."""
        return not self.cancelled and (self.status >= 400 or bool(self.fault))

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed from the first content to the end, None where it can't be told: a whole
        document shows no first token, nor does a stream that came in one piece."""
        if not self.stream or self.ttft_ms is None or self.tokens.completion < 2:
            return None
        tokens, decode_s = self.tokens.completion - 1, (self.duration_ms - self.ttft_ms) / 1000.0
        return tokens / decode_s if is_pace(tokens, decode_s) else None


def is_pace(tokens: float, seconds: float) -> bool:
    """Whether `tokens` that came in `seconds` show how fast they were written."""
    return seconds > 0 and tokens <= seconds * MOST_TOKENS_PER_S


class PastRequest(NamedTuple):
    """What is kept of a request that is over, as the last hour's figures need it. `began_at`:
    seconds since 1970."""

    began_at: float
    node: str
    ttft_ms: float | None
    duration_ms: float
    completion_tokens: int
    attempts: int
    status: int
    failed: bool
    cancelled: bool


class UsageState(NamedTuple):
    """How the books of usage are kept: requests that are not in the database yet, and that could
    not be kept. `behind`: the database takes none now."""

    unwritten: int
    lost: int
    behind: bool

    @property
    def word(self) -> str:
        """What health checks are told."""
        return "waiting for the disk" if self.behind else "written"


class LimitsState(NamedTuple):
    """How the limits that several relays share are kept: requests of keys with limits that this
    relay let in by itself (`here`) and that the database let in (`there`) or refused, those that
    were refused since it did not answer, and how often it was asked. `away_since`: since when it
    does not answer, in seconds since 1970; None if it does."""

    here: int
    there: int
    refused: int
    unanswered: int
    round_trips: int
    away_since: float | None


class Recorder(Protocol):
    """Takes finished records. Called on the hot path: it queues, and neither blocks nor raises."""

    def finish(self, record: RequestRecord) -> None:
        """`record` will not change any more, a correction of its tokens aside."""


class Corrector(Protocol):
    """Sets right what was recorded, once more is known."""

    def __call__(self, record: RequestRecord, tokens: TokenCounts, /) -> None:
        """`record` took `tokens`."""


def leave_uncorrected(record: RequestRecord, tokens: TokenCounts) -> None:
    """A `Corrector` for a relay without usage accounting."""
    record.tokens = tokens


class DiscardingRecorder:
    """A recorder that keeps nothing: for a relay without usage accounting."""

    def finish(self, record: RequestRecord) -> None:
        """Forget `record`."""
