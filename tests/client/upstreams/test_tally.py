"""What requests that were given up cost: found out from a server's sums, or not told at all."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from wai_node.forwarding.answer_figures import spent_in
from wai_node.upstreams.tally import FOLLOW_S, NOTHING, UNKNOWN, Counters, Tally, TokensSpent


@dataclass(eq=False)
class Stream:
    """One of ours; `told`: what has come of it."""

    told: TokensSpent = UNKNOWN

    def spent(self) -> TokensSpent:
        return self.told


@dataclass
class Server:
    """A llama-server's sums, and the tally beside it."""

    tally: Tally = field(default_factory=Tally)
    read: int = 0
    cached: int = 0
    written: int = 0
    at_work: int = 0
    told: list[tuple[int | None, int | None, int | None, bool]] = field(default_factory=list)
    name: str = "one"

    def __post_init__(self) -> None:
        self.poll()

    def begin(self, *, read: int = 0, cached: int = 0) -> Stream:
        """A stream of ours whose prompt is read."""
        stream = Stream()
        self.tally.started(stream)
        self.at_work += 1
        self.read += read
        self.cached += cached
        return stream

    def free(self, written: int) -> None:
        """A slot is let go that wrote so much."""
        self.at_work -= 1
        self.written += written

    def leave(self, stream: Stream, now: float = 0.0) -> None:
        """Its caller goes away."""
        self.tally.left(stream, stream.told, now, self.report)

    def report(self, spent: TokensSpent, *, exact: bool) -> None:
        self.told.append((spent.read, spent.cached, spent.written, exact))

    def counters(self) -> Counters:
        return Counters(self.name, self.read, self.cached, self.written, self.at_work)

    def poll(self, now: float = 0.0) -> None:
        self.tally.counted(self.tally.look(), self.counters(), now)


def test_a_stream_that_was_left_cost_what_is_missing() -> None:
    server = Server()
    staying = server.begin(read=30, cached=5)
    staying.told = TokensSpent(30, 5, 40)
    leaving = server.begin(read=20, cached=3)
    leaving.told = TokensSpent(20, 3, 10)
    server.leave(leaving)
    server.poll()  # its slot is still taken
    assert server.told == []
    server.free(12)
    server.poll()
    assert server.told == [(20, 3, 12, True)]
    server.free(100)
    server.tally.ended(staying, TokensSpent(30, 5, 100))
    server.poll()
    assert len(server.told) == 1
    assert not server.tally.wanted


def test_a_prompt_that_was_read_before_the_first_token_came_is_found() -> None:
    server = Server()
    staying = server.begin(read=30)
    leaving = server.begin(read=700, cached=50)
    server.leave(leaving)
    server.free(1)
    server.poll()  # the other has not said yet what its prompt took
    assert server.told == []
    staying.told = TokensSpent(30, 0, 2)
    server.poll()
    assert server.told == [(700, 50, 1, True)]


def test_one_that_never_got_a_slot_cost_nothing() -> None:
    server = Server()
    leaving = server.begin()
    server.leave(leaving)
    server.free(0)
    server.poll()
    assert server.told == [(0, 0, 0, True)]


def test_several_at_once_are_told_their_shares_and_the_sum_is_right() -> None:
    server = Server()
    streams = [server.begin(read=10) for _ in range(3)]
    for n, stream in enumerate(streams):
        stream.told = TokensSpent(10, 0, 5 * n + 2)
        server.leave(stream)
    for n in range(3):
        server.free(5 * n + 4)
    server.poll()
    assert sum(written or 0 for _, _, written, _ in server.told) == 4 + 9 + 14
    assert all(
        (written or 0) >= seen
        for (_, _, written, _), seen in zip(server.told, (2, 7, 12), strict=True)
    )
    assert not any(exact for *_, exact in server.told)


def test_an_answer_that_ends_unseen_is_not_taken_for_the_one_that_was_left() -> None:
    """The server has let its slot go, its end is on the way; the other's slot is still taken."""
    server = Server()
    ending, leaving = server.begin(read=1), server.begin(read=2)
    ending.told, leaving.told = TokensSpent(1, 0, 9), TokensSpent(2, 0, 5)
    server.leave(leaving)
    server.free(500)  # the ending one's
    look, counters = server.tally.look(), server.counters()
    server.tally.ended(ending, TokensSpent(1, 0, 500))  # its news comes before the figures are used
    server.tally.counted(look, counters, 0.0)
    assert server.told == []
    server.free(6)
    server.poll()
    assert server.told == [(2, 0, 6, True)]


