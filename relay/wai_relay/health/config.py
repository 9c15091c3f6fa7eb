"""What the operator says of problems (`[health]`). Values only."""

from __future__ import annotations

from dataclasses import dataclass

from wai_api.health import KINDS
from wai_protocol.errors import RequestError


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """What counts as a problem. Raises `RequestError` for a kind that there is not."""

    ignore: tuple[str, ...] = ()
    """The kinds of problems that are no problems here, for instance "clock" on a virtual machine
    whose host keeps its clock."""

    def __post_init__(self) -> None:
        for kind in self.ignore:
            if kind not in KINDS:
                known = ", ".join(KINDS)
                raise RequestError(f"health.ignore: there is no kind {kind!r}; known: {known}")
