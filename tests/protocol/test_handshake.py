"""The handshake against replays, wrong keys, men in the middle, garbage and floods."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from wai_protocol.errors import AuthError, Fault, RemoteProtocolError, WaiError
from wai_protocol.handshake import (
    Hello,
    NodeHandshake,
    ProvenHello,
    RelayHandshake,
    Welcome,
)
from wai_protocol.identity import NodeKey, RelayKey
from wai_protocol.limits import MAX_HANDSHAKE_BYTES, Limits

NODE, RELAY, OTHER = NodeKey(b"n" * 32), RelayKey(b"r" * 32), RelayKey(b"o" * 32)
CERTIFICATE = b"c" * 32
HELLO = Hello(NODE.public, "box", CERTIFICATE, agent="test", instance="i1")
WELCOME = Welcome(b"s" * 16, 42, True, "node_x", "box", Limits(max_streams=7))


def node(**changes: Any) -> NodeHandshake:
    hello = changes.pop("hello", HELLO)
    return NodeHandshake(
        changes.pop("key", NODE),
        hello,
        relay_public=changes.pop("relay_public", RELAY.public),
        **changes,
    )


def relay(
    nonce: bytes = b"1" * 32,
    key: RelayKey = RELAY,
    hashes: frozenset[bytes] | None = frozenset({CERTIFICATE}),
) -> RelayHandshake:
    return RelayHandshake(key, nonce=nonce, endpoint_hashes=hashes)


def challenged(theirs: NodeHandshake, ours: RelayHandshake) -> ProvenHello | None:
    """HELLO, CHALLENGE and PROOF, each as it should go."""
    assert ours.receive_data(theirs.bytes_to_send()) is None
    assert theirs.receive_data(ours.bytes_to_send()) is None
    return ours.receive_data(theirs.bytes_to_send())


def fed(
    end: NodeHandshake | RelayHandshake, data: bytes, step: int
) -> ProvenHello | Welcome | None:
    """`data` in pieces of `step` bytes; what the last piece brought."""
    result: ProvenHello | Welcome | None = None
    for at in range(0, len(data), step):
        result = end.receive_data(data[at : at + step])
    return result


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_both_know_each_other_in_the_end_however_the_bytes_come(step: int) -> None:
    theirs, ours = node(invite_secret=b"secret-secret-16"), relay()
    assert fed(ours, theirs.bytes_to_send(), step) is None
    assert fed(theirs, ours.bytes_to_send(), step) is None
    assert fed(ours, theirs.bytes_to_send(), step) == ProvenHello(HELLO, b"secret-secret-16")
    ours.accept(WELCOME)
    assert fed(theirs, ours.bytes_to_send(), step) == WELCOME


def test_bytes_after_the_welcome_belong_to_the_session() -> None:
    theirs, ours = node(), relay()
    challenged(theirs, ours)
    ours.accept(WELCOME)
    assert theirs.receive_data(ours.bytes_to_send() + b"\x92\x05") == WELCOME
    theirs.receive_data(b"\x00")
    assert theirs.leftover() == b"\x92\x05\x00"


def test_a_proof_that_was_seen_before_is_worth_nothing() -> None:
    theirs, ours = node(), relay()
    hello = theirs.bytes_to_send()
    ours.receive_data(hello)
    theirs.receive_data(ours.bytes_to_send())
    proof = theirs.bytes_to_send()
    assert ours.receive_data(proof) is not None
    later = relay(nonce=b"2" * 32)
    later.receive_data(hello)
    with pytest.raises(AuthError) as refusal:
        later.receive_data(proof)
    assert refusal.value.fault is Fault.PROOF_INVALID


def test_another_relay_does_not_get_a_proof() -> None:
    theirs, ours = node(invite_secret=b"secret-secret-16"), relay(key=OTHER)
    ours.receive_data(theirs.bytes_to_send())
    with pytest.raises(AuthError):
        theirs.receive_data(ours.bytes_to_send())
    assert theirs.bytes_to_send() == b""


def test_a_relay_that_only_claims_its_key_does_not_get_a_proof() -> None:
    theirs, ours = node(invite_secret=b"secret-secret-16"), relay(key=OTHER)
    ours.receive_data(theirs.bytes_to_send())
    challenge = ours.bytes_to_send().replace(OTHER.public, RELAY.public)
    with pytest.raises(AuthError):
        theirs.receive_data(challenge)
    assert theirs.bytes_to_send() == b""


def test_a_challenge_to_another_hello_is_refused() -> None:
    ours = relay()
    ours.receive_data(node(hello=replace(HELLO, instance="i2")).bytes_to_send())
    theirs = node()
    theirs.bytes_to_send()
    with pytest.raises(AuthError):
        theirs.receive_data(ours.bytes_to_send())


@pytest.mark.parametrize("seen", [b"m" * 32, b""])
def test_a_man_in_the_middle_with_his_own_certificate_is_found(seen: bytes) -> None:
    theirs = node(hello=replace(HELLO, endpoint_hash=seen))
    with pytest.raises(AuthError):
        relay().receive_data(theirs.bytes_to_send())


def test_behind_a_proxy_the_certificate_is_the_proxys() -> None:
    theirs = node(hello=replace(HELLO, endpoint_hash=b"p" * 32))
    assert challenged(theirs, relay(hashes=None)) is not None


def test_a_man_in_the_middle_who_rewrites_the_hello_breaks_both_proofs() -> None:
    theirs, ours = node(hello=replace(HELLO, endpoint_hash=b"m" * 32)), relay()
    ours.receive_data(theirs.bytes_to_send().replace(b"m" * 32, CERTIFICATE))
    with pytest.raises(AuthError):
        theirs.receive_data(ours.bytes_to_send())


def test_a_key_that_is_not_the_nodes_is_refused() -> None:
    with pytest.raises(AuthError):
        challenged(node(key=NodeKey(b"x" * 32)), relay())


def test_an_invite_that_was_changed_under_way_breaks_the_proof() -> None:
    theirs, ours = node(invite_secret=b"secret-secret-16"), relay()
    ours.receive_data(theirs.bytes_to_send())
    theirs.receive_data(ours.bytes_to_send())
    with pytest.raises(AuthError):
        ours.receive_data(theirs.bytes_to_send().replace(b"secret-secret-16", b"terces-terces-16"))


def test_a_version_that_the_relay_does_not_speak_is_named() -> None:
    item = msgpack.unpackb(node().bytes_to_send())
    item[1] = [2, 3]
    with pytest.raises(AuthError) as refusal:
        relay().receive_data(msgpack.packb(item))
    assert refusal.value.fault is Fault.VERSION_UNSUPPORTED


def test_what_a_newer_node_appends_is_ignored() -> None:
    item = msgpack.unpackb(node().bytes_to_send())
    item[1] = [2, 1]
    item[6]["new"] = [1]
    assert relay().receive_data(msgpack.packb([*item, "new"])) is None


def test_a_refusal_says_why_and_when_to_come_again() -> None:
    theirs, ours = node(), relay()
    ours.refuse(WaiError("no \x1b[31mroom\r\n", Fault.OVERLOADED, retry_after_s=2.5))
    with pytest.raises(AuthError) as refusal:
        theirs.receive_data(ours.bytes_to_send())
    assert refusal.value.fault is Fault.OVERLOADED
    assert refusal.value.retry_after_s == 2.5
    assert str(refusal.value).isprintable()


def test_a_refusal_can_not_send_a_node_away_for_ever() -> None:
    with pytest.raises(AuthError) as refusal:
        node().receive_data(msgpack.packb([4, 21, "x" * 5_000, 1 << 60]))
    assert refusal.value.retry_after_s == 3600
    assert len(str(refusal.value)) <= 512


def test_a_node_that_does_not_wait_for_its_welcome_is_refused() -> None:
    for together in (True, False):
        theirs, ours = node(), relay()
        ours.receive_data(theirs.bytes_to_send())
        theirs.receive_data(ours.bytes_to_send())
        proof = theirs.bytes_to_send()
        if not together:
            assert ours.receive_data(proof) is not None
        with pytest.raises(RemoteProtocolError):
            ours.receive_data(proof + b"\x92\x05\x00" if together else b"\x92\x05\x00")


@pytest.mark.parametrize("flood", [b"\x97" + b"\xc4\x01\x00" * 4_000, b"\xc6\xff\xff\xff\xff"])
@pytest.mark.parametrize("step", [100, 1 << 20])
def test_a_handshake_that_never_ends_is_cut_off(flood: bytes, step: int) -> None:
    flood += b"\x00" * MAX_HANDSHAKE_BYTES
    for end in (node(), relay()):
        with pytest.raises(RemoteProtocolError):
            fed(end, flood, step)


@given(st.binary(max_size=300), st.integers(0, 400), st.booleans())
def test_garbage_is_only_ever_refused(garbage: bytes, at: int, to_node: bool) -> None:
    theirs, ours = node(), relay()
    hello = theirs.bytes_to_send()
    try:
        if to_node:
            ours.receive_data(hello)
            challenge = ours.bytes_to_send()
            theirs.receive_data(challenge[:at] + garbage + challenge[at + len(garbage) :])
        else:
            ours.receive_data(hello[:at] + garbage + hello[at + len(garbage) :])
    except (AuthError, RemoteProtocolError):
        return


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 1),
        (1, 1),
        (2, "text"),
        (3, b"short"),
        (3, 5),
        (4, -1),
        (4, True),
        (5, b"c" * 31),
        (6, []),
        (6, {"name": "x" * 129}),
        (6, {"name": "a\nb"}),
        (6, {"name": 5}),
        (6, {"limits": {"ping_ms": 0}}),
        (6, {"limits": {"max_streams": True}}),
        (6, {"limits": []}),
    ],
)
def test_a_hello_with_a_wrong_field_is_refused(place: int, value: object) -> None:
    item = msgpack.unpackb(node().bytes_to_send())
    item[place] = value
    with pytest.raises(RemoteProtocolError):
        relay().receive_data(msgpack.packb(item))
