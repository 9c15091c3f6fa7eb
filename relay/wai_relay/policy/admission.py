"""Whether a key may have another request now: its rates, its requests at once, its month's tokens.

A request is counted from its head on (`enter`): one more in progress, one more in this minute. Once
its body is known it reserves the tokens that it may take at most (`reserve`), and when it is over
it is charged with what it took (`settle`). So requests that run at the same time cannot pass a
limit together. A request whose most does not fit is let in as long as its least does and the key
has no other reservation; it reserves all that is left. That is how a key with a small limit is
served whose callers name no limit of their own, and it is the only way past a limit.

Limits are read from the key at every request, so that a change works from the next one on. The
month's tokens are counted by `months`, to which the recorder of usage adds what is over.

Pure: `now` is monotonic seconds, `wall` seconds since 1970 (for the calendar month). Who the key
is, whether it expired and which models it may use is decided before (`keys`, `gateway`); which
nodes, by `selection`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable
from typing import Final, NamedTuple

from wai_protocol.surface import Headers
from wai_relay.contracts.api_keys import ApiKey

from .limit_words import (
    month_has_too_few,
    month_is_used_up,
    never_fits_a_minute,
    no_more_tokens,
    others_have_reserved,
    takes_tokens,
    takes_too_many,
    too_many_at_once,
    too_many_requests,
    too_many_tokens,
)
from .minutes import MINUTE_S, MinuteWindow, format_reset
from .months import MonthTokens

# Keys whose counts are held. A key is made by an operator: more than this many at once is no relay
# that one process serves. The longest unused one without requests goes first.
MAX_KEYS: Final = 16_384
# The most of a request about which only its size is known: more than any limit.
UNBOUNDED: Final = 1 << 62


class TokenClaim(NamedTuple):
    """Tokens that a request may take. `prompt` is an estimate; `answer` is the caller's own limit
    for all its answers together, None if it gave none. `most` is what it can take at most, whatever
    the estimate is worth."""

    prompt: int
    answer: int | None
    most: int

    @property
    def least(self) -> int:
        """What it must have room for: its prompt, and the answer that it asks for."""
        return self.prompt + (1 if self.answer is None else self.answer)

    @property
    def words(self) -> str:
        """What it takes, as the beginning of a sentence."""
        return takes_tokens(self.prompt, self.answer, self.least)


class KeyUse:
    """What one key has used."""

    __slots__ = ("requests", "reserved", "running", "tokens")

    def __init__(self) -> None:
        self.requests = MinuteWindow()
        self.tokens = MinuteWindow()
        self.running = 0
        self.reserved = 0  # tokens that those who run may take


class Permit:
    """A request that was let in. End it with `Admission.settle`. `asking`: what is to be awaited
    first, where another judges (`shared_admission`); it raises the error of one that is refused."""

    __slots__ = ("reserved", "settled_at", "spent", "use")

    asking: Awaitable[None] | None = None

    def __init__(self, use: KeyUse) -> None:
        self.use = use
        self.reserved = 0
        self.spent = 0  # tokens that were charged before its end
        self.settled_at: float | None = None


class Admission:
    """The limits of all keys. Belongs to one loop."""

    def __init__(self, months: MonthTokens | None = None) -> None:
        self._uses: OrderedDict[str, KeyUse] = OrderedDict()
        self._months = months or MonthTokens(0.0)

    def enter(self, key: ApiKey, now: float, wall: float) -> Permit:
        """Let a request in whose head has come: it is in progress from now on.

        Raises `RequestError`: RATE_LIMITED with `retry_after_s`, or QUOTA_EXCEEDED.
        """
        limits = key.limits
        use = self._use(key.id)
        use.requests.expire(now)
        use.tokens.expire(now)
        if limits.monthly_tokens is not None:
            self._month_left(key, limits.monthly_tokens, wall)
        if limits.concurrency is not None and use.running >= limits.concurrency:
            raise too_many_at_once(use.running)
        if limits.rpm is not None and use.requests.used + 1 > limits.rpm:
            raise too_many_requests(limits.rpm, use.requests.wait_s(1, limits.rpm, now))
        if limits.tpm is not None and use.tokens.used + 1 > limits.tpm:
            wait_s = use.tokens.wait_s(1, limits.tpm, now)
            raise too_many_tokens(limits.tpm, use.tokens.used, wait_s)
        use.requests.add(1, now)
        use.running += 1
        return Permit(use)

    def reserve(
        self, permit: Permit, key: ApiKey, claim: TokenClaim, now: float, wall: float
    ) -> None:
        """Reserve what a request may take, now that its body is known. Once for each permit.

        Raises `RequestError`: RATE_LIMITED or QUOTA_EXCEEDED, with `retry_after_s` unless the
        request as it is will never fit.
        """
        limits, use = key.limits, permit.use
        room: float = math.inf
        if limits.monthly_tokens is not None:
            room = self._month_left(key, limits.monthly_tokens, wall, claim)
        if limits.tpm is not None:
            use.tokens.expire(now)
            room = min(room, _minute_left(limits.tpm, use.tokens, claim, now))
        if room == math.inf or not claim.most:
            return
        if use.reserved + claim.most <= room:
            permit.reserved = claim.most
        elif not use.reserved:
            permit.reserved = math.floor(room)
        else:
            raise others_have_reserved(use.reserved, room)
        use.reserved += permit.reserved

    def spend(self, permit: Permit, key: ApiKey, tokens: int, now: float, wall: float) -> None:
        """A request that may go on for hours has taken `tokens` more. Raises as `enter` does where
        the key has no tokens left for more of it."""
        limits, use = key.limits, permit.use
        use.tokens.expire(now)
        use.tokens.add(tokens, now)
        permit.spent += tokens
        if limits.monthly_tokens is not None:
            self._month_left(key, limits.monthly_tokens, wall, spent=permit.spent)
        if limits.tpm is not None and use.tokens.used >= limits.tpm:
            raise no_more_tokens(limits.tpm, use.tokens.wait_s(1, limits.tpm, now))

    def settle(self, permit: Permit, tokens: int, now: float) -> None:
        """The request is over and took `tokens` (0 if it never got to a model). Idempotent."""
        if permit.settled_at is not None:
            return
        permit.settled_at = now
        use = permit.use
        use.running -= 1
        use.reserved -= permit.reserved
        use.tokens.expire(now)
        if tokens > permit.spent:
            use.tokens.add(tokens - permit.spent, now)

    def correct(self, permit: Permit, more: int, now: float) -> None:
        """A request took `more` tokens than it was settled with, or fewer. One that is not settled
        yet is settled with the right number."""
        if permit.settled_at is None:
            return
        tokens = permit.use.tokens
        tokens.expire(now)
        if more > 0:
            tokens.add(more, now)
        else:
            tokens.take_back(-more, permit.settled_at)

    def _month_left(
        self,
        key: ApiKey,
        limit: int,
        wall: float,
        claim: TokenClaim | None = None,
        *,
        spent: int = 0,
    ) -> int:
        """What `key` has left of its month, requests in progress aside, but for `spent`. Raises
        QUOTA_EXCEEDED where that is nothing, or less than `claim` needs."""
        left = limit - self._months.of(key.id, wall) - spent
        if left <= 0:
            raise month_is_used_up(limit, self._months.name(wall), self._months.left_s(wall))
        if claim is not None and claim.least > left:
            raise month_has_too_few(
                *(claim.words, limit, left, self._months.name(wall), self._months.left_s(wall)),
                ever=claim.least <= limit,
            )
        return left

    def headers(self, key: ApiKey, now: float) -> Headers:
        """The `x-ratelimit-*` headers for a response to this key, as OpenAI sends them.

        Only those whose limit the key has.
        """
        headers: Headers = []
        if key.limits.rpm is None and key.limits.tpm is None:
            return headers
        use = self._use(key.id)
        for name, limit, window, reserved in (
            (b"requests", key.limits.rpm, use.requests, 0),
            (b"tokens", key.limits.tpm, use.tokens, use.reserved),
        ):
            if limit is None:
                continue
            window.expire(now)
            left = max(0, math.floor(limit - window.used - reserved))
            reset_s = MINUTE_S if reserved else window.reset_s(now)
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % left),
                (b"x-ratelimit-reset-" + name, format_reset(reset_s).encode()),
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


def _minute_left(limit: int, tokens: MinuteWindow, claim: TokenClaim, now: float) -> float:
    """What is left of the last sixty seconds, requests in progress aside. Raises RATE_LIMITED where
    that is less than `claim` needs."""
    if claim.least > limit:
        raise never_fits_a_minute(claim.words, limit)
    if tokens.used + claim.least > limit:
        wait_s = tokens.wait_s(claim.least, limit, now)
        raise takes_too_many(claim.words, limit, tokens.used, wait_s)
    return limit - tokens.used
