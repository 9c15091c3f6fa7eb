"""Return for `wai doctor` what the relay itself says is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from wai_api.health import ProblemList
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_protocol.errors import Fault, RequestError

from .finding import Finding

_SEEN_OTHERWISE: Final = ("setup",)  # kinds that the doctor's own checks report


def known_problems(relay: AdminClient) -> Iterator[Finding]:
    """Yield a finding for each problem, or one that there is none.

    A relay that is older than this command knows of none. Raises `WaiError`.
    """
    try:
        problems = read_as(ProblemList, relay.get("/problems")).data
    except RequestError as error:
        if error.fault is not Fault.NOT_FOUND:
            raise
        return
    for problem in problems:
        if problem.kind not in _SEEN_OTHERWISE:
            text = f"{problem.subject}: {problem.text}"
            yield Finding(problem.kind, ok=False, text=text, advice=problem.advice)
