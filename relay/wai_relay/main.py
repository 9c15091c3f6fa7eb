"""`wai relay`, once the CLI has read what it was told: runs a relay until a signal ends it.

SIGTERM and SIGINT drain, and a second one cuts that short; SIGHUP reads the configuration again;
SIGUSR2 starts a successor. What a relay is made of and how it lives is in `running`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

import uvloop

from wai_transport.heap import settle_heap

from .config import RelayConfig
from .running.life import open_relay
from .running.reload import LiveConfig
from .running.service_manager import passed_sockets
from .running.succession import Inheritance


def run(
    config: RelayConfig,
    reread: Callable[[], RelayConfig],
    show_log: Callable[[RelayConfig], None],
    show_link: Callable[[str], None] | None = None,
) -> None:
    """Run the relay until SIGTERM or SIGINT; then drain. Raises `WaiError` if it can't start.

    `reread` gives the configuration as it is now, for SIGHUP; `show_log` sets up the log as one
    says. `show_link` shows a link that signs a browser in to the dashboard; None where what we
    print is kept, since the link is a secret.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(LiveConfig(config, reread), show_log, show_link))


async def _run(
    live: LiveConfig,
    show_log: Callable[[RelayConfig], None],
    show_link: Callable[[str], None] | None,
) -> None:
    loop = asyncio.get_running_loop()
    asked, at_once = asyncio.Event(), asyncio.Event()
    opening = asyncio.current_task()

    def on_signal() -> None:
        (at_once if asked.is_set() else asked).set()
        if opening is not None:
            opening.cancel()  # it may wait for its database

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    inherited = Inheritance.find(os.environ)
    async with AsyncExitStack() as ending:
        opened = open_relay(
            live, show_log, stop=asked, inherited=inherited, passed=passed_sockets()
        )
        try:
            relay = await ending.enter_async_context(opened)
        except asyncio.CancelledError:
            if asked.is_set():
                return  # nobody was served yet
            raise
        opening = None
        loop.add_signal_handler(signal.SIGUSR2, relay.upgrade)
        loop.add_signal_handler(signal.SIGHUP, relay.reload)
        if not asked.is_set():  # else a predecessor or a service manager has given this one up
            relay.take_over(inherited)
            settle_heap()
            if show_link is not None:
                show_link(await relay.sign_in_link())
        await asked.wait()
        await relay.drain(at_once)
