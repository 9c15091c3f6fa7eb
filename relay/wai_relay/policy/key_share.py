"""One key at one of several relays: what the relay holds of its limits, and what it asks for.

A key with generous limits has something to spare here, so that its requests wait for nobody: a part
of what it used in the last minute, and not less than a few requests need. At most half of a limit
is to spare at all relays together, and none of a key where that would be less than a few requests
need, or of which a relay was refused something lately: each of its requests asks then.

Pure: `now` is monotonic seconds. Who sends the asks is `relay/wai_relay/shares`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from typing import Any, Final, Protocol

from wai_api.limits import KeyLimits

from .admission import KeyUse, Permit, TokenClaim
from .grants import NOTHING, Amounts, Answer, Ask, Verdict, Wish

# To spare are so many requests, and half of what is used besides: then a load that doubles asks
# twice, and one that stays asks never. A limit that has no room for the least has nothing to spare.
FIRST_SPARE: Final = 8
LEAST_SPARE: Final = 4
SPARE_PART: Final = 2
# Requests a minute come in bursts; so many of them count as one.
BURST: Final = 5
# A relay that was not asked by a key for so long holds nothing of it.
IDLE_S: Final = 600.0
# Who got less to spare than it asked for asks again after this time, not at each request.
TOP_UP_S: Final = 1.0
# A claim that was large once is forgotten in some hundred requests.
CLAIM_DECAY: Final = 0.98
MOST_TOKENS: Final = 1 << 40  # of one claim, as the judge is told it: more than any limit


class Waiter(Protocol):
    """What a request waits with for its verdict (`asyncio.Future`)."""

    def __await__(self) -> Generator[Any, None, None]:
        """Wait. Raises the error of a request that is refused."""

    def done(self) -> bool:
        """Whether it has one, or went away."""

    def set_result(self, result: None, /) -> None:
        """It is granted."""

    def set_exception(self, exception: Exception, /) -> None:
        """It is refused."""


class SharedPermit(Permit):
    """A request of a key that has limits, at one of several relays. `asking`: what it waits with,
    None if the relay could let it in at once. `alone`: it has reserved all that was left."""

    __slots__ = ("alone", "asking", "entered", "share")

    def __init__(self, share: KeyShare) -> None:
        super().__init__(share.use)
        self.share = share
        self.asking: Waiter | None = None
        self.entered = False
        self.alone = False


class Asking:
    """A wish on its way. `claim`: what the request takes, None of one that enters. `refusals`: how
    often the judge has refused it."""

    __slots__ = ("asked_at", "claim", "permit", "refusals", "waiter", "wish")

    def __init__(
        self,
        permit: SharedPermit,
        waiter: Waiter,
        wish: Wish,
        claim: TokenClaim | None,
        asked_at: float,
    ) -> None:
        self.permit = permit
        self.waiter = waiter
        self.wish = wish
        self.claim = claim
        self.asked_at = asked_at
        self.refusals = 0


class KeyShare:
    """What one relay holds of a key's limits. At most one `Ask` is on its way at any time.

    `usable`: what its requests may use without asking; `held`: what the judge says that the relay
    has, which is more while an ask is on its way, or after a lease that was over. `spare`: what it
    last wanted to have to spare; nothing for a key whose requests all ask. `unwritten`, `written`:
    see `note_usage`.
    """

    def __init__(self, key_id: str, limits: KeyLimits, use: KeyUse) -> None:
        self.key_id = key_id
        self.limits = limits
        self.use = use
        self.usable = self.held = NOTHING
        self.spare = NOTHING
        self.unwritten = self.written = 0
        self.spent = self.acked = 0  # tokens: see `Ask`
        self.largest = 0  # claim of tokens, lately
        self.waiting: deque[Asking] = deque()
        self.used_at = -math.inf
        self.answer: Answer | None = None
        self.answered_at = 0.0
        self._asked: Ask | None = None
        self._written_when_asked = 0
        self._flying: list[Asking] = []
        self._contended_until = -math.inf
        self._ask_again_at = -math.inf

    @property
    def on_its_way(self) -> bool:
        """Whether an ask is."""
        return self._asked is not None

    @property
    def asks_always(self) -> bool:
        """Whether it has nothing to spare, so that what it does not use is given back at once."""
        return self.spare == NOTHING

    def take_limits(self, limits: KeyLimits) -> None:
        """The key has these limits now. What is held by the former ones may be used no more."""
        if limits != self.limits:
            self.limits = limits
            self.forget()

    def busy(self) -> Amounts:
        """What its requests use, of what is limited."""
        limits, use = self.limits, self.use
        return Amounts(
            0 if limits.concurrency is None else use.running,
            0 if limits.rpm is None else math.ceil(use.requests.used),
            0 if limits.tpm is None else math.ceil(use.tokens.used) + use.reserved,
            0 if limits.monthly_tokens is None else use.reserved + self.unwritten,
        )

    def can_enter(self, tokens: int) -> bool:
        """Whether one more request fits, which takes about so many `tokens` (1 at least)."""
        limits, usable, busy = self.limits, self.usable, self.busy()
        return (
            (limits.concurrency is None or busy.slots + 1 <= usable.slots)
            and (limits.rpm is None or busy.requests + 1 <= usable.requests)
            and (limits.tpm is None or busy.tokens + tokens <= usable.tokens)
            and (limits.monthly_tokens is None or busy.month + tokens <= usable.month)
        )

    def can_reserve(self, tokens: int) -> bool:
        """Whether a request in progress may take so many `tokens` more."""
        limits, usable, busy = self.limits, self.usable, self.busy()
        return (limits.tpm is None or busy.tokens + tokens <= usable.tokens) and (
            limits.monthly_tokens is None or busy.month + tokens <= usable.month
        )

    def expects(self, claim: TokenClaim) -> None:
        """A request takes `claim`: later ones will be alike."""
        self.largest = max(claim_tokens(claim), int(self.largest * CLAIM_DECAY))

    def note_usage(self, unwritten: int, written: int) -> None:
        """This relay has put `written` tokens of the month into the database's usage so far, and
        `unwritten` are to follow. What is there counts there, and not as a part of what is held."""
        if written > self.written:
            self._take_from_usable(month=written - self.written)
        self.unwritten, self.written = unwritten, written

    def charge(self, tokens: int, now: float) -> None:
        """So many tokens were used in this minute. Where there is something to spare they are a
        part of what is held for as long as they count; else they count at the judge, not here."""
        if self.limits.tpm is None or not self.asks_always:
            self.use.tokens.add(tokens, now)
        else:
            self.spent += tokens
            self._take_from_usable(tokens=tokens)

    def _take_from_usable(self, *, tokens: int = 0, month: int = 0) -> None:
        usable = self.usable
        self.usable = usable._replace(
            tokens=max(usable.tokens - tokens, 0), month=max(usable.month - month, 0)
        )

    # -- what is to spare
    def _wanted(self, relays: int, now: float) -> Amounts:
        """What to have to spare, where there are so many relays."""
        limits, busy, answer = self.limits, self.busy(), self.answer
        if now < self._contended_until or now - self.used_at > IDLE_S:
            return NOTHING
        parts = 2 * max(relays, 1)
        left = 0 if answer is None else answer.left[3] or 0  # of the month: nobody holds it
        month = None if limits.monthly_tokens is None else left + self.usable.month
        claim = max(self.largest, 1) if answer is not None else MOST_TOKENS
        wanted = Amounts(
            _spare(limits.concurrency, 1, busy.slots, parts),
            _spare(limits.rpm, BURST, busy.requests, parts),
            _spare(limits.tpm, claim, busy.tokens, parts),
            _spare(month, claim, busy.month, parts),
        )
        limited = (limits.concurrency, limits.rpm, limits.tpm, month)
        for limit, amount in zip(limited, wanted, strict=True):
            if limit is not None and not amount:
                return NOTHING  # its requests ask anyway
        return wanted

    def wants_more(self, now: float) -> bool:
        """Whether it should ask for more before it has used up what it has."""
        if self.asks_always or now < self._ask_again_at:
            return False
        busy = self.busy()
        return any(
            2 * (have - used) < want
            for have, used, want in zip(self.usable, busy, self.spare, strict=True)
        )

    def has_too_much(self, relays: int, now: float) -> bool:
        """Whether it holds more than it should, or what is used has not been told."""
        if self.spent != self.acked:
            return True
        wanted = self._wanted(relays, now)
        return any(
            have > used + want + want // 2 or used > have
            for have, used, want in zip(self.held, self.busy(), wanted, strict=True)
        )

    def contended(self, until: float) -> None:
        """Keep nothing to spare until then."""
        self._contended_until = max(self._contended_until, until)

    # -- asks and answers
    def ask(self, seq: int, relays: int, now: float) -> Ask:
        """What to tell the judge. Until its answer is there only what is kept may be used."""
        busy, limits = self.busy(), self.limits
        self.spare = spare = self._wanted(relays, now)
        self._flying = [one for one in self.waiting if not one.waiter.done()]
        self.waiting.clear()
        if self._flying:
            keep = busy  # what it has to spare of one limit may be what another relay lacks
        else:
            keep = Amounts(
                *(
                    max(used, min(have, used + want))
                    for have, used, want in zip(self.usable, busy, spare, strict=True)
                )
            )
        self.usable = keep
        self._written_when_asked = self.written
        self._asked = Ask(
            key_id=self.key_id,
            seq=seq,
            rpm=limits.rpm,
            tpm=limits.tpm,
            concurrency=limits.concurrency,
            monthly=limits.monthly_tokens,
            busy=busy,
            keep=keep,
            spare=spare,
            reserved=self.use.reserved,
            unwritten=self.unwritten if limits.monthly_tokens is not None else 0,
            spent=self.spent,
            acked=self.acked,
            wishes=tuple(one.wish for one in self._flying),
        )
        return self._asked

    def hear(self, answer: Answer, now: float) -> list[tuple[Asking, Verdict]]:
        """The judge's answer; returns what became of those that waited for it."""
        asked, flying = self._asked, self._flying
        if asked is None or answer.seq != asked.seq:
            return []
        self._asked, self._flying = None, []
        self.held = answer.held
        self.usable = answer.held if self._has_limits_of(asked) else NOTHING
        self._take_from_usable(  # what came to count elsewhere meanwhile
            tokens=self.spent - asked.spent,
            month=max(self.written - self._written_when_asked, 0),
        )
        self.acked = asked.spent
        self.answer, self.answered_at = answer, now
        if answer.contended_s > 0:
            self.contended(now + answer.contended_s)
        less = any(
            2 * (held - used) < want
            for held, used, want in zip(answer.held, asked.busy, asked.spare, strict=True)
        )
        self._ask_again_at = now + TOP_UP_S if less else now
        return list(zip(flying, answer.verdicts, strict=True))

    def _has_limits_of(self, asked: Ask) -> bool:
        limits = self.limits
        return (asked.rpm, asked.tpm, asked.concurrency, asked.monthly) == (
            *(limits.rpm, limits.tpm, limits.concurrency, limits.monthly_tokens),
        )

    def unheard(self) -> None:
        """No answer came: those that wait for it go on waiting, for the next one."""
        self._asked = None
        self.waiting.extendleft(reversed(self._flying))
        self._flying = []

    def give_up(self, asked_before: float) -> list[Asking]:
        """Take out those that have waited since before then. Not while an ask is on its way."""
        late = [one for one in self.waiting if one.asked_at <= asked_before]
        for one in late:
            self.waiting.remove(one)
        return late

    def forget(self) -> None:
        """It holds nothing any more but what is in use: others may have the rest by now."""
        self.usable = NOTHING

    @property
    def forgettable(self) -> bool:
        """Whether nothing would be lost with it."""
        return (
            self.held == NOTHING
            and not (self.use.running or self.waiting or self.on_its_way)
            and self.spent == self.acked
        )


def claim_tokens(claim: TokenClaim) -> int:
    """The most that a request takes, as the judge is told it."""
    return min(claim.most, MOST_TOKENS)


def _spare(limit: int | None, unit: int, busy: int, parts: int) -> int:
    if limit is None:
        return 0
    most = limit // parts
    return 0 if most < LEAST_SPARE * unit else min(FIRST_SPARE * unit + busy // SPARE_PART, most)
