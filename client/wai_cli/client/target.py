"""Determine which relay a command talks to, how to authenticate it, and with which token.

On the relay's host its data folder has all of it: `relay.json` (URL and pin, while it runs) and
`admin.token`. Elsewhere the options say it: `--relay URL --token-file FILE`, with `--pin` or `--ca`
if the system does not trust the certificate.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from wai_cli.options.paths import add_data_option, relay_data
from wai_protocol.errors import RequestError, StoreError, WaiError
from wai_protocol.foreign_json import read_json
from wai_transport.owner import as_owner, read_own

MAX_FILE_BYTES: Final = 64 * 1024
PIN_HEX_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Target:
    """A relay: its `url`, and an admin `token`.

    `pin` (32 bytes) or `ca` (a PEM file) authenticate it; without either the system must trust its
    certificate. `start_hint` says how to start it, if it is on this machine.
    """

    url: str
    token: str = field(repr=False)
    pin: bytes | None = None
    ca: Path | None = None
    start_hint: str | None = None


def add_target_options(parser: argparse.ArgumentParser, *, data_above: bool = False) -> None:
    """Add the options that `find_target` reads; `data_above`: see `add_data_option`."""
    add_data_option(parser, relay_data(), "relay", above=data_above)
    parser.add_argument(
        "--relay", metavar="URL", help="a relay on another machine: its https:// URL"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", type=Path, help="with --relay: an admin token, in a file"
    )
    known = parser.add_mutually_exclusive_group()
    known.add_argument(
        "--pin", metavar="HEX", help="with --relay: SHA-256 of its certificate's public key"
    )
    known.add_argument(
        "--ca", metavar="FILE", type=Path, help="with --relay: a copy of its relay.crt"
    )


def find_target(parsed: argparse.Namespace) -> Target:
    """Return the relay that the options name. Raises `WaiError`, which says what is missing."""
    if parsed.relay is None:
        if parsed.token_file or parsed.pin or parsed.ca:
            raise RequestError("--token-file, --pin and --ca need --relay URL")
        return local_target(parsed.data)
    if parsed.token_file is None:
        raise RequestError(
            "--relay needs --token-file FILE: a copy of admin.token from the relay's data folder"
        )
    if not _is_url(parsed.relay):
        raise RequestError("--relay is a URL: https://HOST[:PORT]")
    token = _read(parsed.token_file).strip()
    if not all(char.isprintable() and char != " " for char in token):
        raise RequestError(f"{parsed.token_file} is no admin token: that is one word in one line")
    return Target(parsed.relay, token, _pin(parsed.pin), parsed.ca)


def local_target(data: Path) -> Target:
    """Return the relay that runs with this data folder. Raises `StoreError` if none does."""
    hint = f"start it with `wai relay --data {data}`"
    file = data / "relay.json"
    with as_owner(data):
        written = read_own(file, MAX_FILE_BYTES)
        token = read_own(data / "admin.token", MAX_FILE_BYTES)
    if written is None:
        raise StoreError(f"no relay runs with the data folder {data}: {hint}")
    if token is None:
        raise StoreError(f"there is no file {data / 'admin.token'}")
    try:
        running = read_json(written, dict[str, Any], str(file))
        url, pin = running["url"], _pin(running["pin"])
        host = urlsplit(url).hostname or ""
    except (WaiError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{file} is damaged; restart the relay") from error
    if not _is_url(url) or (pin is None and not is_own_address(host)):
        raise StoreError(
            f"{file} names {url}, which is not an address of this machine, so the token is not sent"
            " there. Restart the relay"
        )
    return Target(url, _text(data / "admin.token", token).strip(), pin, start_hint=hint)


def is_own_address(host: str) -> bool:
    """Return whether `host`, an address or localhost, is this machine."""
    if host == "localhost":
        return True
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))  # fails for other machines' addresses
    except (ValueError, OSError):
        return False
    return True


def _read(path: Path) -> str:
    """Return the text of a small file. Raises `StoreError` if it can't be read."""
    try:
        with path.open("rb") as file:
            return _text(path, file.read(MAX_FILE_BYTES))
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {path}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("ascii")
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not a file that wai wrote") from error


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _pin(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        pin = bytes.fromhex(text)
    except ValueError:
        pin = b""
    if len(pin) * 2 != PIN_HEX_CHARS:
        raise RequestError(f"a pin is {PIN_HEX_CHARS} hexadecimal digits")
    return pin
