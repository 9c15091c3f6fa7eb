"""Messages arrive in spite of receivers that fail, and nothing is told twice over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from wai_api.health import ProblemView
from wai_protocol.errors import TransportError
from wai_relay.notify import notifier as module
from wai_relay.notify.config import NotifyConfig
from wai_relay.notify.message import Message
from wai_relay.notify.notifier import FILE, MAX_WAITING, Notifier
from wai_relay.notify.rules import GAP_S, GROUP_S
from wai_transport.folder import DataFolder

pytestmark = pytest.mark.anyio

BOX = ProblemView("node", "box", "it is offline", "start it", "node box away")
DESK = ProblemView("node", "desk", "it is offline", "start it", "node desk away")


class FakeReceiver:
    """Fails as often as it is told to; `hold` makes it slow."""

    def __init__(self, failures: int = 0) -> None:
        self.name = "webhook fake"
        self.failures = failures
        self.tries = 0
        self.got: list[Message] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.closed = False

    async def deliver(self, message: Message) -> None:
        self.tries += 1
        await self.hold.wait()
        if self.failures:
            self.failures -= 1
            raise TransportError("connection refused")
        self.got.append(message)

    async def aclose(self) -> None:
        self.closed = True


class Rig:
    def __init__(self, folder: DataFolder, *receivers: FakeReceiver) -> None:
        self.now = 0.0
        self.notifier = Notifier(
            NotifyConfig(after_s=60.0),
            receivers,
            folder,
            lambda: "https://relay",
            clock=lambda: self.now,
            wall_clock=lambda: 1.8e9 + self.now,
        )

    async def pass_time(self, seconds: float, *wrong: ProblemView) -> None:
        """Look every five seconds."""
        ends = self.now + seconds
        while self.now < ends:
            self.notifier.look(wrong)
            self.now += 5.0
        await self.settle()

    async def settle(self) -> None:
        """Until no delivery is under way that can go on."""
        for line in self.notifier._lines:
            if line.task is not None and line.receiver.hold.is_set():  # type: ignore[attr-defined]
                await asyncio.wait((line.task,), timeout=10)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder.open(tmp_path / "relay")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES_S", (0.0, 0.0, 0.0))


async def test_a_problem_and_its_end_arrive_at_each_receiver(folder: DataFolder) -> None:
    first, second = FakeReceiver(), FakeReceiver()
    rig = Rig(folder, first, second)
    await rig.pass_time(100, BOX)
    await rig.pass_time(200)
    for receiver in (first, second):
        begun, over = receiver.got
        assert (begun.begun, begun.over, begun.relay) == ((BOX,), (), "https://relay")
        assert (over.begun, over.over) == ((), (BOX,))
    await rig.notifier.close()
    assert first.closed
    assert second.closed


async def test_one_that_fails_is_tried_again_and_is_a_problem_meanwhile(
    folder: DataFolder,
) -> None:
    failing, good = FakeReceiver(failures=2), FakeReceiver()
    rig = Rig(folder, failing, good)
    await rig.pass_time(100, BOX)
    assert (len(failing.got), failing.tries, len(good.got)) == (1, 3, 1)
    assert list(rig.notifier.problems()) == []
    failing.failures = 100
    await rig.pass_time(200)
    [trouble] = rig.notifier.problems()
    assert (trouble.kind, trouble.subject) == ("notify", "webhook fake")
    assert "connection refused" in trouble.text
    assert len(good.got) == 2
    failing.failures = 0
    assert [one.error for one in await rig.notifier.test()] == ["", ""]
    assert list(rig.notifier.problems()) == []
    await rig.notifier.close()


async def test_a_slow_one_holds_up_nobody_and_keeps_a_bounded_number(
    folder: DataFolder, caplog: pytest.LogCaptureFixture
) -> None:
    slow, good = FakeReceiver(), FakeReceiver()
    slow.hold.clear()
    rig = Rig(folder, slow, good)
    for number in range(MAX_WAITING + 5):
        one = ProblemView("node", f"n{number}", "it is offline", "start it", f"node n{number}")
        await rig.pass_time(700, one)
    assert len(good.got) == MAX_WAITING + 5
    assert slow.got == []
    slow.hold.set()
    await rig.settle()
    assert len(slow.got) == MAX_WAITING + 1  # that under way, and those that waited
    assert slow.got[-1] is good.got[-1]
    assert "too many wait" in caplog.text
    await rig.notifier.close()


async def test_a_restart_tells_nothing_twice_and_does_tell_the_end(folder: DataFolder) -> None:
    rig = Rig(folder, FakeReceiver())
    await rig.pass_time(100, BOX, DESK)
    await rig.notifier.close()
    again = FakeReceiver()
    rig = Rig(folder, again)
    await rig.pass_time(300, BOX)
    [message] = again.got
    assert (message.begun, message.over, message.lasting) == ((), (DESK,), 1)
    await rig.notifier.close()


async def test_what_did_not_arrive_before_a_restart_is_told_after_it(folder: DataFolder) -> None:
    rig = Rig(folder, FakeReceiver(failures=100))
    await rig.pass_time(100, BOX)
    await rig.notifier.close()
    again = FakeReceiver()
    rig = Rig(folder, again)
    await rig.pass_time(100, BOX)
    assert [message.begun for message in again.got] == [(BOX,)]
    await rig.notifier.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'[{"kind": 1}]'])
async def test_a_damaged_memory_is_none(folder: DataFolder, content: bytes) -> None:
    folder.write(FILE, content)
    receiver = FakeReceiver()
    rig = Rig(folder, receiver)
    await rig.pass_time(100, BOX)
    assert [message.begun for message in receiver.got] == [(BOX,)]
    await rig.notifier.close()


async def test_a_full_disk_stops_no_message(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = FakeReceiver()
    rig = Rig(DataFolder(folder.path / "gone"), receiver)
    await rig.pass_time(100, BOX)
    await rig.pass_time(200)
    assert len(receiver.got) == 2
    await rig.notifier.close()


async def test_other_receivers_take_over_and_what_was_told_stays_told(folder: DataFolder) -> None:
    former, later = FakeReceiver(), FakeReceiver()
    rig = Rig(folder, former)
    await rig.pass_time(100, BOX)
    former.hold.clear()
    rig.notifier.configure(NotifyConfig(after_s=60.0), [later])
    await rig.pass_time(GAP_S + GROUP_S + 100, BOX, DESK)
    assert [message.begun for message in later.got] == [(DESK,)]
    await rig.notifier.close()
    assert former.closed


async def test_a_relay_that_is_new_is_no_emergency(folder: DataFolder) -> None:
    receiver = FakeReceiver()
    rig = Rig(folder, receiver)
    new = ProblemView("setup", "relay", "no node has joined", "invite one", "setup")
    await rig.pass_time(300, new)
    assert receiver.got == []
    await rig.notifier.close()


async def test_a_bug_in_a_receiver_does_not_silence_it_for_ever(folder: DataFolder) -> None:
    class Broken(FakeReceiver):
        async def deliver(self, message: Message) -> None:
            if not self.tries:
                self.tries = 1
                raise ZeroDivisionError
            await super().deliver(message)

    broken = Broken()
    rig = Rig(folder, broken)
    await rig.pass_time(100, BOX)
    assert len(broken.got) == 1
    await rig.notifier.close()
