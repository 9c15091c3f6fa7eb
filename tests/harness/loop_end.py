"""The orderly end of an asyncio event loop that a test has to itself.

A connection that nobody closed is found by the garbage collector, minutes later, in a test that has
nothing to do with it, which fails by the warning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping


async def stop_listening(server: asyncio.Server) -> None:
    """Close `server`. A connection that it has accepted but not made yet becomes one first.

    After `close` asyncio can't make it any more (`Server._attach` fails), and loses its socket.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    await asyncio.sleep(0)
    server.close()


async def end_connections(server: asyncio.Server) -> None:
    """Close `server`, and cancel all other tasks of its loop until none is left.

    A task that has not begun can't close the socket that it was given, so each one gets a turn of
    the loop before it is cancelled. asyncio has such tasks too, for connections that it accepts.
    """
    await stop_listening(server)
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.sleep(0)  # a connection that was made meanwhile has brought tasks of its own
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
    await abort_connections()


async def abort_connections() -> None:
    """Abort every connection of this loop, also those that are being made or closed."""
    loop = asyncio.get_running_loop()
    transports: Mapping[int, asyncio.WriteTransport] = loop._transports  # type: ignore[attr-defined]
    for transport in list(transports.values()):
        transport.abort()
    await asyncio.sleep(0)  # an aborted transport lets go of its socket in the next turn
