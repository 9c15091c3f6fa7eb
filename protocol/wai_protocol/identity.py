"""Who a node or a relay is: an Ed25519 key, its id, and the key for the upstream that follows.

Signing and deriving only: keys are stored by their owners (`wai_node`, `wai_relay.identity`), and
what is signed is the handshake's transcript (SPEC section 3). Nothing here prints a secret.
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
NODE_ID_CHARS: Final = 16  # 80 bits of SHA-256: no two nodes of one relay meet by chance
NODE_ID_PREFIX: Final = "node_"
INFERENCE_KEY_PREFIX: Final = "wai_ik_"
INFERENCE_KEY_INFO: Final = b"wai/1 inference key"
NONCE_BYTES: Final = 16  # no two starts of a server get the same one by chance


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
        """A new key from the system's random source."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_bytes(cls, seed: bytes) -> Self:
        """The key that `to_bytes` gave. Raises `AuthError` if it is not 32 bytes."""
        return cls(seed)

    def to_bytes(self) -> bytes:
        """The secret half, 32 bytes, for a file with mode 0600."""
        return self.seed

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature over `data`."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)


class NodeKey(IdentityKey):
    """A node's key: made on the node, never leaves it."""

    __slots__ = ()


class RelayKey(IdentityKey):
    """A relay's key: what an invite names, and what a node's proof is bound to."""

    __slots__ = ()


def verify(public: bytes, signature: bytes, data: bytes) -> None:
    """Check that the owner of `public` signed `data`. Raises `AuthError` (PROOF_INVALID) if not."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise AuthError("the public key or the signature has the wrong length", Fault.PROOF_INVALID)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError) as error:
        raise AuthError("the signature does not match", Fault.PROOF_INVALID) from error


def node_id(public: bytes) -> str:
    """The id of the node with this public key: `node_` and 16 characters of base32."""
    digest = base64.b32encode(hashlib.sha256(public).digest()).decode().lower()
    return NODE_ID_PREFIX + digest[:NODE_ID_CHARS]


def inference_key(node_key: NodeKey, nonce: bytes) -> str:
    """The key that one start of a managed server demands; the relay cannot work it out.

    `nonce` is fresh for each start, so that a key that leaks opens no other server.
    """
    derived = HKDF(SHA256(), KEY_BYTES, salt=nonce, info=INFERENCE_KEY_INFO).derive(node_key.seed)
    return INFERENCE_KEY_PREFIX + base64.urlsafe_b64encode(derived).rstrip(b"=").decode()
