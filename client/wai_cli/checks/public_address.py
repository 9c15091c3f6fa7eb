"""Check for `wai doctor`, on the relay's host, whether the address in its invites leads to it.

It connects as nodes do: by name and port, and with the certificate that they trust. Other commands
on the relay's host use loopback and the pin, which may work although the public address does not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from wai_api.relays import RelayList
from wai_cli.client.admin_client import AdminClient, call, open_connection
from wai_cli.client.answers import read_as
from wai_cli.client.target import Target
from wai_protocol.errors import AuthError, WaiError

from .finding import Finding

TIMEOUT_S: Final = 5.0
_CHECK: Final = "public"
_WAY: Final = (
    "does the name resolve to this machine, and does the firewall let the port in? If the router"
    " can't connect from inside to its own address, check from elsewhere: wai doctor --relay URL"
)
_CERTIFICATE: Final = (
    "with ACME the relay's log (wai.acme) says why there is none: port 443 of the name must lead"
    " here, or port 80 for http-01"
)
_PROXY_KEY: Final = (
    "give the relay --proxy-pin with the SHA-256 of the proxy's public key, and let nodes join"
    " again: docs/behind-a-proxy.md says how"
)
_PROXY_CHANGED: Final = (
    "does the proxy have a new key? Then give the relay --proxy-pin with both, and let nodes join"
    " again; if not, somebody intercepts the connection"
)
_OTHER: Final = "something else answers there: does the name resolve to this machine?"


def public_address(target: Target) -> Finding | None:
    """Check the public address; None if it was checked already or is not known."""
    if target.start_hint is None:
        return None
    try:
        with AdminClient(target) as relay:
            who = relay.get("/whoami")
        url, pin = str(who["url"]), who.get("pin")
    except (WaiError, KeyError) as error:
        return Finding(_CHECK, ok=False, text=f"the relay does not say its address: {error}")
    if url == target.url:
        return None
    public = Target(url, "", bytes.fromhex(pin) if pin else None)
    try:
        with open_connection(public, TIMEOUT_S) as connection:
            status, _, _ = call(connection, public, "GET", "/healthz")
    except AuthError as error:
        if (name := _relay_at(target, public)) is not None:
            return Finding(_CHECK, ok=True, text=f"{url} leads to {name}, a relay of this fleet")
        if pin:
            advice = _PROXY_CHANGED if target.url.startswith("http:") else _OTHER
            return Finding(_CHECK, ok=False, text=str(error), advice=advice)
        why = getattr(error.__cause__, "verify_message", str(error))
        text = f"nodes and callers refuse the certificate that {url} shows: {why}"
        return Finding(_CHECK, ok=False, text=text, advice=_CERTIFICATE)
    except WaiError as error:
        return Finding(_CHECK, ok=False, text=str(error), advice=_WAY)
    if status != 200:
        return Finding(_CHECK, ok=False, text=f"{url}/healthz answers {status}", advice=_OTHER)
    text = f"nodes and callers reach it at {url}"
    if target.url.startswith("http:") and not pin:
        text += (
            ", where a proxy ends TLS; nodes do not know its key, so they believe whoever shows a"
            " certificate for that name"
        )
        return Finding(_CHECK, ok=True, text=text, advice=_PROXY_KEY)
    return Finding(_CHECK, ok=True, text=text)


def _relay_at(target: Target, public: Target) -> str | None:
    """The name of the relay of the fleet that answers at the public address, if one does."""
    try:
        with AdminClient(target) as relay:
            others = read_as(RelayList, relay.get("/relays")).data
    except WaiError:
        return None
    for one in others:
        if one.pin is None:
            continue
        try:
            with open_connection(replace(public, pin=bytes.fromhex(one.pin)), TIMEOUT_S):
                return one.name
        except WaiError:
            continue
    return None
