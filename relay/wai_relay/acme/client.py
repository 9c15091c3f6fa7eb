"""An ACME client (RFC 8555): accounts, orders, challenges and certificates.

It sends requests and waits for results. `renewal` decides when to renew, serves the challenges and
stores the files.
"""

from __future__ import annotations

import asyncio
import datetime
import ssl
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from wai_protocol.errors import Fault, TransportError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_protocol.surface import Headers
from wai_transport.http_client import HttpClient
from wai_transport.http_proxy import DIRECT, ProxySettings
from wai_transport.origin import Origin

from .jose import AccountKey, base64url
from .schedule import Window

NONCE_TRIES: Final = 20
"""Tries with a new nonce. An authority with several front ends may refuse a nonce of another one;
if it refuses every second one, 20 tries fail once in a million."""
ANSWER_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 256 * 1024  # a chain of four RSA certificates has 8 KB
POLL_S: Final = 1.0
LONGEST_POLL_S: Final = 10.0  # a longer Retry-After is shortened to this
SETTLE_S: Final = 120.0
"""Limit for the validation of a challenge, or for issuing a certificate. Authorities validate from
several places, and issue within seconds."""
_USER_AGENT: Final = b"wai-relay"
_ERROR_PREFIX: Final = "urn:ietf:params:acme:error:"


