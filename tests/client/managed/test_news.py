"""How often the relay is told of a deployment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from wai_node.managed.deployment import State
from wai_node.managed.entry import DeploymentStatus
from wai_node.managed.load_policy import LoadPolicy
from wai_node.managed.news import PROGRESS_EVERY_S, DeploymentNews
from wai_node.managed.options import ServeOptions

READY = DeploymentStatus(
    "m",
    State.READY,
    "",
    (),
    "",
    512,
    512,
    2,
    options=ServeOptions(),
    purpose="chat",
    mmproj="",
    policy=LoadPolicy(),
    wakes=False,
    load_s=1.0,
    changing=False,
    given_up=False,
    size_bytes=1,
    in_flight=0,
    progress=None,
)


@dataclass
class Time:
    now: float = 0.0
    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + delay_s, call))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self.timers if at <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for call in due:
            call()


def news() -> tuple[Time, list[DeploymentStatus], DeploymentNews]:
    time, told = Time(), list[DeploymentStatus]()
    return (
        time,
        told,
        DeploymentNews(told.append, clock=lambda: time.now, call_later=time.call_later),
    )


def test_a_thousand_requests_make_a_few_events_and_the_last_is_right() -> None:
    time, told, deployments = news()
    for request in range(1000):
        deployments.update(replace(READY, in_flight=request % 2))
        time.advance(PROGRESS_EVERY_S / 100)
    deployments.update(READY)
    time.advance(PROGRESS_EVERY_S)
    assert len(told) <= 12
    assert told[-1] == READY


def test_a_change_of_state_is_told_at_once() -> None:
    _, told, deployments = news()
    changes = [READY, replace(READY, state=State.ASLEEP), READY, replace(READY, reason="why")]
    for status in changes:
        deployments.update(status)
    assert told == changes


def test_an_older_figure_is_not_told_after_a_change_of_state() -> None:
    time, told, deployments = news()
    asleep = replace(READY, state=State.ASLEEP)
    for status in (READY, replace(READY, in_flight=1), asleep):
        deployments.update(status)
    time.advance(10 * PROGRESS_EVERY_S)
    assert told == [READY, asleep]
