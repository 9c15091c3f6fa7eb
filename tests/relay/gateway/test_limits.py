"""Bounds that make no sense are refused with their setting's name."""

from __future__ import annotations

from typing import Any

import pytest

from wai_protocol.errors import RequestError
from wai_relay.gateway.limits import GatewayLimits


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"body_bytes": -1}, "gateway.body_bytes is 1 or more, and not -1"),
        ({"body_bytes": 0}, "gateway.body_bytes"),
        ({"routing_body_bytes": 0}, "gateway.routing_body_bytes"),
        ({"held_total_bytes": -5}, "gateway.held_total_bytes"),
        ({"spooled_total_bytes": -1}, "gateway.spooled_total_bytes is 0 or more"),
        ({"heartbeat_s": 0.0}, "gateway.heartbeat_s"),
        ({"first_byte_s": float("nan")}, "gateway.first_byte_s"),
        ({"attempts": 0}, "gateway.attempts"),
    ],
)
def test_a_bound_that_makes_no_sense_is_refused(bounds: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        GatewayLimits(**bounds)


def test_bounds_that_make_sense_are_taken() -> None:
    assert GatewayLimits(spooled_total_bytes=0, translate=False).spooled_total_bytes == 0