class AcmeError(WaiError):
    """The authority refused a request or gave an invalid answer.

    `kind` is its error type without the URN's prefix (RFC 8555 section 6.7), "" if it gave none.
    """

    default_fault = Fault.UPSTREAM_BROKE

    def __init__(self, message: str, kind: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.kind = kind


class Order(msgspec.Struct, frozen=True):
    """An order in progress. The fields are URLs."""

    url: str
    authorizations: tuple[str, ...]
    finalize: str


class Challenge(msgspec.Struct, frozen=True):
    """A challenge by which the control of `name` is proven.

    `valid`: the authority has validated the name earlier, so that no proof is needed.
    """

    name: str
    kind: str
    url: str
    token: str
    authorization_url: str
    valid: bool


class AcmeClient:
    """One account at one authority. End it with `close`."""

    def __init__(
        self,
        directory_url: str,
        key: AccountKey,
        *,
        tls: ssl.SSLContext | None = None,
        proxies: ProxySettings = DIRECT,
    ) -> None:
        self._directory_url = directory_url
        self._key = key
        self._tls = tls
        self._proxies = proxies
        self._clients: dict[Origin, HttpClient] = {}
        self._directory: dict[str, Any] = {}
        self._nonce: str | None = None
        self._account_url: str | None = None

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.aclose()

    @property
    def offers_renewal_info(self) -> bool:
        """Whether the authority suggests renewal times (RFC 9773). Known after `open_account`."""
        return "renewalInfo" in self._directory

    async def open_account(self, email: str | None) -> None:
        """Find the account of the key, or create it, agreeing to the terms of service."""
        await self._load_directory()
        payload: dict[str, Any] = {"termsOfServiceAgreed": True}
        if email:
            payload["contact"] = [f"mailto:{email}"]
        _, headers, _ = await self._post(self._resource("newAccount"), payload)
        self._account_url = _location(headers)

    async def new_order(self, name: str, replaces: x509.Certificate | None = None) -> Order:
        """Order a certificate for `name`. `replaces`: the certificate that it will replace."""
        payload: dict[str, Any] = {"identifiers": [{"type": "dns", "value": name}]}
        if replaces is not None and self.offers_renewal_info:
            payload["replaces"] = certificate_id(replaces)
        _, headers, order = await self._post(self._resource("newOrder"), payload)
        return Order(
            _location(headers),
            tuple(_text(url) for url in _list(order, "authorizations")),
            _text(order.get("finalize")),
        )

    async def challenge(self, authorization_url: str, kind: str) -> Challenge:
        """Return the challenge of `kind` ("tls-alpn-01", "http-01") of an order's authorization."""
        answer = await self._get(authorization_url)
        name = _text(_map(answer.get("identifier")).get("value"))
        offered = [_map(challenge) for challenge in _list(answer, "challenges")]
        for one in offered:
            if one.get("type") == kind:
                return Challenge(
                    name,
                    kind,
                    _text(one.get("url")),
                    _text(one.get("token")),
                    authorization_url,
                    answer.get("status") == "valid",
                )
        kinds = ", ".join(str(one.get("type")) for one in offered)
        raise AcmeError(f"the authority does not offer {kind} for {name}, only: {kinds}")

    async def prove(self, challenge: Challenge) -> None:
        """Ask the authority to validate `challenge`, and wait for the result."""
        await self._post(challenge.url, {})
        answer = await self._settled(challenge.authorization_url, {"pending", "processing"})
        if answer.get("status") != "valid":
            raise AcmeError(
                f"the authority could not check {challenge.name} by {challenge.kind}:"
                f" {_detail_of(answer)}"
            )

    async def finalize(self, order: Order, key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
        """Finish `order`: send a signing request for `key`, and return the chain in PEM."""
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        payload = {"csr": base64url(request.public_bytes(Encoding.DER))}
        await self._post(order.finalize, payload)
        answer = await self._settled(order.url, {"pending", "ready", "processing"})
        if answer.get("status") != "valid":
            raise AcmeError(f"the authority did not issue a certificate: {_detail_of(answer)}")
        status, _, chain = await self._signed(_text(answer.get("certificate")), None)
        _check(status, chain)
        return chain

    async def renewal_window(self, certificate: x509.Certificate) -> Window | None:
        """Return when the authority suggests to renew `certificate`, None if it does not say."""
        await self._load_directory()
        if not self.offers_renewal_info:
            return None
        url = f"{self._resource('renewalInfo')}/{certificate_id(certificate)}"
        status, _, body = await self._send("GET", url, b"")
        _check(status, body)
        window = _map(_json(body).get("suggestedWindow"))
        return Window(_time(window.get("start")), _time(window.get("end")))

    # -- requests
    async def _load_directory(self) -> None:
        if not self._directory:
            status, _, body = await self._send("GET", self._directory_url, b"")
            _check(status, body)
            self._directory = _json(body)

    def _resource(self, name: str) -> str:
        return _text(self._directory.get(name))

    async def _get(self, url: str) -> dict[str, Any]:
        return (await self._post(url, None))[2]

    async def _post(
        self, url: str, payload: dict[str, Any] | None
    ) -> tuple[int, Headers, dict[str, Any]]:
        status, headers, body = await self._signed(url, payload)
        _check(status, body, _retry_after_s(headers))
        return status, headers, _json(body)

    async def _signed(self, url: str, payload: dict[str, Any] | None) -> tuple[int, Headers, bytes]:
        """Send a signed POST, again with a new nonce if the authority refuses the nonce."""
        for _ in range(NONCE_TRIES):
            nonce, self._nonce = self._nonce or await self._new_nonce(), None
            body = self._key.sign(url, nonce, payload, self._account_url)
            status, headers, answer = await self._send("POST", url, body)
            if status != 400 or _kind(answer) != "badNonce":
                return status, headers, answer
        raise AcmeError(f"the authority refused {NONCE_TRIES} nonces in a row", "badNonce")

    async def _new_nonce(self) -> str:
        _, headers, _ = await self._send("HEAD", self._resource("newNonce"), b"")
        nonce = self._nonce or _header(headers, b"replay-nonce")
        if not nonce:
            raise AcmeError("the authority gave no nonce")
        return nonce

    async def _send(self, method: str, url: str, body: bytes) -> tuple[int, Headers, bytes]:
        """Send one request, and keep the nonce of its answer for the next one."""
        base, slash, rest = url.removeprefix("https://").partition("/")
        if not url.startswith("https://"):
            raise AcmeError(f"the authority named {url!r}, which is not https")
        origin, _ = Origin.parse(f"https://{base}")
        client = self._clients.get(origin)
        if client is None:
            client = self._clients[origin] = HttpClient(
                origin, tls=self._tls, proxies=self._proxies
            )
        headers: Headers = [(b"user-agent", _USER_AGENT)]
        if body:
            headers.append((b"content-type", b"application/jose+json"))
        answer = await client.fetch(
            method,
            f"{slash or '/'}{rest}",
            headers,
            body,
            limit_bytes=MAX_ANSWER_BYTES,
            timeout_s=ANSWER_S,
        )
        self._nonce = _header(answer[1], b"replay-nonce") or self._nonce
        return answer

    async def _settled(self, url: str, unsettled: set[str]) -> dict[str, Any]:
        """Poll `url` until its status is not in `unsettled`, for at most `SETTLE_S`."""
        try:
            async with asyncio.timeout(SETTLE_S):
                while True:
                    _, headers, answer = await self._post(url, None)
                    if answer.get("status") not in unsettled:
                        return answer
                    asked_s = _retry_after_s(headers) or POLL_S
                    await asyncio.sleep(min(max(asked_s, 0.1), LONGEST_POLL_S))
        except TimeoutError:
            raise TransportError(
                f"the authority did not finish within {SETTLE_S:g} s", Fault.UPSTREAM_TIMEOUT
            ) from None


def certificate_id(certificate: x509.Certificate) -> str:
    """Return the id of a certificate (RFC 9773 section 4.1). Raises `AcmeError` if it has none."""
    try:
        found = certificate.extensions.get_extension_for_oid(
            ExtensionOID.AUTHORITY_KEY_IDENTIFIER
        ).value
    except x509.ExtensionNotFound:
        found = None
    if not isinstance(found, x509.AuthorityKeyIdentifier) or found.key_identifier is None:
        raise AcmeError("the certificate does not name its authority's key")
    number = certificate.serial_number
    serial = number.to_bytes(number.bit_length() // 8 + 1, "big")  # as in DER, with a sign bit of 0
    return f"{base64url(found.key_identifier)}.{base64url(serial)}"


# -- reading answers, whose sizes and types are checked
def _json(body: bytes) -> dict[str, Any]:
    try:
        return read_json(body, dict[str, Any], "the authority's answer")
    except ForeignJsonError as error:
        raise AcmeError(f"{error}; it begins with {body[:80]!r}") from error


def _map(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise AcmeError("the authority's answer lacks an object where one belongs")
    return value


def _list(answer: dict[str, Any], name: str) -> list[Any]:
    value = answer.get(name)
    if not isinstance(value, list):
        raise AcmeError(f"the authority's answer has no list {name!r}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise AcmeError("the authority's answer lacks a text where one belongs")
    return value


def _time(value: object) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(_text(value))
    except ValueError as error:
        raise AcmeError(f"the authority sent {value!r} where a time belongs") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _header(headers: Headers, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def _location(headers: Headers) -> str:
    return _text(_header(headers, b"location"))


def _retry_after_s(headers: Headers) -> float | None:
    """Return `Retry-After`, a number or a date, in seconds from now; None if there is none."""
    value = _header(headers, b"retry-after")
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    from email.utils import parsedate_to_datetime  # few authorities answer so

    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (until - datetime.datetime.now(datetime.UTC)).total_seconds()


def _kind(body: bytes) -> str:
    try:
        kind = read_json(body, dict[str, Any], "the authority's error").get("type")
    except ForeignJsonError:
        return ""
    return kind.removeprefix(_ERROR_PREFIX) if isinstance(kind, str) else ""


def _check(status: int, body: bytes, retry_after_s: float | None = None) -> None:
    if 200 <= status < 300:
        return
    kind = _kind(body)
    detail = _json(body).get("detail", "") if kind else ""
    said = f"{kind}: {detail}" if kind else repr(body[:200])
    message = f"the authority answered {status}, {said}"
    raise AcmeError(message, kind, retry_after_s=retry_after_s)


def _detail_of(answer: dict[str, Any]) -> str:
    """Return the authority's description of the error of an order or authorization."""
    found = [answer, *(one for one in answer.get("challenges") or [] if isinstance(one, dict))]
    for one in found:
        error = one.get("error")
        if isinstance(error, dict) and error.get("detail"):
            return str(error["detail"])[:500]
    return f"status {answer.get('status')!r}"