def test_a_strangers_tokens_are_nobodys_of_ours() -> None:
    server = Server()
    leaving = server.begin(read=10)
    leaving.told = TokensSpent(10, 0, 5, 50.0)
    server.at_work += 1  # a stranger's
    server.leave(leaving)
    server.free(6)
    server.poll()
    assert server.told == []
    server.free(4000)  # the stranger has gone
    server.read += 300
    for _ in range(3):
        server.poll(1.0)
    assert server.told == []
    server.poll(FOLLOW_S + 1.0)
    assert not server.tally.wanted
    server.poll(FOLLOW_S + 1.0)
    # and from then on it knows again
    leaving = server.begin(read=8)
    leaving.told = TokensSpent(8, 0, 2, 50.0)
    server.leave(leaving, FOLLOW_S + 2.0)
    server.free(3)
    server.poll(FOLLOW_S + 2.0)
    assert server.told == [(8, 0, 3, True)]


def test_more_than_it_can_have_written_is_somebody_elses() -> None:
    server = Server()
    leaving = server.begin(read=10)
    leaving.told = TokensSpent(10, 0, 5, 50.0)
    server.leave(leaving)
    server.free(900)
    server.poll(0.25)
    assert server.told == []


def test_a_server_that_began_anew_is_not_held_against_its_old_sums() -> None:
    server = Server(read=100, written=100)
    leaving = server.begin(read=5)
    leaving.told = TokensSpent(5, 0, 3)
    server.leave(leaving)
    server.name, server.read, server.written, server.at_work = "two", 400, 900, 0
    server.poll()
    assert server.told == []
    assert not server.tally.wanted


def test_after_an_answer_that_told_nothing_the_prompts_are_unknown_until_all_is_still() -> None:
    server = Server()
    silent = server.begin(read=77)
    leaving = server.begin(read=10)
    server.leave(leaving)
    server.free(3)
    server.free(20)
    server.tally.ended(silent, TokensSpent(written=20))  # Anthropic's events say no more
    server.poll()
    assert server.told == [(None, None, 3, False)]
    leaving = server.begin(read=10)
    server.leave(leaving)
    server.free(1)
    server.poll()
    assert server.told[1:] == [(10, 0, 1, True)]


def test_without_figures_nothing_is_followed() -> None:
    tally = Tally()
    stream = Stream()
    tally.started(stream)
    tally.left(stream, UNKNOWN, 0.0, Server().report)
    assert not tally.wanted


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_the_sums_agree(seed: int) -> None:
    """Streams begin, end and are left in any order; at the end both books have the same."""
    dice = random.Random(seed)
    server = Server()
    ours = (0, 0, 0)
    running: list[tuple[Stream, TokensSpent]] = []
    releasing: list[int] = []
    for step in range(400):
        roll = dice.random()
        if roll < 0.3 and len(running) < 6:
            read, cached = dice.randrange(1, 90), dice.randrange(20)
            stream = server.begin(read=read, cached=cached)
            running.append((stream, TokensSpent(read, cached, dice.randrange(2, 60))))
        elif roll < 0.5 and running:
            stream, whole = running[dice.randrange(len(running))]
            stream.told = whole._replace(written=2)
        elif roll < 0.6 and running:
            stream, whole = running.pop(dice.randrange(len(running)))
            server.free(whole.written or 0)
            server.tally.ended(stream, whole)
            ours = added(ours, whole)
        elif roll < 0.7 and running:
            stream, whole = running.pop(dice.randrange(len(running)))
            server.leave(stream, step * 0.01)
            releasing.append(whole.written or 0)
        elif roll < 0.8 and releasing:
            server.free(releasing.pop())
        else:
            server.poll(step * 0.01)
    for stream, whole in running:
        server.free(whole.written or 0)
        server.tally.ended(stream, whole)
        ours = added(ours, whole)
    for each in releasing:
        server.free(each)
    server.poll(4.0)
    assert not server.tally.wanted
    for told in server.told:
        ours = added(ours, TokensSpent(*told[:3]))
    assert ours == (server.read, server.cached, server.written)


def added(sums: tuple[int, int, int], spent: TokensSpent) -> tuple[int, int, int]:
    read, cached, written = sums
    return read + (spent.read or 0), cached + (spent.cached or 0), written + (spent.written or 0)


def test_figures_are_read_from_the_last_bytes_of_an_answer() -> None:
    chunk = (
        b'data: {"choices":[],"timings":{"cache_n":9,"prompt_n":14,"prompt_ms":0.4,'
        b'"predicted_n":3,"predicted_per_second":5235.6}}\n\n'
    )
    assert spent_in(b"x" * 50 + chunk + b"data: [DONE]\n\n") == TokensSpent(14, 9, 3, 5235.6)
    assert spent_in(b'"usage":{"output_tokens":5}}\n\nevent: message_stop') == TokensSpent(
        written=5
    )
    said = rb'{"content":"\"timings\":{\"predicted_n\":1}, \"output_tokens\":7"}'
    assert spent_in(said) == UNKNOWN
    assert spent_in(chunk[:90]) == UNKNOWN
    assert TokensSpent(0, 0, 0) == NOTHING
