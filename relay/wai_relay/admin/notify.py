"""Whether messages about problems arrive."""

from __future__ import annotations

from typing import Final

from wai_api.notify import NotifyResults

from .context import Context
from .endpoint import Call, Endpoint


async def test_receivers(context: Context, call: Call) -> NotifyResults:
    """A test to each receiver, at once; the answer says how each went, after 30 s at the latest."""
    return NotifyResults(tuple(await context.notifier.test()))


ENDPOINTS: Final = (
    Endpoint("POST", "/notify/test", test_receivers, "Send a test message", NotifyResults),
)
