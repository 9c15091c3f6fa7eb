"""The one line that makes a machine a node, as the dashboard and `wai invite create` show it."""

from __future__ import annotations

import base64
import shlex

from wai_protocol.invite import pins_in
from wai_relay.fleet.invites import InviteAddress


def pinned_public_key(pin: bytes) -> str:
    """A pin as curl's `--pinnedpubkey` takes it."""
    return ";".join(f"sha256//{base64.b64encode(one).decode()}" for one in pins_in(pin))


def one_line(address: InviteAddress, invite: str) -> str:
    """A command for a POSIX shell with curl, which joins by `invite`. Options may follow it.

    The invite is put before the script, on the shell's standard input: `echo` is a part of the
    shell, and so nothing that other users see in the list of processes has it, with sudo neither.

    A relay with a certificate of its own is known by its pin, the script too: curl checks that pin
    also with -k, which only has it ask for no authority (and leaves out -L: we send nobody away).
    """
    if address.pin is None:
        curl = "curl -fsSL"
    else:
        curl = f"curl -fsSk --pinnedpubkey '{pinned_public_key(address.pin)}'"
    script = shlex.quote(address.url.rstrip("/") + "/install.sh")
    return f"{curl} {script} | (echo WAI_INVITE={shlex.quote(invite)} ; cat) | sh -s --"
