"""What the relay asks of this node: each CALL is answered once, whatever happens (SPEC section 6).

A reply that can't be sent (too large for a frame, or no plain value) is answered with an error at
once: a relay that hears nothing would wait for its whole time limit. What a call means is the
handler's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from wai_protocol.errors import Fault, LocalProtocolError, WaiError
from wai_protocol.limits import MAX_FRAME_BYTES

_log = logging.getLogger("wai.node")

ANSWER_S: Final = 50.0
"""Within which a CALL is answered (SPEC section 6): the relay waits 60 s, the way included."""

CallHandler = Callable[[str, dict[str, Any], Callable[[str, Any], None]], Awaitable[Any]]
"""Answers a CALL: method, params, and how to tell of progress; gives the REPLY's value."""


class ReplyPort(Protocol):
    """The part of a `wai_protocol.session.Session` that answers calls."""

    def reply(self, call: int, value: object) -> None:
        """Answer a CALL. Raises `LocalProtocolError` where a frame can't carry `value`."""

    def reply_error(self, call: int, error: WaiError) -> None:
        """Answer a CALL with what went wrong."""

    def emit(self, name: str, value: object, call: int = 0) -> None:
        """Tell the relay that something happened."""


class CallPort(Protocol):
    """What is asked of a `LiveSession`. After each call of `core` comes one of `flush`."""

    @property
    def core(self) -> ReplyPort:
        """The session's own state."""

    def flush(self) -> None:
        """Have what was asked of `core` sent in this loop turn."""


class Calls:
    """The calls under way. While `handler` is None every one is refused."""

    def __init__(self) -> None:
        self.handler: CallHandler | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def received(self, session: CallPort, call: int, method: str, params: dict[str, Any]) -> None:
        """Answer a CALL that came over `session`, in a task of its own."""
        task = asyncio.get_running_loop().create_task(self._answer(session, call, method, params))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Drop those under way: their session is going."""
        for task in list(self._tasks):
            task.cancel()

    async def _answer(
        self, session: CallPort, call: int, method: str, params: dict[str, Any]
    ) -> None:
        def tell(name: str, value: Any) -> None:
            session.core.emit(name, value, call)
            session.flush()

        core = session.core
        try:
            if self.handler is None:
                raise WaiError(f"this node answers no `{method}`", Fault.ROUTE_REFUSED)
            async with asyncio.timeout(ANSWER_S):
                value = await self.handler(method, params, tell)
            core.reply(call, value)
        except TimeoutError:
            _log.warning("%s took longer than %g s", method, ANSWER_S)
            core.reply_error(call, _too_slow(method))
        except LocalProtocolError as error:
            _log.warning("the answer to %s can't be sent: %s", method, error)
            core.reply_error(call, _too_large(method))
        except WaiError as error:
            core.reply_error(call, error)
        except Exception:
            _log.exception("the call %s failed", method)
            core.reply_error(call, WaiError("the node failed to do this; its log says why"))
        finally:
            session.flush()


def _too_slow(method: str) -> WaiError:
    return WaiError(
        f"the node did not finish `{method}` within {ANSWER_S:g} s; try again",
        Fault.UPSTREAM_TIMEOUT,
    )


def _too_large(method: str) -> WaiError:
    return WaiError(
        f"the node's answer to `{method}` is larger than the {MAX_FRAME_BYTES // 1024} KiB that "
        "a reply holds; ask for less",
        Fault.BODY_TOO_LARGE,
    )
