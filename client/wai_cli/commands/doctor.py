"""`wai doctor`: check each step from this machine to a model's answer, and say what to do.

On the relay's host it checks that relay; on a node's host the connection to the relay, and the
inference servers. Steps that depend on a failed one are skipped.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from wai_cli.checks.finding import Finding
from wai_cli.checks.own_node import own_node
from wai_cli.checks.own_upstreams import own_upstreams
from wai_cli.checks.public_address import public_address
from wai_cli.checks.whole_path import whole_path
from wai_cli.client.admin_client import call, open_connection
from wai_cli.client.connecting import connect
from wai_cli.client.proxied import proxy_to
from wai_cli.client.target import Target, add_target_options, find_target
from wai_cli.options.paths import node_data
from wai_cli.output.tables import print_json
from wai_protocol.errors import AuthError, StoreError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.folder import MAX_FILE_BYTES
from wai_transport.http_proxy import Proxy
from wai_transport.owner import as_owner, read_own

CONNECT_TIMEOUT_S: Final = 5.0
MAX_SKEW_S: Final = 60.0  # certificates and invites expire, and logs of two machines are compared


Check = Callable[[Target], Finding]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai doctor`."""
    parser.epilog = "examples:\n  wai doctor\n  wai doctor --relay https://relay.example"
    add_target_options(parser)
    nodes = parser.add_argument_group("on a node's host")
    nodes.add_argument(
        "--node-data", metavar="DIR", type=Path, help=f"the node's data folder ({node_data()})"
    )
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        type=Path,
        help="an API key to call with (on the relay's host one is lent for the test)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    found: list[Finding] = []
    for finding in _findings(parsed):
        found.append(finding)
        if not parsed.json:
            finding.show()
    if parsed.json:
        print_json(
            [{"check": f.check, "ok": f.ok, "text": f.text, "advice": f.advice} for f in found]
        )
    return 0 if all(finding.ok for finding in found) else 1


def _findings(parsed: argparse.Namespace) -> Iterator[Finding]:
    given = parsed.node_data is not None
    parsed.node_data = parsed.node_data or node_data()
    target = _target(parsed)
    if isinstance(target, Finding):
        yield target
    else:
        yield from _way_to_relay(target)
    node = own_node(parsed.node_data)
    if node is None and given:
        text = f"no node has joined with the data folder {parsed.node_data}"
        node = Finding("here", ok=False, text=text, advice=_WHICH_NODE)
    if node is not None:
        yield node
    yield own_upstreams(parsed.node_data, on_node=node is not None)
    if not isinstance(target, Finding):
        yield from whole_path(target, parsed.key_file)


def _target(parsed: argparse.Namespace) -> Target | Finding:
    """Return the relay to check: that of the options, else the one that this machine's node joined,
    or the finding that there is neither."""
    if parsed.relay is not None and parsed.token_file is None:
        # There is no token, so the steps that need one are skipped.
        parsed.token_file = Path("/dev/null")
    try:
        return find_target(parsed)
    except WaiError as error:
        joined = _joined_relay(parsed.node_data) if parsed.relay is None else None
        return joined or Finding("relay", ok=False, text=str(error), advice=_WHICH_RELAY)


_WHICH_RELAY: Final = (
    "start the relay, or say which one to check: --data DIR or --relay URL [--ca FILE]"
)


_WHICH_NODE: Final = (
    "give --node-data the folder that `wai node run` has as --data, or join with `wai node join`"
)


def _joined_relay(data: Path) -> Target | None:
    try:
        with as_owner(data):
            written = read_own(data / "membership.json", MAX_FILE_BYTES)
        joined = read_json(written or b"", dict[str, Any], "membership.json")
        pin = joined.get("pin")
        return Target(joined["url"], "", bytes.fromhex(pin) if pin else None)
    except (StoreError, ForeignJsonError, ValueError, KeyError, TypeError):
        return None


def _way_to_relay(target: Target) -> Iterator[Finding]:
    for check in (_dns, _port, _tls_and_health, _clock):
        try:
            finding = check(target)
        except WaiError as error:
            advice = _certificate_advice(target, error) or _ADVICE[check]
            finding = Finding(_NAMES[check], ok=False, text=str(error), advice=advice)
        yield finding
        if not finding.ok and check is not _clock:
            return
    public = public_address(target)
    if public is not None:
        yield public


