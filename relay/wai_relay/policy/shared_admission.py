"""Whether a key may have another request now, where several relays serve its callers.

The same verbs as `Admission`, and the same answers, but the judge of what is left is the database.
A key without limits is let in here and now. One of which this relay holds enough (`key_share`) is
too. Any other request gets a permit with a `Waiter`, which the gateway awaits: the judge is asked
for all that the relay's requests wait for at once, in one message (`asks`, `hear`).

A request that enters asks for its slot, for itself, and for as many tokens as the key's last
requests took, so that it need not ask again when its body is there. When it is over, what it took
is charged at the judge (a key that asks always) or to this relay's share.

What the relay holds is good until `lease_until`: renewed by each reply. While the database is known
to be down for everybody (`database_down`) it stays good: nobody can take it.

Pure: `now` is monotonic seconds, `wall` seconds since 1970.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Final

from wai_api.limits import KeyLimits
from wai_protocol.errors import Fault, RequestError, WaiError
from wai_protocol.surface import Headers
from wai_relay.contracts.api_keys import ApiKey

from .admission import Admission, Permit, TokenClaim
from .grants import BEAT_S, LEASE_S, Ask, Reply, Verdict, Wish
from .key_share import Asking, KeyShare, SharedPermit, Waiter, claim_tokens
from .limit_words import (
    month_has_too_few,
    month_is_used_up,
    never_fits_a_minute,
    no_more_tokens,
    others_have_reserved,
    takes_too_many,
    too_many_at_once,
    too_many_requests,
    too_many_tokens,
)
from .minutes import MINUTE_S, format_reset
from .months import MonthTokens

# A request waits no longer than this for a verdict: an answer takes milliseconds.
MAX_WAIT_S: Final = 2.0
AWAY_RETRY_S: Final = 2.0  # a database that restarts, or another that takes over, needs seconds
# A caller that asks another relay as soon as it has an answer from one is ahead of the message that
# says so. So what other requests hold is asked for again, at once: an answer later that message has
# come, or two later where the other relay had another one on its way.
MAX_SECOND_THOUGHTS: Final = 2
_ENDS_ANY_MOMENT: Final = frozenset({"slots", "reserved"})
# Requests that may wait for a verdict; more come while the database hangs.
MAX_WAITING: Final = 10_000
# Keys in one message. Each takes about half a millisecond, while which others wait.
MAX_ASKS: Final = 64
# Keys that are looked at in each beat: three milliseconds, in which no token is passed on.
MAX_LOOKED_AT: Final = 300


class SharedAdmission(Admission):
    """The limits of all keys at one of several relays. Belongs to one loop.

    `new_waiter`: makes what a request waits with. `wake`: called when there is something to ask.
    `usage`: returns the tokens of this month that a key took here: those that are not in the
    database's usage yet, and those that are. Somebody else sends `asks` and gives the replies to
    `hear`.
    """

    def __init__(
        self,
        new_waiter: Callable[[], Waiter],
        *,
        months: MonthTokens | None = None,
        usage: Callable[[str], tuple[int, int]] = lambda key_id: (0, 0),
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(months)
        self._new_waiter = new_waiter
        self._usage = usage
        self.wake = wake
        self.relays = 1
        self.lease_until = -math.inf
        self.database_down = False
        self.granted_here = 0
        """Requests of keys with limits that waited for nobody."""
        self.granted_there = 0
        self.refused_there = 0
        self.unanswered = 0
        """Requests that were refused since no verdict came."""
        self.waiting = 0
        self._shares: OrderedDict[str, KeyShare] = OrderedDict()
        self._due: dict[str, KeyShare] = {}
        self._seq = 0

    # -- the gateway's verbs
    def enter(self, key: ApiKey, now: float, wall: float) -> Permit:
        """Let a request in whose head has come, or have it wait. See `Admission.enter`."""
        limits = key.limits
        if not _is_limited(limits):
            return super().enter(key, now, wall)
        share = self._share(key)
        self._expire(share, now)
        share.used_at = now
        permit = SharedPermit(share)
        expected = max(share.largest, 1) if _limits_tokens(limits) else 0
        if (
            share.limits == limits
            and not share.waiting
            and self._is_good(now)
            and share.can_enter(expected)
        ):
            permit.use.requests.add(1, now)
            permit.use.running += 1
            permit.entered = True
            self.granted_here += 1
            if share.wants_more(now):
                self._ask_for(share)
            return permit
        share.take_limits(limits)
        most = share.largest if _limits_tokens(limits) else 0
        self._ask(permit, Wish(enters=True, least=min(most, 1), most=most), None, now)
        return permit

    def limits_changed(self, key: ApiKey, now: float) -> None:
        """A key has other limits now. What its requests use here is told to the judge, who may not
        know it: it was not limited until now."""
        if not _is_limited(key.limits) or key.id not in self._uses:
            return
        share = self._share(key)
        share.take_limits(key.limits)
        self._expire(share, now)
        self._ask_for(share)

    def reserve(
        self, permit: Permit, key: ApiKey, claim: TokenClaim, now: float, wall: float
    ) -> None:
        """Reserve what a request may take, or have it wait. See `Admission.reserve`."""
        if not isinstance(permit, SharedPermit):
            super().reserve(permit, key, claim, now, wall)
            return
        share, use, limits = permit.share, permit.use, key.limits
        permit.asking = None
        before, permit.reserved = permit.reserved, 0
        use.reserved -= before  # as others were; what it takes itself is known now
        if not _limits_tokens(limits) or not claim.most:
            self._give_back(share)
            return
        self._check_that_it_ever_fits(claim, limits, wall)
        share.expects(claim)
        self._expire(share, now)
        most = claim_tokens(claim)
        if permit.alone and claim.least <= before:
            most = min(most, before)
        if most <= before or (self._is_good(now) and share.can_reserve(most)):
            permit.reserved = most
            use.reserved += most
            if most < before:
                self._give_back(share)
            elif share.wants_more(now):
                self._ask_for(share)
            return
        self._ask(permit, Wish(enters=False, least=claim.least, most=most), claim, now)

    def spend(self, permit: Permit, key: ApiKey, tokens: int, now: float, wall: float) -> None:
        """A conversation has taken `tokens` more. Raises where the key has none left, as far as the
        last answer of the judge says. See `Admission.spend`."""
        if not isinstance(permit, SharedPermit):
            super().spend(permit, key, tokens, now, wall)
            return
        share, limits = permit.share, key.limits
        self._expire(share, now)
        permit.spent += tokens
        share.charge(tokens, now)
        self._ask_for(share)
        if (answer := share.answer) is None:
            return
        busy, left = share.busy(), answer.left
        more = share.spent - share.acked
        if limits.monthly_tokens is not None and left[3] is not None:
            own = max(share.usable.month - busy.month, 0)
            if left[3] + own - permit.spent <= 0:
                name, left_s = self._months.name(wall), self._months.left_s(wall)
                raise month_is_used_up(limits.monthly_tokens, name, left_s)
        if limits.tpm is not None and left[2] is not None:
            own = share.usable.tokens - busy.tokens
            if left[2] + own - more <= 0:
                raise no_more_tokens(limits.tpm, max(answer.reset_s, BEAT_S))

    def settle(self, permit: Permit, tokens: int, now: float) -> None:
        """The request is over, or went away while it waited. See `Admission.settle`."""
        if not isinstance(permit, SharedPermit):
            super().settle(permit, tokens, now)
            return
        if permit.settled_at is not None:
            return
        permit.settled_at = now
        share, use = permit.share, permit.use
        use.reserved -= permit.reserved
        if permit.entered:
            use.running -= 1
        if tokens > permit.spent:
            self._expire(share, now)
            share.charge(tokens - permit.spent, now)
        self._give_back(share)

    def correct(self, permit: Permit, more: int, now: float) -> None:
        """See `Admission.correct`. What was charged at the judge is not taken back: it counts for a
        minute, and so it makes no room that was never there."""
        if not isinstance(permit, SharedPermit):
            super().correct(permit, more, now)
        elif permit.settled_at is not None:
            share = permit.share
            self._expire(share, now)
            if more > 0:
                share.charge(more, now)
            elif not share.asks_always:
                permit.use.tokens.take_back(-more, permit.settled_at)
            self._give_back(share)

    def headers(self, key: ApiKey, now: float) -> Headers:
        """The `x-ratelimit-*` headers, as far as this relay knows. See `Admission.headers`."""
        share = self._shares.get(key.id)
        if share is None or (answer := share.answer) is None:
            return super().headers(key, now)
        self._expire(share, now)
        busy, used, limits = share.busy(), share.use, key.limits
        since_s = now - share.answered_at
        headers: Headers = []
        for name, limit, index, window, own, reserved in (
            (b"requests", limits.rpm, 1, used.requests, share.usable.requests - busy.requests, 0),
            (
                b"tokens",
                limits.tpm,
                2,
                used.tokens,
                share.usable.tokens - busy.tokens,
                used.reserved,
            ),
        ):
            left = answer.left[index]
            if limit is None or left is None:
                continue
            remaining = min(max(0, left + max(own, 0)), limit)
            reset_s = max(window.reset_s(now), answer.reset_s - since_s, 0.0)
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % remaining),
                (
                    b"x-ratelimit-reset-" + name,
                    format_reset(MINUTE_S if reserved else reset_s).encode(),
                ),
            ]
        return headers

    # -- what is asked, and what comes of it
    @property
    def has_something_to_ask(self) -> bool:
        """Whether `asks` would return anything."""
        return bool(self._due)

    def beat(self, now: float) -> None:
        """Look at some of the keys: give back what is held in vain."""
        for key_id in list(islice(self._shares, MAX_LOOKED_AT)):
            share = self._shares[key_id]
            self._shares.move_to_end(key_id)
            self._expire(share, now)
            if share.forgettable and key_id not in self._due:
                del self._shares[key_id]
            elif share.has_too_much(self.relays, now):
                self._due[key_id] = share

    def asks(self, now: float) -> list[Ask]:
        """What to send. A reply is to be given to `hear`, and its absence to `unheard`, before this
        is called again."""
        if not self._is_good(now):
            for share in self._shares.values():
                share.forget()
        asks = []
        for key_id in list(islice(self._due, MAX_ASKS)):
            share = self._due.pop(key_id)
            self._expire(share, now)
            self._seq += 1
            before = len(share.waiting)
            asks.append(ask := share.ask(self._seq, self.relays, now))
            self.waiting -= before - len(ask.wishes)  # those that went away meanwhile
        return asks

    def hear(self, asked: list[Ask], reply: Reply, sent_at: float, now: float, wall: float) -> None:
        """The reply to `asked`, which was sent at `sent_at`."""
        self.relays = reply.relays
        self.lease_until = sent_at + LEASE_S
        self.database_down = False
        answers = {answer.key_id: answer for answer in reply.answers}
        if reply.lost:
            for one in self._shares.values():
                one.forget()
                if one.key_id not in answers:
                    self._due[one.key_id] = one  # to tell what is in use
        for ask in asked:
            if (share := self._shares.get(ask.key_id)) is None:
                continue
            if (answer := answers.get(ask.key_id)) is None:
                share.unheard()
                self._due[ask.key_id] = share
                continue
            self._expire(share, now)
            for asking, verdict in share.hear(answer, now):
                self._judge(asking, verdict, wall)
            if share.waiting:
                self._due[ask.key_id] = share
        for key_id, seconds in reply.contended:
            if (share := self._shares.get(key_id)) is not None:
                share.contended(now + seconds)
                if share.has_too_much(self.relays, now) and not share.on_its_way:
                    self._due[key_id] = share

    def unheard(self, asked: list[Ask]) -> None:
        """No reply came to `asked`: whether it was heard is not known. All of it is said again."""
        for ask in asked:
            if (share := self._shares.get(ask.key_id)) is not None:
                share.unheard()
                self._due[ask.key_id] = share

    def keep_nothing(self) -> None:
        """This relay ends: all that is not in use is to be given back."""
        for share in self._shares.values():
            share.contended(math.inf)
            self._due[share.key_id] = share

    def give_up(self, now: float, *, everything: bool = False) -> None:
        """Refuse those that have waited for too long, or `everything` that waits."""
        for share in list(self._due.values()):
            for asking in share.give_up(math.inf if everything else now - MAX_WAIT_S):
                self.waiting -= 1
                if not asking.waiter.done():
                    self.unanswered += 1
                    asking.waiter.set_exception(database_is_away())

    def _judge(self, asking: Asking, verdict: Verdict, wall: float) -> None:
        self.waiting -= 1
        permit, waiter, share = asking.permit, asking.waiter, asking.permit.share
        if waiter.done() or permit.settled_at is not None:
            self._due[share.key_id] = share  # it went away; what it got is free again
            return
        if verdict.reason in _ENDS_ANY_MOMENT and asking.refusals < MAX_SECOND_THOUGHTS:
            asking.refusals += 1
            self.waiting += 1
            share.waiting.append(asking)
            return
        if verdict.reason:
            self.refused_there += 1
            waiter.set_exception(self._refusal(share.limits, asking, verdict, wall))
            return
        self.granted_there += 1
        if asking.wish.enters:
            permit.entered = True
            permit.use.running += 1
        permit.reserved += verdict.tokens
        permit.use.reserved += verdict.tokens
        permit.alone = verdict.alone
        waiter.set_result(None)

    def _refusal(
        self, limits: KeyLimits, asking: Asking, verdict: Verdict, wall: float
    ) -> WaiError:
        wait_s, figure, claim = verdict.wait_s or 0.0, verdict.figure or 0, asking.claim
        month, left_s = self._months.name(wall), verdict.wait_s or self._months.left_s(wall)
        match verdict.reason:
            case "month":
                limit = limits.monthly_tokens or 0
                if claim is None or figure <= 0:
                    return month_is_used_up(limit, month, left_s)
                return month_has_too_few(claim.words, limit, figure, month, left_s, ever=True)
            case "slots":
                return too_many_at_once(figure)
            case "requests":
                return too_many_requests(limits.rpm or 0, wait_s)
            case "tokens" if claim is not None:
                return takes_too_many(claim.words, limits.tpm or 0, figure, wait_s)
            case "tokens":
                return too_many_tokens(limits.tpm or 0, figure, wait_s)
            case _:
                return others_have_reserved(None, figure)

    # -- inside
    def _is_good(self, now: float) -> bool:
        return now < self.lease_until or self.database_down

    def _share(self, key: ApiKey) -> KeyShare:
        share = self._shares.get(key.id)
        if share is None:
            share = self._shares[key.id] = KeyShare(key.id, key.limits, self._use(key.id))
        return share

    def _expire(self, share: KeyShare, now: float) -> None:
        share.use.requests.expire(now)
        share.use.tokens.expire(now)
        if share.limits.monthly_tokens is not None:
            share.note_usage(*self._usage(share.key_id))

    def _ask(self, permit: SharedPermit, wish: Wish, claim: TokenClaim | None, now: float) -> None:
        if self.waiting >= MAX_WAITING:
            self.unanswered += 1
            raise database_is_away()
        permit.asking = waiter = self._new_waiter()
        self.waiting += 1
        permit.share.waiting.append(Asking(permit, waiter, wish, claim, now))
        self._ask_for(permit.share)

    def _give_back(self, share: KeyShare) -> None:
        """Tell the judge at once what is not used any more, if others may wait for it."""
        if share.asks_always:
            self._ask_for(share)

    def _ask_for(self, share: KeyShare) -> None:
        self._due[share.key_id] = share
        self.wake()

    def _check_that_it_ever_fits(self, claim: TokenClaim, limits: KeyLimits, wall: float) -> None:
        if limits.monthly_tokens is not None and claim.least > limits.monthly_tokens:
            month, left_s = self._months.name(wall), self._months.left_s(wall)
            raise month_has_too_few(
                *(claim.words, limits.monthly_tokens, limits.monthly_tokens, month, left_s),
                ever=False,
            )
        if limits.tpm is not None and claim.least > limits.tpm:
            raise never_fits_a_minute(claim.words, limits.tpm)


def database_is_away() -> RequestError:
    """The error of a request that needs the judge, which does not answer."""
    return RequestError(
        "This API key has a limit that all relays keep together, and the database in which they"
        " keep it does not answer. Try again in some seconds.",
        Fault.OVERLOADED,
        retry_after_s=AWAY_RETRY_S,
    )


def _is_limited(limits: KeyLimits) -> bool:
    return (
        limits.rpm is not None
        or limits.concurrency is not None
        or limits.tpm is not None
        or limits.monthly_tokens is not None
    )


def _limits_tokens(limits: KeyLimits) -> bool:
    return limits.tpm is not None or limits.monthly_tokens is not None
