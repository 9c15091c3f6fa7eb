"""The invite string: what goes in comes out, and anything else is refused with a reason."""

from __future__ import annotations

import base64

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import AuthError, Fault
from wai_protocol.invite import MAX_CHARS, MAX_PINS, PREFIX, Invite, decode, pins_in

GOOD = {
    "v": 1,
    "url": "https://relay.example:8443",
    "pin": b"p" * 32,
    "relay": b"r" * 32,
    "secret": b"s" * 16,
}


def _text(**changes: object) -> str:
    packed = msgpack.packb({**GOOD, **changes})
    return PREFIX + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


PINS = st.integers(1, MAX_PINS).flatmap(lambda n: st.binary(min_size=32 * n, max_size=32 * n))


@given(st.binary(min_size=16, max_size=64), st.none() | PINS)
def test_what_goes_in_comes_out(secret: bytes, pin: bytes | None) -> None:
    invite = Invite("https://[::1]:8443", b"r" * 32, secret, pin)
    assert decode(f"  {invite.encode()}\n") == invite


@given(st.text(max_size=300))
def test_any_text_is_an_invite_or_an_auth_error(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(AuthError) as caught:
            decode(candidate)
        assert caught.value.fault is Fault.INVITE_INVALID


@given(st.data())
def test_a_cut_or_mistyped_invite_is_refused_or_at_least_another(data: st.DataObject) -> None:
    text = _text()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(AuthError):
        decode(text[:cut])


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"url": "ftp://relay.example"},
        {"url": "https://"},
        {"url": "https://user:secret@relay.example"},
        {"url": "https://relay.example/path"},
        {"url": "https://relay.example:99999"},
        {"url": "https://" + "x" * 600},
        {"url": "https://relay.example\r\nhost"},
        {"url": b"https://relay.example"},
        {"pin": b"short"},
        {"pin": "p" * 32},
        {"pin": b""},
        {"pin": b"p" * 33},
        {"pin": b"p" * 32 * (MAX_PINS + 1)},
        {"relay": b"short"},
        {"relay": None},
        {"secret": b"short"},
        {"secret": b"s" * 65},
    ],
)
def test_a_field_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(AuthError, match="cannot be used"):
        decode(_text(**changes))


def test_size_is_bounded_before_anything_is_decoded() -> None:
    with pytest.raises(AuthError, match="too long"):
        decode(PREFIX + "A" * MAX_CHARS)


def test_the_secret_is_not_printed() -> None:
    assert "sssss" not in repr(decode(_text()))


def test_each_key_that_is_pinned_is_found_in_the_pin() -> None:
    assert pins_in(b"a" * 32 + b"b" * 32) == [b"a" * 32, b"b" * 32]
