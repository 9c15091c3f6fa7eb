"""What a relay and the judge of all relays' limits say to each other about a key.

A relay says absolute figures: what it uses, what it keeps to spare, what it would like to have to
spare, and the requests that wait for a verdict. So a message that is lost or sent twice changes
nothing, and one that is overtaken by a newer one (`seq`) is ignored. The judge is the function
`limit_exchange` in PostgreSQL (`storage/migrations/0009_limit_grants.postgres.sql`); these structs
are its JSON. Amounts are whole numbers: slots, requests and tokens a minute, tokens of the month.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Struct

# The figures that `limit_renew` has too. A relay that said nothing for so long must not use what
# it holds any more, unless nobody can have taken it.
LEASE_S: Final = 12.0
# How often a relay renews its lease: three may fail before it is over.
BEAT_S: Final = 3.0


class Amounts(NamedTuple):
    """How much of each limit: requests at once, requests a minute, tokens a minute, tokens of the
    month."""

    slots: int = 0
    requests: int = 0
    tokens: int = 0
    month: int = 0


NOTHING: Final = Amounts()


class Wish(NamedTuple):
    """A request that waits for a verdict. `enters`: its head has come, so it needs a slot and
    counts as a request; else it is in progress and reserves tokens. `least`, `most`: the tokens
    that it may take; 0 of an entering one means that nobody knows yet."""

    enters: bool
    least: int
    most: int


class Ask(Struct, frozen=True):
    """What a relay says of a key, and what it asks for.

    `rpm` to `monthly`: the key's limits, None: none. `busy`: what its requests use now; that counts
    whatever the judge thinks. `keep`: with what it has to spare and keeps, while it waits for the
    answer too. `spare`: what it would like to have beyond what is used. `reserved`: tokens that its
    requests in progress may take; `unwritten`: tokens of this month that are used and not in the
    database's usage yet. `spent`: all tokens that it has charged to the minute outside of its
    share, since it knows the key; `acked`: so many of them are in an answer that it has.
    """

    key_id: str
    seq: int
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    monthly: int | None
    busy: Amounts
    keep: Amounts
    spare: Amounts
    reserved: int
    unwritten: int
    spent: int
    acked: int
    wishes: tuple[Wish, ...] = ()


class Verdict(NamedTuple):
    """What became of a wish. `reason`: "" if it is granted, else "month", "slots", "requests",
    "tokens" or "reserved". `tokens`: so many are reserved for it; `alone`: that was all that was
    left, since nobody else has a reservation. `wait_s`: after so long it may be granted, None where
    nobody knows. `figure`: the amount that the refusal names."""

    reason: str = ""
    tokens: int = 0
    alone: bool = False
    wait_s: float | None = None
    figure: int | None = None


class Answer(Struct, frozen=True):
    """The judge's answer to an `Ask`. `held`: what the relay holds from now on. `left`: what nobody
    holds, None where there is no limit. `reset_s`: until nothing that was used outside of shares
    counts any more. `contended_s`: so long nobody gets or keeps anything to spare."""

    key_id: str
    seq: int
    held: Amounts
    left: tuple[int | None, int | None, int | None, int | None]
    reset_s: float
    contended_s: float
    verdicts: tuple[Verdict, ...]


class Reply(Struct, frozen=True):
    """The answers to several asks. An ask that was overtaken has none. `lost`: the relay's lease
    was over, so that others may have what it held. `relays`: how many there are. `contended`: keys
    of which it holds something and nobody should keep any to spare, with the seconds that this
    lasts."""

    lost: bool
    relays: int
    contended: tuple[tuple[str, float], ...]
    answers: tuple[Answer, ...]
