"""What is wrong now (`wai_relay.health`), for the Overview page, `wai status` and `wai doctor`."""

from __future__ import annotations

from typing import Final

from wai_api.health import ProblemList

from .context import Context
from .deployments import all_deployed
from .endpoint import Call, Endpoint


async def list_problems(context: Context, call: Call) -> ProblemList:
    """The relay's own first. The nodes are asked for their deployments, which are known then."""
    await all_deployed(context)
    return ProblemList(context.health.problems())


ENDPOINTS: Final = (
    Endpoint("GET", "/problems", list_problems, "Say what is wrong now", ProblemList),
)
