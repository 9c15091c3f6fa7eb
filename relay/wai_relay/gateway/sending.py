"""Send what does not go out with a request's head: a long body, or one side of a conversation.

It is sent in a task of its own while the request's task waits for the answer, which may come before
all is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from wai_protocol.errors import Fault, WaiError
from wai_relay.contracts.upstream import UpstreamStream

from .answer import Answer
from .bodies import Outgoing
from .conversation import Conversation
from .reply import OUR_FAULT
from .routed_request import RoutedRequest

log = logging.getLogger("wai.gateway")

UPLOAD_BYTES: Final = 64 * 1024  # given to a stream at once; more would wait in two places


@asynccontextmanager
async def beside(
    work: Coroutine[Any, Any, None], call: RoutedRequest, answer: Answer
) -> AsyncIterator[None]:
    """Do `work` while the block runs, and no longer. `answer` gives up where `work` fails.

    A plain task and no task group: anyio's leave reference cycles when they are cancelled, and with
    them the whole body of the request to the garbage collector.
    """
    task = asyncio.get_running_loop().create_task(_guarded(work, call, answer))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        work.close()  # where the answer was over before it could begin


async def _guarded(work: Coroutine[Any, Any, None], call: RoutedRequest, answer: Answer) -> None:
    try:
        await work
    except asyncio.CancelledError:
        pass  # not raised again: the task would keep it, with all that its traceback refers to
    except WaiError as error:
        answer.give_up(error.fault, str(error))
    except Exception:
        log.exception("%s failed", call.record.request_id)
        answer.give_up(Fault.INTERNAL, OUR_FAULT)


async def listen(call: RoutedRequest, stream: UpstreamStream, answer: Conversation) -> None:
    """Send what the caller says, once the upstream has agreed to listen."""
    await answer.accepted.wait()
    while data := await call.reply.exchange.read():
        for start in range(0, len(data), UPLOAD_BYTES):
            await _send(stream, data[start : start + UPLOAD_BYTES], answer)


async def upload(
    call: RoutedRequest, stream: UpstreamStream, answer: Answer, outgoing: Outgoing
) -> None:
    """Send the body: what was taken in, and then what still comes of it."""
    try:
        async for piece in call.body.pieces(outgoing):
            for start in range(0, len(piece), UPLOAD_BYTES):
                await _send(stream, piece[start : start + UPLOAD_BYTES], answer)
        if not call.body.complete:
            while data := await call.intake.rest():
                await _send(stream, data, answer)
        stream.end()
    finally:
        call.uploading = False
        call.body.repeatable = call.body.repeatable and call.intake.holds_all
        call.settle()


async def _send(stream: UpstreamStream, data: bytes, answer: Answer) -> None:
    if not stream.write(data):
        await stream.drain()
    answer.touch()


def size_of(call: RoutedRequest, outgoing: Outgoing) -> int | None:
    """How long the body is that goes out; None where that is not known yet."""
    if call.body.complete:
        return outgoing.size
    whole = call.reply.exchange.request.content_length
    held = call.body.held
    if whole is None or held is None:
        return None
    return whole - held.size + outgoing.size
