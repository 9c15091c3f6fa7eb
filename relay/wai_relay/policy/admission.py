"""Whether a key may have another request now: its rates, its requests at once, its month's tokens.

A minute is the last sixty seconds, whenever one looks: never more than the limit in any of them.
Tokens are taken by estimate when a request comes and set right when it ends. Limits are read from
the key at every request, so that a change works from the next one on.

The month's tokens are counted by `months`, for the recorder of usage adds what is over; here is
only what requests under way are expected to take.

Pure: `now` is monotonic seconds, `wall` seconds since 1970 (for the calendar month). Who the key
is, whether it expired and which models it may use is decided before (`keys`, `gateway`); which
nodes, by `selection`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

from wai_protocol.errors import Fault, RequestError
from wai_protocol.surface import Headers
from wai_relay.access.keys import ApiKey

from .months import MonthTokens

MINUTE_S: Final = 60.0
# Amounts of the same tenth of a second are kept as one: at most 601 of them, whatever the rate.
GRAIN_S: Final = 0.1
# Other requests of the key are in progress, and nobody knows when one ends.
CONCURRENCY_RETRY_S: Final = 1.0
# Keys whose counts are held. A key is made by an operator: more than this many at once is no relay
# that one process serves. The longest unused one without requests goes first.
MAX_KEYS: Final = 16_384


class MinuteWindow:
    """How much was used in the last sixty seconds."""

    __slots__ = ("_amounts", "used")

    def __init__(self) -> None:
        self._amounts: deque[list[float]] = deque()  # [second, amount], oldest first
        self.used = 0.0

    def add(self, amount: float, now: float) -> None:
        """Use `amount`; a negative one gives back what was taken too much."""
        grain = math.ceil(now / GRAIN_S) * GRAIN_S  # rather a little later than too early
        if self._amounts and self._amounts[-1][0] >= grain:
            self._amounts[-1][1] += amount
        else:
            self._amounts.append([grain, amount])
        self.used += amount

    def expire(self, now: float) -> None:
        """Forget what is older than a minute."""
        while self._amounts and self._amounts[0][0] <= now - MINUTE_S:
            self.used -= self._amounts.popleft()[1]
        if not self._amounts:
            self.used = 0.0  # what rounding left

    def wait_s(self, amount: float, limit: float, now: float) -> float:
        """How long until `amount` fits under `limit`; a whole minute if it never does."""
        over = self.used + amount - limit
        for at, freed in self._amounts:
            if over <= 0:
                break
            over -= freed
            if over <= 0:
                return max(at + MINUTE_S - now, 0.0)
        return 0.0 if over <= 0 else MINUTE_S

    def reset_s(self, now: float) -> float:
        """How long until nothing counts any more."""
        return max(self._amounts[-1][0] + MINUTE_S - now, 0.0) if self._amounts else 0.0


class KeyUse:
    """What one key has used."""

    __slots__ = ("requests", "reserved", "running", "tokens")

    def __init__(self) -> None:
        self.requests = MinuteWindow()
        self.tokens = MinuteWindow()
        self.running = 0
        self.reserved = 0  # tokens that those who run are expected to take


class Permit:
    """A request that was admitted; end it with `Admission.settle`."""

    __slots__ = ("over", "reserved", "use")

    def __init__(self, use: KeyUse, reserved: int) -> None:
        self.use = use
        self.reserved = reserved
        self.over = False


class Admission:
    """The limits of all keys. Belongs to one loop."""

    def __init__(self, months: MonthTokens | None = None) -> None:
        self._uses: OrderedDict[str, KeyUse] = OrderedDict()
        self._months = months or MonthTokens(0.0)

    def admit(
        self, key: ApiKey, tokens: int, now: float, wall: float, *, again: bool = False
    ) -> Permit:
        """Let a request in that is expected to take `tokens`, prompt and answer together.

        `again`: it was admitted before and goes to another node; it is not counted as one more.
        Raises `RequestError`: RATE_LIMITED with `retry_after_s`, or QUOTA_EXCEEDED.
        """
        limits = key.limits
        use = self._use(key.id)
        use.requests.expire(now)
        use.tokens.expire(now)
        monthly = limits.monthly_tokens
        if monthly is not None and self._months.of(key.id, wall) + use.reserved >= monthly:
            raise RequestError(
                f"This API key has used its {monthly} tokens of {self._months.name};"
                " the next month begins at 00:00 UTC on its first day.",
                Fault.QUOTA_EXCEEDED,
            )
        if limits.concurrency is not None and use.running >= limits.concurrency:
            raise _limited(
                f"This API key has {use.running} requests in progress, which is its limit.",
                CONCURRENCY_RETRY_S,
            )
        if limits.rpm is not None and not again and use.requests.used + 1 > limits.rpm:
            raise _limited(
                f"This API key may make {limits.rpm} requests a minute.",
                use.requests.wait_s(1, limits.rpm, now),
            )
        if limits.tpm is not None:
            if tokens > limits.tpm:
                raise RequestError(
                    f"This request takes about {tokens} tokens; this API key may use {limits.tpm}"
                    " a minute. Make it smaller.",
                    Fault.RATE_LIMITED,
                )
            if use.tokens.used + tokens > limits.tpm:
                raise _limited(
                    f"This API key may use {limits.tpm} tokens a minute, and has used"
                    f" {use.tokens.used:.0f}; this request takes about {tokens}.",
                    use.tokens.wait_s(tokens, limits.tpm, now),
                )
        if not again:
            use.requests.add(1, now)
        use.tokens.add(tokens, now)
        use.reserved += tokens
        use.running += 1
        return Permit(use, tokens)

    def settle(self, permit: Permit, tokens: int, now: float) -> None:
        """The request is over and took `tokens` (0 if it never got to a model). Idempotent."""
        if permit.over:
            return
        permit.over = True
        use = permit.use
        use.running -= 1
        use.tokens.expire(now)
        difference = tokens - permit.reserved
        # What is given back must not make room that was never there: not more than is counted.
        use.tokens.add(max(difference, -use.tokens.used), now)
        use.reserved -= permit.reserved

    def correct(self, permit: Permit, more: int, now: float) -> None:
        """A request that is over took `more` tokens than it was settled with, or fewer."""
        use = permit.use
        use.tokens.expire(now)
        use.tokens.add(max(more, -use.tokens.used), now)

    def headers(self, key: ApiKey, now: float) -> Headers:
        """The `x-ratelimit-*` headers for a response to this key, as OpenAI sends them.

        Only those whose limit the key has.
        """
        use = self._use(key.id)
        headers: Headers = []
        for name, limit, window in (
            (b"requests", key.limits.rpm, use.requests),
            (b"tokens", key.limits.tpm, use.tokens),
        ):
            if limit is None:
                continue
            window.expire(now)
            left = max(0, math.floor(limit - window.used))
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % left),
                (b"x-ratelimit-reset-" + name, format_reset(window.reset_s(now)).encode()),
            ]
        return headers

    def _use(self, key_id: str) -> KeyUse:
        use = self._uses.get(key_id)
        if use is None:
            use = self._uses[key_id] = KeyUse()
            if len(self._uses) > MAX_KEYS:
                self._forget_one(key_id)
        else:
            self._uses.move_to_end(key_id)
        return use

    def _forget_one(self, newest: str) -> None:
        idle = (k for k, use in self._uses.items() if not use.running and k != newest)
        if (key_id := next(idle, None)) is not None:
            del self._uses[key_id]


def format_reset(seconds: float) -> str:
    """A duration as OpenAI writes it: "0s", "120ms", "1s", "8.5s", "6m0s"."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{text}" if minutes else text


def _limited(message: str, retry_after_s: float) -> RequestError:
    return RequestError(message, Fault.RATE_LIMITED, retry_after_s=max(retry_after_s, GRAIN_S))
