"""The identity of a node or a relay: an Ed25519 key, the id made from it, and a derived key.

This module signs and derives only. Keys are stored by `wai_node` and `wai_relay.identity`; what is
signed is the transcript of the handshake (SPEC section 3). Nothing here prints a secret.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import AuthError, Fault

KEY_BYTES: Final = 32  # an Ed25519 seed, and an Ed25519 public key (RFC 8032)
SIGNATURE_BYTES: Final = 64
NODE_ID_CHARS: Final = 16  # 80 bits of SHA-256: no collision by chance among a relay's nodes
NODE_ID_PREFIX: Final = "node_"
RELAY_ID_PREFIX: Final = "relay_"
INFERENCE_KEY_PREFIX: Final = "wai_ik_"
INFERENCE_KEY_INFO: Final = b"wai/1 inference key"
NONCE_BYTES: Final = 16  # 128 bits: no collision by chance among the starts of a server


@dataclass(frozen=True, slots=True)
class IdentityKey:
    """A long-lived Ed25519 key pair. Its `repr` shows the public half only."""

    seed: bytes = field(repr=False)
    public: bytes = field(init=False)

    def __post_init__(self) -> None:
        if len(self.seed) != KEY_BYTES:
            raise AuthError(f"an Ed25519 key has {KEY_BYTES} bytes, this one {len(self.seed)}")
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        object.__setattr__(self, "public", public)

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the system's random source."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_bytes(cls, seed: bytes) -> Self:
        """Make a key from the bytes that `to_bytes` returned.

        Raises `AuthError` if there are not 32 of them.
        """
        return cls(seed)

    def to_bytes(self) -> bytes:
        """Return the secret half, 32 bytes, to be kept in a file with mode 0600."""
        return self.seed

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of `data`."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)


class NodeKey(IdentityKey):
    """A node's key. It is made on the node and never leaves it."""

    __slots__ = ()


class RelayKey(IdentityKey):
    """A relay's key. An invite names its public half, and a node's proof is bound to that."""

    __slots__ = ()


def verify(public: bytes, signature: bytes, data: bytes) -> None:
    """Check that `signature` of `data` was made with the key `public`.

    Raises `AuthError` (PROOF_INVALID) if it was not.
    """
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise AuthError("the public key or the signature has the wrong length", Fault.PROOF_INVALID)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError) as error:
        raise AuthError("the signature does not match", Fault.PROOF_INVALID) from error


def node_id(public: bytes) -> str:
    """Return the id of the node with this public key: `node_` and 16 characters of base32."""
    digest = base64.b32encode(hashlib.sha256(public).digest()).decode().lower()
    return NODE_ID_PREFIX + digest[:NODE_ID_CHARS]


def relay_id(public: bytes) -> str:
    """Return the id of the relay with this public key: `relay_` and 16 characters of base32."""
    digest = base64.b32encode(hashlib.sha256(public).digest()).decode().lower()
    return RELAY_ID_PREFIX + digest[:NODE_ID_CHARS]


def inference_key(node_key: NodeKey, nonce: bytes) -> str:
    """Derive the API key that a managed server requires; the relay cannot compute it.

    `nonce` is new for each start of a server, so that a leaked key is of no use for another one.
    """
    derived = HKDF(SHA256(), KEY_BYTES, salt=nonce, info=INFERENCE_KEY_INFO).derive(node_key.seed)
    return INFERENCE_KEY_PREFIX + base64.urlsafe_b64encode(derived).rstrip(b"=").decode()
