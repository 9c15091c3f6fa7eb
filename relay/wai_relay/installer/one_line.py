"""Build the command that installs a node, as the dashboard and `wai invite create` show it."""

from __future__ import annotations

import base64
import shlex

from wai_protocol.invite import pins_in
from wai_relay.fleet.invites import InviteAddress


def pinned_public_key(pin: bytes) -> str:
    """Return a pin in the form of curl's option `--pinnedpubkey`."""
    return ";".join(f"sha256//{base64.b64encode(one).decode()}" for one in pins_in(pin))


def one_line(address: InviteAddress, invite: str) -> str:
    """Return a command for a POSIX shell with curl that installs a node and joins with `invite`.

    Options may be appended. The invite is written before the script to the shell's standard input.
    `echo` is a shell built-in, so that the invite is not visible in the list of processes, not even
    with sudo.

    If the relay has a self-signed certificate, curl verifies it by the pin. It checks the pin even
    with -k, which only turns off the check by certificate authorities. -L is left out then, because
    the relay never redirects.
    """
    if address.pin is None:
        curl = "curl -fsSL"
    else:
        curl = f"curl -fsSk --pinnedpubkey '{pinned_public_key(address.pin)}'"
    script = shlex.quote(address.url.rstrip("/") + "/install.sh")
    return f"{curl} {script} | (echo WAI_INVITE={shlex.quote(invite)} ; cat) | sh -s --"