def _dns(target: Target) -> Finding:
    proxy = proxy_to(target.url)
    host, port = (proxy.host, proxy.port) if proxy is not None else _address(target)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        text = f"the name {host} is not known here: {error.strerror or error}"
        return Finding("dns", ok=False, text=text, advice=_PROXY if proxy else _ADVICE[_dns])
    addresses = sorted({str(entry[4][0]) for entry in found})
    whose = "the proxy " if proxy is not None else ""
    return Finding("dns", ok=True, text=f"{whose}{host} is {', '.join(addresses)}")


def _port(target: Target) -> Finding:
    proxy = proxy_to(target.url)
    if proxy is not None:
        return _port_of(proxy)
    host, port = _address(target)
    start = time.monotonic()
    try:
        connect(host, port, CONNECT_TIMEOUT_S).close()
    except OSError as error:
        text = f"no connection to {host} port {port}: {error.strerror or error}"
        return Finding("port", ok=False, text=text, advice=target.start_hint or _ADVICE[_port])
    took_ms = (time.monotonic() - start) * 1000
    return Finding("port", ok=True, text=f"port {port} answers in {took_ms:.0f} ms")


def _port_of(proxy: Proxy) -> Finding:
    """Check that the proxy accepts connections; `_tls_and_health` sends CONNECT."""
    start = time.monotonic()
    try:
        connect(proxy.host, proxy.port, CONNECT_TIMEOUT_S).close()
    except OSError as error:
        text = f"no connection to the proxy {proxy}: {error.strerror or error}"
        return Finding("port", ok=False, text=text, advice=_PROXY)
    took_ms = (time.monotonic() - start) * 1000
    return Finding("port", ok=True, text=f"the proxy {proxy} answers in {took_ms:.0f} ms")


def _tls_and_health(target: Target) -> Finding:
    with open_connection(target, CONNECT_TIMEOUT_S) as connection:
        sock = connection.sock
        version = sock.version() if isinstance(sock, ssl.SSLSocket) else None
        status, _, text = call(connection, target, "GET", "/healthz")
    if status != 200:
        text_shown = f"/healthz answers {status}: {text[:200].decode(errors='replace')}"
        return Finding("tls", ok=False, text=text_shown, advice=_ADVICE[_tls_and_health])
    if not isinstance(sock, ssl.SSLSocket):
        return Finding("tls", ok=True, text="no TLS on this connection; the relay is healthy")
    how = "by its pin" if target.pin else "by the file given" if target.ca else "by the system"
    return Finding("tls", ok=True, text=f"{version}, the relay is known {how}, and is healthy")


def _certificate_advice(target: Target, error: WaiError) -> str:
    """Return what to do about an error of the certificate; "" for other errors."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _OUT_OF_DATE:
        return f"is this clock right ({time.strftime('%Y-%m-%d %H:%M %Z')})? {_NOT_RENEWED}"
    return _PIN if isinstance(error, AuthError) and target.pin is not None else ""


def _clock(target: Target) -> Finding:
    with open_connection(target, CONNECT_TIMEOUT_S) as connection:
        _, headers, _ = call(connection, target, "GET", "/healthz")
    try:
        skew_s = time.time() - parsedate_to_datetime(headers.get("date", "")).timestamp()
    except ValueError:
        return Finding("clock", ok=True, text="the relay does not tell its time")
    text = f"this clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the relay's"
    good = abs(skew_s) <= MAX_SKEW_S
    return Finding("clock", ok=good, text=text, advice="" if good else _ADVICE[_clock])


def _address(target: Target) -> tuple[str, int]:
    parts = urlsplit(target.url)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


_PROXY: Final = "HTTPS_PROXY names it: is that right? NO_PROXY=NAME reaches a name without it"
_PIN: Final = (
    "something else answers there, or the relay was set up again and has another key: then this"
    " command needs the new pin, and each node a new invite"
)
_OUT_OF_DATE: Final = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, …_HAS_EXPIRED
_NOT_RENEWED: Final = "If so, the relay has not renewed its certificate; its log says why"
_NAMES: Final[dict[Check, str]] = {
    _dns: "dns",
    _port: "port",
    _tls_and_health: "tls",
    _clock: "clock",
}
_ADVICE: Final[dict[Check, str]] = {
    _dns: "check the name, and this machine's resolver (/etc/resolv.conf)",
    _port: "is the relay running, and does a firewall let this port in?",
    _tls_and_health: "is it this relay that answers? Give --ca with a copy of its relay.crt",
    _clock: "set this machine's clock (timedatectl set-ntp true)",
}
