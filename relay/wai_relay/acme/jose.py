"""The parts of JOSE that ACME needs: an account key and its signatures (RFC 7515, RFC 7638).

Only ES256 is supported, which every authority accepts. Nothing is verified here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

_COORDINATE_BYTES = 32  # size of a coordinate on P-256, and of each half of a signature


def base64url(data: bytes) -> str:
    """Encode in base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


class AccountKey:
    """The P-256 key that identifies an account at an authority."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        numbers = key.public_key().public_numbers()
        # In the order that RFC 7638 requires for the thumbprint.
        self.jwk = {
            "crv": "P-256",
            "kty": "EC",
            "x": base64url(numbers.x.to_bytes(_COORDINATE_BYTES, "big")),
            "y": base64url(numbers.y.to_bytes(_COORDINATE_BYTES, "big")),
        }

    @property
    def thumbprint(self) -> str:
        """The key's thumbprint (RFC 7638)."""
        text = json.dumps(self.jwk, separators=(",", ":"), sort_keys=True)
        return base64url(hashlib.sha256(text.encode()).digest())

    def authorization(self, token: str) -> str:
        """Return a challenge's key authorization (RFC 8555 section 8.1)."""
        return f"{token}.{self.thumbprint}"

    def sign(
        self, url: str, nonce: str, payload: dict[str, Any] | None, account_url: str | None
    ) -> bytes:
        """Return the body of a request, a flattened JWS (RFC 8555 section 6.2).

        `payload`: None for POST-as-GET. `account_url`: None if there is no account yet; the key
        itself is sent then.
        """
        head: dict[str, Any] = {"alg": "ES256", "nonce": nonce, "url": url}
        head.update({"jwk": self.jwk} if account_url is None else {"kid": account_url})
        protected = base64url(json.dumps(head).encode())
        body = "" if payload is None else base64url(json.dumps(payload).encode())
        der = self._key.sign(f"{protected}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
        signature = b"".join(
            half.to_bytes(_COORDINATE_BYTES, "big") for half in decode_dss_signature(der)
        )
        return json.dumps(
            {"protected": protected, "payload": body, "signature": base64url(signature)}
        ).encode()
