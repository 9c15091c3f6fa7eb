"""Parts of a node: one that fails is restarted alone, with waits that grow; the others go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import anyio
import pytest

from wai_node import supervision
from wai_node.supervision import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    STEADY_S,
    RestartPolicy,
    Supervision,
)
from wai_protocol.errors import StoreError

pytestmark = pytest.mark.anyio


def test_the_waits_double_up_to_a_bound() -> None:
    policy = RestartPolicy(lambda: 1.0)
    policy.started(0.0)
    waits = [policy.failed(0.0) for _ in range(40)]
    assert waits[:3] == [FIRST_WAIT_S, FIRST_WAIT_S * 2, FIRST_WAIT_S * 4]
    assert waits[-1] == LONGEST_WAIT_S


def test_the_waits_are_spread_but_never_nothing() -> None:
    for share in (0.0, 0.5, 0.999):
        policy = RestartPolicy(lambda share=share: share)  # type: ignore[misc]
        assert FIRST_WAIT_S / 2 <= policy.failed(0.0) <= FIRST_WAIT_S


def test_a_part_that_ran_steadily_begins_with_short_waits_again() -> None:
    policy = RestartPolicy(lambda: 1.0)
    for _ in range(10):
        policy.failed(0.0)
    policy.started(100.0)
    assert policy.failed(100.0 + STEADY_S - 1) > FIRST_WAIT_S
    policy.started(200.0)
    assert policy.failed(200.0 + STEADY_S) == FIRST_WAIT_S


class Part:
    """Raises what it is given, one after the other; then it runs until it is cancelled."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.starts = 0
        self.steady = asyncio.Event()
        self.cancelled = False

    async def run(self) -> None:
        self.starts += 1
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.steady.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


@pytest.fixture
async def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    monkeypatch.setattr(supervision, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(supervision, "RECOVERED_S", 0.05)
    return []


@pytest.fixture
async def parts(told: list[dict[str, str]]) -> AsyncIterator[Supervision]:
    made = Supervision(told.append)
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        RecursionError(),
        MemoryError(),
        asyncio.CancelledError(),
        ExceptionGroup("g", [KeyError(1)]),
        StoreError("the disk is full"),
    ],
    ids=repr,
)
async def test_a_part_that_raises_is_started_again_and_the_others_go_on(
    parts: Supervision, error: BaseException
) -> None:
    other, failing = Part(), Part(error)
    parts.start("other", other.run)
    await other.steady.wait()
    parts.start("failing", failing.run)
    await failing.steady.wait()
    assert (other.starts, other.cancelled, failing.starts) == (1, False, 2)


async def test_what_is_down_is_told_with_a_reason_until_it_runs_again(
    parts: Supervision, told: list[dict[str, str]]
) -> None:
    part = Part(StoreError("the disk is full"), ValueError("a prompt of somebody"))
    parts.start("models", part.run)
    await part.steady.wait()
    assert told == [{"models": "the disk is full"}, {"models": "ValueError"}]
    assert parts.down == {"models": "ValueError"}, "it runs, but not for long yet"
    async with asyncio.timeout(10):
        while parts.down:  # noqa: ASYNC110 - tells no event
            await asyncio.sleep(0.01)
    assert told[-1] == {}


async def test_the_same_failure_is_logged_once_with_name_and_traceback(
    parts: Supervision, caplog: pytest.LogCaptureFixture
) -> None:
    part = Part(*(ValueError("x") for _ in range(5)))
    with caplog.at_level(logging.WARNING, "wai.node"):
        parts.start("discovery", part.run)
        await part.steady.wait()
    assert len(caplog.records) == 1
    assert "'discovery'" in caplog.text
    assert "in run" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_part_that_returns_is_done(parts: Supervision) -> None:
    async def once() -> None:
        done.append(1)

    done: list[int] = []
    await parts.start("once", once)
    assert done == [1]
    assert parts.down == {}


async def test_the_end_cancels_all_even_one_that_waits_for_its_restart(
    parts: Supervision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(supervision, "LONGEST_WAIT_S", 1000.0)
    running, waiting = Part(), Part(ValueError())
    parts.start("running", running.run)
    task = parts.start("waiting", waiting.run)
    await running.steady.wait()
    async with asyncio.timeout(10):
        while not parts.down:  # noqa: ASYNC110 - tells no event
            await asyncio.sleep(0)
        await parts.aclose()
    assert running.cancelled
    assert task.cancelled()
    assert (waiting.starts, parts.down) == (1, {})


async def test_one_part_can_be_stopped_alone(parts: Supervision) -> None:
    one, other = Part(), Part()
    task = parts.start("one", one.run)
    parts.start("other", other.run)
    await asyncio.gather(one.steady.wait(), other.steady.wait())
    task.cancel()
    await asyncio.wait((task,))
    assert (one.cancelled, other.cancelled) == (True, False)


async def test_a_part_that_is_a_task_group_ends_when_all_are_cancelled(
    parts: Supervision,
) -> None:
    """Such a group takes back the count of cancellations while its tasks clean up."""
    starts = 0
    running = asyncio.Event()

    async def clean_up_slowly() -> None:
        running.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(10):
                    await asyncio.sleep(0)

    async def group() -> None:
        nonlocal starts
        starts += 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clean_up_slowly)

    task = parts.start("group", group)
    with anyio.fail_after(30):
        await running.wait()
        await parts.aclose()
    assert (starts, task.cancelled(), parts.down) == (1, True, {})
