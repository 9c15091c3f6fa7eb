"""A pass that was made for another relay, is old, or was changed, opens nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import AuthError
from wai_protocol.identity import RelayKey
from wai_protocol.relay_pass import GOOD_S, PREFIX, make_pass, read_pass

HERE, THERE, STRANGER = RelayKey.generate(), RelayKey.generate(), RelayKey.generate()
NOW = 1_800_000_000.0


def test_a_pass_says_which_relay_asks_and_for_whom() -> None:
    found = read_pass(make_pass(HERE, THERE.public, "alice", NOW), THERE.public, NOW + 5)
    assert found.relay == HERE.public
    assert found.actor == "alice"


def test_a_pass_for_one_relay_opens_no_other() -> None:
    shown = make_pass(HERE, THERE.public, "alice", NOW)
    with pytest.raises(AuthError):
        read_pass(shown, STRANGER.public, NOW)


@pytest.mark.parametrize("late_s", [-GOOD_S - 2, GOOD_S + 2])
def test_a_pass_is_good_for_a_minute(late_s: float) -> None:
    shown = make_pass(HERE, THERE.public, "alice", NOW)
    with pytest.raises(AuthError, match="clocks"):
        read_pass(shown, THERE.public, NOW + late_s)


@given(st.data())
def test_a_pass_in_which_a_byte_was_changed_is_refused(data: st.DataObject) -> None:
    shown = make_pass(HERE, THERE.public, "alice", NOW)
    at = data.draw(st.integers(len(PREFIX), len(shown) - 2))  # the last character has spare bits
    other = data.draw(st.sampled_from("ABCabc019-_").filter(lambda c: c != shown[at]))
    with pytest.raises(AuthError):
        read_pass(shown[:at] + other + shown[at + 1 :], THERE.public, NOW)


@given(st.text(max_size=40))
def test_what_is_no_pass_is_refused(text: str) -> None:
    with pytest.raises(AuthError):
        read_pass(PREFIX + text, THERE.public, NOW)
