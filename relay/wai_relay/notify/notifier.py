"""Tells the receivers what `rules` decides, tries again where one can't be reached, and remembers
over a restart what was told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from wai_api.health import ProblemView
from wai_api.notify import NotifyResult
from wai_protocol.errors import StoreError, WaiError
from wai_relay.health.problem import problem
from wai_transport.folder import DataFolder
from wai_transport.http_proxy import DIRECT, ProxySettings

from .config import NotifyConfig
from .message import Message
from .ntfy import Ntfy
from .receiver import Receiver
from .rules import Announcer
from .webhook import Webhook

FILE: Final = "notify.json"
RETRIES_S: Final = (15.0, 60.0, 300.0, *(900.0,) * 96)
"""How long is waited after each failure of a delivery: for a day, since it may be the network that
is down."""

MAX_WAITING: Final = 16
"""Messages that wait for one receiver; the oldest is given up. By `rules` these are hours."""

_NOT_TOLD: Final = ("setup",)  # a new relay is no emergency
_SEE: Final = "`wai notify test` on the relay's machine tries it and says what happens"

_log = logging.getLogger("wai.notify")


def receivers_of(config: NotifyConfig, proxies: ProxySettings = DIRECT) -> list[Receiver]:
    """All that are configured. Raises `WaiError`: a secret or a file can't be used."""
    found: list[Receiver] = [
        *(Webhook(one, proxies) for one in config.webhook),
        *(Ntfy(one, proxies) for one in config.ntfy),
    ]
    if config.email:
        from .email import Email  # few use smtplib and what it brings

        found += (Email(one) for one in config.email)
    return found


class _Line(msgspec.Struct):
    """What waits for one receiver. `trouble`: why the last try failed, "" if it did not."""

    receiver: Receiver
    waiting: deque[Message]
    trouble: str = ""
    task: asyncio.Task[None] | None = None


class Notifier:
    """`look` takes what is wrong now. Belongs to one loop; `close` it.

    `relay`: its public URL, for the messages. `folder`: where what was told is kept.
    """

    def __init__(
        self,
        config: NotifyConfig,
        receivers: Iterable[Receiver],
        folder: DataFolder,
        relay: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._lines = _lines(receivers)
        self._folder = folder
        self._relay = relay
        self._clock = clock
        self._wall_clock = wall_clock
        self._delivered = {one.id: one for one in _read(folder)}
        """What a receiver was told, and not yet that it is over."""
        self._announcer = Announcer(config.after_s, self._delivered.values())
        self._closing: set[asyncio.Task[None]] = set()

    def look(self, found: tuple[ProblemView, ...]) -> None:
        """Tell what is to be told now."""
        if not self._lines:
            return
        wall = self._wall_clock()
        quiet = self._config.is_quiet(wall)
        wrong = [one for one in found if one.kind not in _NOT_TOLD]
        news = self._announcer.look(wrong, self._clock(), quiet=quiet)
        if news is None:
            return
        message = Message(wall, self._relay(), news.begun, news.over, news.lasting)
        for line in self._lines:
            if len(line.waiting) == MAX_WAITING:
                _log.warning("%s: a message was given up, since too many wait", line.receiver.name)
            line.waiting.append(message)
            if line.task is None:
                line.task = asyncio.get_running_loop().create_task(self._deliver(line))

    def problems(self) -> Iterator[ProblemView]:
        """Receivers that can't be reached."""
        for number, line in enumerate(self._lines):
            if line.trouble:
                yield problem(
                    *("notify", line.receiver.name, str(number)),
                    f"messages can't be delivered: {line.trouble}",
                    _SEE,
                )

    async def test(self) -> list[NotifyResult]:
        """Send a test to each receiver, and say how that went."""
        message = Message(self._wall_clock(), self._relay(), test=True)
        return list(await asyncio.gather(*(self._test(line, message) for line in self._lines)))

    async def _test(self, line: _Line, message: Message) -> NotifyResult:
        try:
            await line.receiver.deliver(message)
        except WaiError as error:
            line.trouble = str(error)
        else:
            line.trouble = ""
        return NotifyResult(line.receiver.name, line.trouble)

    def configure(self, config: NotifyConfig, receivers: list[Receiver]) -> None:
        """Other receivers and rules from now on; what waits for the former ones is given up."""
        former, self._lines = self._lines, _lines(receivers)
        self._config = config
        self._announcer.after_s = config.after_s
        closing = asyncio.get_running_loop().create_task(_close(former))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Tell no more."""
        await _close(self._lines)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _deliver(self, line: _Line) -> None:
        """Deliver what waits for one receiver, in order."""
        try:
            while line.waiting:
                message = line.waiting[0]
                if not await self._try(line, message):
                    _log.error("%s: given up: %s", line.receiver.name, message.title)
                if line.waiting and line.waiting[0] is message:  # else it made room for others
                    line.waiting.popleft()
        finally:
            line.task = None

    async def _try(self, line: _Line, message: Message) -> bool:
        for wait_s in (*RETRIES_S, None):
            try:
                await line.receiver.deliver(message)
            except WaiError as error:
                line.trouble = str(error)
                _log.warning("%s: %s", line.receiver.name, error)
            except Exception as error:  # a bug of ours in one kind must not silence it for ever
                line.trouble = f"this relay failed: {error!r}"
                _log.exception("%s: a delivery failed by a fault of ours", line.receiver.name)
            else:
                line.trouble = ""
                await self._remember(message)
                return True
            if wait_s is not None:
                await asyncio.sleep(wait_s)
        return False

    async def _remember(self, message: Message) -> None:
        """Keep what somebody knows now, so that a restart does not tell it again."""
        for one in message.over:
            self._delivered.pop(one.id, None)
        self._delivered.update((one.id, one) for one in message.begun)
        content = msgspec.json.encode(list(self._delivered.values()))
        try:
            await asyncio.to_thread(self._folder.write, FILE, content)
        except StoreError as error:
            _log.warning("a restart would tell known problems again: %s", error)


def _lines(receivers: Iterable[Receiver]) -> list[_Line]:
    return [_Line(receiver, deque(maxlen=MAX_WAITING)) for receiver in receivers]


async def _close(lines: list[_Line]) -> None:
    tasks = [line.task for line in lines if line.task is not None]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for line in lines:
        await line.receiver.aclose()


def _read(folder: DataFolder) -> list[ProblemView]:
    """What was told before this start. A damaged file counts as none: problems are told again."""
    try:
        kept = folder.read(FILE)
        return [] if kept is None else msgspec.json.decode(kept, type=list[ProblemView])
    except (StoreError, msgspec.DecodeError) as error:
        _log.warning("what was told before is not known: %s", error)
        return []
