"""Keys: what is signed can be verified, nothing else can, and nothing secret is printed."""

from __future__ import annotations

import pytest

from wai_protocol.errors import AuthError, Fault
from wai_protocol.identity import NodeKey, RelayKey, inference_key, node_id, verify

KEY = NodeKey.from_bytes(bytes(range(32)))


def test_a_signature_holds_for_its_data_and_key_only() -> None:
    signature = KEY.sign(b"transcript")
    verify(KEY.public, signature, b"transcript")
    for public, changed, data in (
        (KEY.public, signature, b"transcripT"),
        (KEY.public, signature[:-1] + b"\0", b"transcript"),
        (KEY.public, signature[:-1], b"transcript"),
        (NodeKey.generate().public, signature, b"transcript"),
        (b"\xff" * 32, signature, b"transcript"),
        (b"", signature, b"transcript"),
    ):
        with pytest.raises(AuthError) as caught:
            verify(public, changed, data)
        assert caught.value.fault is Fault.PROOF_INVALID


def test_ids_and_derived_keys_never_change() -> None:
    # What these functions give is on disks and in upstreams' configurations: fixed for ever.
    assert KEY.public.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert node_id(KEY.public) == "node_kzdvvj2umnduyauf"
    assert inference_key(KEY, b"") == "wai_ik_cdCDqMu4dd6beqY2tREDcA_SfIm32z8u-RmAP69I1iE"


def test_no_two_starts_of_a_server_have_the_same_key() -> None:
    assert inference_key(KEY, b"one") != inference_key(KEY, b"two")
    assert inference_key(KEY, b"one") == inference_key(KEY, b"one")


def test_a_key_keeps_its_secret() -> None:
    assert NodeKey.from_bytes(KEY.to_bytes()) == KEY
    assert bytes(range(32)).hex() not in repr(KEY)
    assert repr(KEY.seed) not in repr(KEY)
    assert isinstance(RelayKey.generate(), RelayKey)
    for size in (0, 31, 33):
        with pytest.raises(AuthError):
            NodeKey.from_bytes(b"x" * size)
