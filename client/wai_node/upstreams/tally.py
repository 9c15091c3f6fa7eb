"""What requests that were given up cost, found out from what a llama-server counted in all.

When a caller goes away its socket is closed at once, and the server says no more of that request;
but it goes on counting. Its `/metrics` hold the sums of all requests: prompt tokens as prompts are
read, written ones when a slot is let go (seen with b10434). So what is missing between two
readings, the answers that ended by themselves aside, is what those cost that were given up.

A reading counts only when it is of one moment for both of us: no stream of ours began or ended
around it, and as many requests are at work there as we have open. What others asked of the server
meanwhile would look like ours; where that shows, or a sum can't be, nothing is told, and the
relay's estimate stands. Pure: `now` is monotonic seconds. Fed by the board, from regular polls.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

# A server that reads a long prompt, or that answers whole, sees only afterwards that its caller has
# gone; and a reading has to wait for a moment in which nothing else begins or ends.
FOLLOW_S: Final = 30.0
# Given up at a time and not yet found out: more than any server has slots.
MAX_LEFT: Final = 256
# A server may say its first token before it counts the prompt; with the second it has counted.
COUNTED_FROM: Final = 2
# An answer went on from its last piece until its slot was free. What it can have written by then is
# only roughly known (its first tokens say little of its speed, and a busy machine reads late); far
# more than that was somebody else's.
SPEED_MARGIN: Final = 4.0
SLACK_S: Final = 1.0
SLACK_TOKENS: Final = 64


class Counters(NamedTuple):
    """One reading: `read` prompt tokens, `cached` ones that needed no reading, `written` ones, each
    since `server` (one run of it) began. `at_work`: requests that it has, waiting ones too."""

    server: str
    read: int
    cached: int
    written: int
    at_work: int


class TokensSpent(NamedTuple):
    """The tokens of one request, in the same words; None where that is not known. `written_tps`:
    how fast it wrote."""

    read: int | None = None
    cached: int | None = None
    written: int | None = None
    written_tps: float | None = None


NOTHING: Final = TokensSpent(0, 0, 0)
UNKNOWN: Final = TokensSpent()


class OpenStream(Protocol):
    """A stream of ours at the server."""

    def spent(self) -> TokensSpent:
        """What its answer has told of itself so far."""


class Report(Protocol):
    """Who hears what a request cost that was given up."""

    def __call__(self, spent: TokensSpent, *, exact: bool) -> None:
        """It took so much. `exact`: it is no share of what several took together."""


class Look(NamedTuple):
    """The moment before a reading is asked for."""

    moves: int
    read: int | None
    cached: int | None


class _Left(NamedTuple):
    seen: TokensSpent
    at: float
    report: Report


class _Base(NamedTuple):
    """What the server would have counted so far without the streams that are open or were given up.
    None: something was counted of which nobody knows how much."""

    read: int | None
    cached: int | None
    written: int | None

    def with_spent(self, spent: TokensSpent) -> _Base:
        """The same once a stream is over that took `spent`."""
        return _Base(
            _sum(self.read, spent.read),
            _sum(self.cached, spent.cached),
            _sum(self.written, spent.written),
        )


class Tally:
    """One server's sums. Belongs to one loop."""

    def __init__(self) -> None:
        self._open: dict[OpenStream, None] = {}
        self._left: list[_Left] = []
        self._moves = 0
        self._server = ""
        self._base: _Base | None = None

    # -- our streams
    def started(self, stream: OpenStream) -> None:
        """A request is on its way."""
        self._moves += 1
        self._open[stream] = None

    def ended(self, stream: OpenStream, spent: TokensSpent) -> None:
        """Its answer is whole, and told this."""
        self._moves += 1
        self._open.pop(stream, None)
        base = self._base
        if base is not None:
            self._base = base.with_spent(spent)

    def left(self, stream: OpenStream, seen: TokensSpent, now: float, report: Report) -> None:
        """It was given up; `seen` of it had come. `report` is called once it is found out, if it
        ever is."""
        self._moves += 1
        self._open.pop(stream, None)
        if self._base is None or len(self._left) >= MAX_LEFT:
            self._base = None
            self._left.clear()
        else:
            self._left.append(_Left(seen, now, report))

    @property
    def wanted(self) -> bool:
        """Whether a reading is waited for."""
        return bool(self._left)

    @property
    def quiet(self) -> bool:
        """Whether a reading counts at once: nothing of ours is there that may just be ending."""
        return not self._open and not self._left

    # -- readings
    def look(self) -> Look:
        """Call it before a reading is asked for."""
        read: int | None = 0
        cached: int | None = 0
        for stream in self._open:
            seen = stream.spent()
            begun = seen.written is not None and seen.written >= COUNTED_FROM
            read = _sum(read, seen.read if begun else None)
            cached = _sum(cached, seen.cached if begun else None)
        return Look(self._moves, read, cached)

    def counted(self, look: Look, counters: Counters, now: float) -> None:
        """What the server answered, a moment after it did: an answer that was over when the server
        counted has ended here by then, so that `look` is not of this moment."""
        if counters.server != self._server:  # its sums begin anew
            self._server = counters.server
            self._begin_anew()
        if self._left and now - self._left[0].at > FOLLOW_S:
            self._begin_anew()
        at_work = len(self._open)
        if look.moves != self._moves:
            return
        if counters.at_work > at_work + len(self._left):
            self._begin_anew()  # somebody else is there too
        if counters.at_work != at_work:
            return
        told = _Base(
            None if look.read is None else counters.read - look.read,
            None if look.cached is None else counters.cached - look.cached,
            counters.written,
        )
        base = self._base
        if base is None:
            self._base = told
        elif (settled := self._settle(base, told, now) if self._left else base) is not None:
            # While an open stream has yet to tell, what was known of prompts goes on.
            self._base = _Base(
                settled.read if told.read is None else told.read,
                settled.cached if told.cached is None else told.cached,
                told.written,
            )

    def _begin_anew(self) -> None:
        self._base = None
        self._left.clear()

    def _settle(self, base: _Base, told: _Base, now: float) -> _Base | None:
        """Tell each of those that were given up its part of what is missing; the base with them.
        None if that can't be right."""
        left = self._left
        written = _difference(told.written, base.written)
        if written is None:
            self._left = []
            return base
        at_least = [each.seen.written or 0 for each in left]
        if not sum(at_least) <= written <= sum(_at_most(each, now) for each in left):
            return None
        unknown = [each for each in left if each.seen.read is None or each.seen.cached is None]
        read = _difference(told.read, base.read)
        cached = _difference(told.cached, base.cached)
        if read is None or cached is None:
            if unknown and told.read is None and base.read is not None:
                return None  # an open stream has yet to tell; then this will be known
        else:
            read -= sum(each.seen.read or 0 for each in left if each not in unknown)
            cached -= sum(each.seen.cached or 0 for each in left if each not in unknown)
            if read < 0 or cached < 0 or (not unknown and (read or cached)):
                return None
        reads, caches = _shares(read, len(unknown)), _shares(cached, len(unknown))
        surplus = _shares(written - sum(at_least), len(left))
        self._left = []
        for each, least in zip(left, at_least, strict=True):
            more = surplus.pop()
            spent = TokensSpent(each.seen.read, each.seen.cached, least + (more or 0))
            exact = len(left) == 1
            if each in unknown:
                spent = spent._replace(read=reads.pop(), cached=caches.pop())
                exact = exact and spent.read is not None
            base = base.with_spent(spent)
            each.report(spent, exact=exact)
        return base


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _difference(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one - other


def _at_most(left: _Left, now: float) -> float:
    """The most tokens that it may have written."""
    speed = left.seen.written_tps
    if not speed:
        return float("inf")
    took_s = now - left.at + SLACK_S
    return (left.seen.written or 0) + took_s * speed * SPEED_MARGIN + SLACK_TOKENS


def _shares(total: int | None, count: int) -> list[int | None]:
    """`total` in `count` parts that differ by one at most."""
    if total is None:
        return [None] * count
    return [total // count + (index < total % count) for index in range(count)]
