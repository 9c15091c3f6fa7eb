"""The orderly end of an event loop that a test's server has to itself."""

from __future__ import annotations

import asyncio


async def end_connections(server: asyncio.Server) -> None:
    """Close `server`, and cancel all other tasks of its loop until none is left.

    A task that has not begun can't close the socket that it was given, so each one gets a turn of
    the loop before it is cancelled. asyncio has such tasks too, for connections that it accepts.
    """
    server.close()
    await asyncio.sleep(0)
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # a closed transport lets go of its socket in the next turn
