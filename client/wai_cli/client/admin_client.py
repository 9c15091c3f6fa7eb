"""A client of the relay's admin API, with the standard library alone, so that commands start fast.

The relay is authenticated by its pin, its certificate or the system's trust store before the token
is sent. Connections go through a proxy that the environment names (`proxied`).
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from wai_protocol.errors import AuthError, Fault, RequestError, TransportError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_protocol.invite import pins_in

from .connecting import PlainConnection, SecureConnection
from .pin import spki_sha256
from .proxied import ProxiedConnection, proxy_to
from .target import Target

BASE: Final = "/admin/v1"
TIMEOUT_S: Final = 15.0  # without the hub, answers take milliseconds
HUB_TIMEOUT_S: Final = (
    60.0  # for calls that a node forwards to the hub: the relay waits 45 s for the node
)
MAX_ANSWER_BYTES: Final = 64 << 20  # 10,000 keys are 3 MB
_EXPIRED: Final = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED


class AdminClient:
    """One connection to a relay's admin API. Use it as a context manager."""

    def __init__(self, target: Target, timeout_s: float = TIMEOUT_S) -> None:
        self._target = target
        self._connection = _connection(target, timeout_s)

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> Any:
        """Send `GET /admin/v1` + `path`; return the decoded answer. Raises `WaiError`."""
        return self._call("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send POST with a JSON body; return the decoded answer. Raises `WaiError`."""
        return self._call("POST", path, body or {})

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """Send PATCH with a JSON body; return the decoded answer. Raises `WaiError`."""
        return self._call("PATCH", path, body)

    def delete(self, path: str) -> Any:
        """Send DELETE; return the decoded answer. Raises `WaiError`."""
        return self._call("DELETE", path, None)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        status, _, text = call(self._connection, self._target, method, BASE + path, body)
        return _checked(status, text, self._target)


@contextlib.contextmanager
def open_connection(target: Target, timeout_s: float) -> Iterator[http.client.HTTPConnection]:
    """Yield a connection to a relay that has been authenticated. Raises `WaiError`."""
    connection = _connection(target, timeout_s)
    try:
        _connect(connection, target)
        yield connection
    finally:
        connection.close()


def call(
    connection: http.client.HTTPConnection,
    target: Target,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    also: Mapping[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send a request with the target's token; return status, headers, body. Raises `WaiError`.

    `also`: other headers.
    """
    headers = dict(also or {})
    if target.token:
        headers["Authorization"] = f"Bearer {target.token}"
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(body).encode()
    _connect(connection, target)
    try:
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise _unreachable(target, error) from error


def stream(
    connection: http.client.HTTPConnection, target: Target, path: str
) -> http.client.HTTPResponse:
    """Send `GET /admin/v1` + `path`; return the answer, to be read in pieces. Raises `WaiError`."""
    _connect(connection, target)
    try:
        connection.request("GET", BASE + path, headers={"Authorization": f"Bearer {target.token}"})
        answer = connection.getresponse()
        if answer.status != 200:
            _checked(answer.status, answer.read(MAX_ANSWER_BYTES), target)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(target, error) from error
    return answer


def _connect(connection: http.client.HTTPConnection, target: Target) -> None:
    """Connect, and authenticate the relay before anything is sent to it."""
    if connection.sock is not None:
        return
    try:
        connection.connect()
    except OSError as error:
        connection.close()  # otherwise a socket whose TLS failed would count as connected
        raise _unreachable(target, error) from error
    if target.pin is None:
        return
    assert isinstance(connection.sock, ssl.SSLSocket)
    shown = connection.sock.getpeercert(binary_form=True) or b""
    try:
        key = spki_sha256(shown)
        good = any(hmac.compare_digest(key, pin) for pin in pins_in(target.pin))
    except ValueError:
        good = False
    if not good:
        connection.close()
        raise AuthError(
            f"what answers at {target.url} is not the relay: its certificate does not match the"
            " pin",
            Fault.PROOF_INVALID,
        )


def _connection(target: Target, timeout_s: float) -> http.client.HTTPConnection:
    parts = urlsplit(target.url)
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError as error:
        raise TransportError(f"{target.url} is not a URL: {error}") from error
    if parts.scheme == "http":
        if target.pin is not None:
            raise AuthError("a pin needs an https:// URL", Fault.PROOF_INVALID)
        return PlainConnection(host, port, timeout_s)
    context = tls_context(target)
    proxy = proxy_to(target.url)
    if proxy is not None:
        return ProxiedConnection(proxy, host, port, timeout_s, context)
    return SecureConnection(host, port, timeout_s, context)


def tls_context(target: Target) -> ssl.SSLContext:
    """Return a TLS context that trusts the relay's `ca`, or else the system's authorities.

    With a pin it trusts everything, and the caller compares the pin.
    """
    if target.pin is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the pin identifies the relay better than its name
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        return ssl.create_default_context(cafile=str(target.ca) if target.ca else None)
    except ssl.SSLError as error:
        raise RequestError(f"{target.ca} has no PEM certificate; copy relay.crt again") from error
    except OSError as error:
        raise RequestError(f"{target.ca} cannot be read: {error.strerror}") from error


def _checked(status: int, text: bytes, target: Target) -> Any:
    try:
        answer = read_json(text, Any, "the relay's answer", limit_bytes=MAX_ANSWER_BYTES)
    except ForeignJsonError:
        answer = None
    if 200 <= status < 300 and answer is not None:
        return answer
    detail = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(detail, dict) or not isinstance(detail.get("message"), str):
        raise TransportError(f"what answers at {target.url} is not a wai relay (HTTP {status})")
    if status == 401:
        raise AuthError(detail["message"], Fault.KEY_INVALID)
    if status == 404:
        raise RequestError(detail["message"], Fault.NOT_FOUND)
    raise WaiError(detail["message"])


def _unreachable(target: Target, error: Exception) -> WaiError:
    hint = f"; {target.start_hint}" if target.start_hint else ""
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == _EXPIRED:
        return AuthError(
            f"the certificate of {target.url} has expired: `wai doctor` on the relay's machine says"
            " what to do",
            Fault.PROOF_INVALID,
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthError(
            f"the certificate of {target.url} is not trusted ({error.verify_message}): give"
            " --ca with a copy of its relay.crt, or --pin",
            Fault.PROOF_INVALID,
        )
    if isinstance(error, ConnectionRefusedError):
        return TransportError(f"the relay at {target.url} is not running{hint}")
    if isinstance(error, socket.gaierror):
        return TransportError(f"the name in {target.url} is not known: {error.strerror}")
    if isinstance(error, TimeoutError):
        met = f" ({error.strerror})" if error.strerror else ""
        return TransportError(f"the relay at {target.url} did not answer in time{met}")
    if isinstance(error, http.client.RemoteDisconnected) and target.url.startswith("http:"):
        return TransportError(f"{target.url} hangs up: is its URL https://, with TLS?")
    if isinstance(error, ssl.SSLError):
        return TransportError(f"{target.url} speaks no TLS: is its URL http://, or another port?")
    return TransportError(f"the relay at {target.url} cannot be reached: {error}{hint}")
