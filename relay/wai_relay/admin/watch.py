"""`GET /admin/v1/events`: lets an admin listen to the feed (`events`) for as long as it may."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from wai_protocol.errors import Fault, WaiError

from .context import Context
from .endpoint import NO_STORE, refuse, sign_in

_STREAMED: Final = {**NO_STORE, "x-accel-buffering": "no"}  # nginx would collect events


async def respond(context: Context, request: Request) -> Response:
    """Answer `GET /events`."""
    try:
        sign_in(context, request)
        if context.feed.full:
            raise WaiError("too many watch this relay already; close a tab", Fault.OVERLOADED)
    except WaiError as error:
        return refuse(error)

    def allowed() -> bool:
        try:
            sign_in(context, request)
        except WaiError:
            return False
        return True

    return StreamingResponse(
        context.feed.listen(allowed), headers=_STREAMED, media_type="text/event-stream"
    )
