"""A list of relays that a peer or a damaged file got wrong is refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import RequestError
from wai_protocol.known_relay import KnownRelay
from wai_protocol.relay_list import MAX_RELAYS, RelayList

GOOD: dict[str, Any] = {"url": "https://a.example", "public": "ab" * 32, "pin": None}


@given(
    st.integers(0, 2**62 - 1),
    st.lists(
        st.builds(
            KnownRelay,
            st.sampled_from(["https://a.example:8443", "http://127.0.0.1:80"]),
            st.binary(min_size=32, max_size=32),
            st.none() | st.binary(min_size=32, max_size=32) | st.binary(min_size=64, max_size=64),
            st.sampled_from(["", "relay1.example:443", "[2001:db8::1]:8443"]),
        ),
        min_size=1,
        max_size=MAX_RELAYS,
        unique_by=lambda relay: relay.public,
    ),
)
def test_what_is_told_is_what_is_read(version: int, relays: list[KnownRelay]) -> None:
    told = RelayList(version, tuple(relays))
    assert RelayList.from_map(told.to_map()) == told


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"version": 1},
        {"version": True, "relays": [GOOD]},
        {"version": -1, "relays": [GOOD]},
        {"version": 1 << 62, "relays": [GOOD]},
        {"version": 1, "relays": []},
        {"version": 1, "relays": [GOOD, GOOD]},
        {"version": 1, "relays": [{**GOOD, "public": f"{n:064x}"} for n in range(MAX_RELAYS + 1)]},
        {"version": 1, "relays": [{**GOOD, "public": "ab"}]},
        {"version": 1, "relays": [{**GOOD, "public": 5}]},
        {"version": 1, "relays": [{**GOOD, "pin": "ab"}]},
        {"version": 1, "relays": [{**GOOD, "pin": "zz" * 32}]},
        {"version": 1, "relays": [{**GOOD, "url": "file:///etc/passwd"}]},
        {"version": 1, "relays": [{**GOOD, "url": "https://" + "a" * 600}]},
        {"version": 1, "relays": [{"url": GOOD["url"]}]},
        {"version": 1, "relays": ["https://a.example"]},
        {"version": 1, "relays": [{**GOOD, "dial": "relay1.example"}]},
        {"version": 1, "relays": [{**GOOD, "dial": "relay1.example:0"}]},
        {"version": 1, "relays": [{**GOOD, "dial": "relay1.example:99999"}]},
        {"version": 1, "relays": [{**GOOD, "dial": "a b:1"}]},
        {"version": 1, "relays": [{**GOOD, "dial": 443}]},
    ],
)
def test_a_list_that_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match="this list of relays"):
        RelayList.from_map(value)
