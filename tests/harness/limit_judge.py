"""A model of `limit_exchange` in plain Python, told the time: the rules without a database.

`tests/relay/shares/test_judge.py` holds the function in PostgreSQL against it, answer by answer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from wai_relay.policy.grants import Amounts, Answer, Ask, Reply, Verdict
from wai_relay.policy.months import month_of

LEASE_S = 12.0
GAP_S = 6.0
GRACE_S = 2.0
MINUTE_S = 60.0
CONTENDED_S = 60.0


@dataclass
class Row:
    """A row of `limit_shares`."""

    seq: int
    held: Amounts
    reserved: int
    unwritten: int
    spent: int


class LimitJudge:
    """Holds what the tables hold. `stored`: tokens of the month in the database's usage, by key."""

    def __init__(self) -> None:
        self.holders: dict[str, float] = {}
        self.rows: dict[str, dict[str, Row]] = defaultdict(dict)
        self.uses: dict[str, dict[float, list[int]]] = defaultdict(dict)
        self.contended: dict[str, float] = {}
        self.stored: dict[str, int] = defaultdict(int)

    def exchange(self, me: str, asks: Sequence[Ask], now: float, *, beat: bool = False) -> Reply:
        lost = self._renew(me, now)
        answers = [self._answer(me, ask, now) for ask in sorted(asks, key=lambda ask: ask.key_id)]
        told = tuple(
            (key, until - now)
            for key, until in self.contended.items()
            if beat and until > now and me in self.rows[key]
        )
        relays = sum(until > now for until in self.holders.values())
        return Reply(lost, relays, told, tuple(one for one in answers if one is not None))

    def total(self, key_id: str, now: float) -> Amounts:
        """What all relays hold and have used: never more than the limits."""
        self._bury(key_id, "", now)
        held = [row.held for row in self.rows[key_id].values()]
        uses = [use for until, use in self.uses[key_id].items() if until > now]
        sums = [sum(one) for one in zip(*held, strict=True)] or [0, 0, 0, 0]
        return Amounts(
            sums[0],
            sums[1] + sum(use[0] for use in uses),
            sums[2] + sum(use[1] for use in uses),
            sums[3] + self.stored[key_id],
        )

    def _renew(self, me: str, now: float) -> bool:
        if self.holders:
            heard = max(self.holders.values()) - LEASE_S
            if now - heard > GAP_S:
                for holder, until in self.holders.items():
                    if until > heard:
                        self.holders[holder] = now + LEASE_S
        alive = self.holders.get(me, -math.inf) > now
        self.holders[me] = max(now + LEASE_S, self.holders.get(me, 0.0))
        return not alive

    def _bury(self, key_id: str, me: str, now: float) -> None:
        for holder, row in list(self.rows[key_id].items()):
            dead_s = now - self.holders.get(holder, -math.inf) - GRACE_S
            if holder == me or dead_s < 0:
                continue
            row.held = Amounts(0, row.held.requests, row.held.tokens, 0)
            row.reserved = row.unwritten = 0
            if dead_s >= MINUTE_S:
                del self.rows[key_id][holder]

    def _answer(self, me: str, ask: Ask, now: float) -> Answer | None:
        rows = self.rows[ask.key_id]
        mine = rows.get(me)
        if mine is not None and mine.seq >= ask.seq:
            return None
        self._bury(ask.key_id, me, now)
        uses = self.uses[ask.key_id]
        for until in [until for until in uses if until <= now]:
            del uses[until]
        return _Judging(self, me, ask, now, mine).answer()


class _Judging:
    """One ask."""

    def __init__(self, judge: LimitJudge, me: str, ask: Ask, now: float, mine: Row | None) -> None:
        self.judge, self.me, self.ask, self.now = judge, me, ask, now
        rows = judge.rows[ask.key_id]
        others = [row for holder, row in rows.items() if holder != me]
        sums = [sum(row.held[kind] for row in others) for kind in range(4)]
        self.others = Amounts(*sums)
        self.others_reserved = sum(row.reserved for row in others)
        self.unwritten = ask.unwritten + sum(row.unwritten for row in others)
        uses = judge.uses[ask.key_id].values()
        self.used_requests = sum(use[0] for use in uses)
        self.used_tokens = sum(use[1] for use in uses)
        self.stored = judge.stored[ask.key_id] if ask.monthly is not None else 0
        before = ask.acked if mine is None else mine.spent
        self.new_requests = 0
        self.new_tokens = max(ask.spent - before, 0) if ask.tpm is not None else 0
        self.used_tokens += self.new_tokens
        had = mine.held if mine is not None else Amounts()
        self.held = [
            max(busy, min(keep, have))
            for busy, keep, have in zip(ask.busy, ask.keep, had, strict=True)
        ]
        self.base = list(ask.busy)
        self.reserved = ask.reserved
        self.contest = False

    def _over(self, kind: int, more: int) -> int:
        """By how much a limit is passed with `more`; 0 if it is not, or if there is no limit."""
        left = self._left()[kind]
        return 0 if left is None else max(more - left, 0)

    def _left(self) -> tuple[int | None, int | None, int | None, int | None]:
        ask, held, others = self.ask, self.held, self.others

        def left(limit: int | None, kind: int, used: int) -> int | None:
            return None if limit is None else limit - held[kind] - others[kind] - used

        return (
            left(ask.concurrency, 0, 0),
            left(ask.rpm, 1, self.used_requests),
            left(ask.tpm, 2, self.used_tokens),
            left(ask.monthly, 3, self.stored),
        )

    def _wait_s(self, over: int, index: int, held: int) -> float:
        freed = 0
        for until, use in sorted(self.judge.uses[self.ask.key_id].items()):
            freed += use[index]
            if freed >= over:
                return until - self.now
        return 3.0 if held > 0 else 60.0

    def _month_is_over_s(self) -> float:
        return month_of(self.now)[1] - self.now

    def _enter(self) -> Verdict:
        ask = self.ask
        if ask.monthly is not None and self.stored + self.unwritten >= ask.monthly:
            left = ask.monthly - self.stored - self.unwritten
            return Verdict("month", wait_s=self._month_is_over_s(), figure=left)
        if self._over(0, 1):
            self.contest |= self.others.slots > 0
            return Verdict("slots", figure=self.held[0] + self.others.slots)
        if over := self._over(1, 1):
            self.contest |= self.others.requests > 0
            held = self.held[1] + self.others.requests
            return Verdict("requests", wait_s=self._wait_s(over, 0, held))
        if ask.tpm is not None and self.used_tokens + 1 > ask.tpm:
            wait_s = self._wait_s(self.used_tokens + 1 - ask.tpm, 1, self.others.tokens)
            return Verdict("tokens", wait_s=wait_s, figure=self.used_tokens)
        if ask.concurrency is not None:
            self.held[0] += 1
            self.base[0] += 1
        if ask.rpm is not None:
            self.used_requests += 1
            self.new_requests += 1
        return Verdict()

    def _take(self, least: int, most: int, *, enters: bool) -> Verdict:
        ask = self.ask
        room = min(left for left in self._left()[2:] if left is not None)
        verdict = Verdict()
        if most <= room:
            verdict = Verdict(tokens=most)
        elif self.reserved + self.others_reserved == 0 and room > 0 and least <= room:
            verdict = Verdict(tokens=room, alone=True)
        elif not enters:
            month = ask.monthly and ask.monthly - self.stored - self.unwritten
            if month is not None and least > month:
                return Verdict("month", wait_s=self._month_is_over_s(), figure=month)
            if ask.tpm is not None and self.used_tokens + least > ask.tpm:
                over = self.used_tokens + least - ask.tpm
                wait_s = self._wait_s(over, 1, self.others.tokens)
                return Verdict("tokens", wait_s=wait_s, figure=self.used_tokens)
            self.contest |= self.others.tokens > 0 or self.others.month > 0
            return Verdict("reserved", figure=max(room, 0))
        for kind, limit in ((2, ask.tpm), (3, ask.monthly)):
            if limit is not None:
                self.held[kind] += verdict.tokens
                self.base[kind] += verdict.tokens
        self.reserved += verdict.tokens
        return verdict

    def answer(self) -> Answer:
        ask, now, judge = self.ask, self.now, self.judge
        verdicts = []
        for wish in ask.wishes:
            verdict = self._enter() if wish.enters else Verdict()
            if not verdict.reason and wish.most > 0:
                verdict = self._take(wish.least, wish.most, enters=wish.enters)
            verdicts.append(verdict)
        contended = judge.contended.get(ask.key_id, 0.0)
        if self.contest and contended < now + CONTENDED_S / 2:
            contended = judge.contended[ask.key_id] = now + CONTENDED_S
        if contended <= now:
            for kind, left in enumerate(self._left()):
                more = self.base[kind] + ask.spare[kind] - self.held[kind]
                if left is not None:
                    more = min(more, int(left / 2))
                self.held[kind] += max(more, 0)
        row = Row(ask.seq, Amounts(*self.held), self.reserved, ask.unwritten, ask.spent)
        judge.rows[ask.key_id][self.me] = row
        uses = judge.uses[ask.key_id]
        if self.new_requests or self.new_tokens:
            use = uses.setdefault(math.ceil(now * 10) / 10 + MINUTE_S, [0, 0])
            use[0] += self.new_requests
            use[1] += self.new_tokens
        return Answer(
            key_id=ask.key_id,
            seq=ask.seq,
            held=Amounts(*self.held),
            left=self._left(),
            reset_s=max((until - now for until in uses), default=0.0),
            contended_s=max(contended - now, 0.0),
            verdicts=tuple(verdicts),
        )


def without_times(reply: Reply) -> Reply:
    """`reply` with its seconds in tenths, in the order of the keys: two clocks' floats differ."""
    return Reply(
        reply.lost,
        reply.relays,
        tuple(sorted((key, round(seconds, 1)) for key, seconds in reply.contended)),
        tuple(
            Answer(
                **{
                    **{name: getattr(answer, name) for name in Answer.__struct_fields__},
                    "reset_s": round(answer.reset_s, 1),
                    "contended_s": round(answer.contended_s, 1),
                    "verdicts": tuple(
                        one._replace(wait_s=None if one.wait_s is None else round(one.wait_s, 1))
                        for one in answer.verdicts
                    ),
                }
            )
            for answer in sorted(reply.answers, key=lambda answer: answer.key_id)
        ),
    )
