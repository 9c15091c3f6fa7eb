"""A proxy ends TLS in front of the relay: nodes know its key by their invite, and no other."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.harness.cluster import CommandError, wai
from tests.harness.processes import Daemon, free_port
from tests.harness.real import script
from tests.harness.tls_proxy import tls_proxy
from wai_protocol.invite import decode, pins_in

pytestmark = pytest.mark.e2e
NEXT = "ab" * 32  # the hash of a key that will replace the proxy's


def relay(folder: Path, port: int, *options: str) -> Daemon:
    command = [script("wai"), "relay", "--data", str(folder), "--listen", f"127.0.0.1:{port}"]
    log = folder.parent / f"relay-{time.monotonic_ns()}.log"
    return Daemon([*command, "--tls", "off", *options], log=log)


def test_a_node_joins_by_the_proxys_key_and_believes_no_other(tmp_path: Path) -> None:
    data, port = tmp_path / "relay", free_port()
    with (
        tls_proxy(tmp_path / "proxy", port) as proxy,
        tls_proxy(tmp_path / "between", port) as between,
        relay(
            *(data, port, "--public-url", proxy.url),
            *("--proxy-pin", f"{proxy.pin.hex()},{NEXT}"),
        ) as running,
    ):
        running.wait_for_output("relay ready")
        created = json.loads(wai("invite", "create", "--data", data, "--json"))
        invite = decode(created["invite"])
        assert invite.pin is not None
        assert pins_in(invite.pin) == [proxy.pin, bytes.fromhex(NEXT)]
        assert created["command"].count("sha256//") == 2

        address = between.url.removeprefix("https://")
        with pytest.raises(CommandError, match="not the pinned one"):
            wai("node", "join", created["invite"], "--data", tmp_path / "a", "--relay", address)
        wai("node", "join", created["invite"], "--data", tmp_path / "a", "--name", "box")

        command = [script("wai"), "node", "run", "--data", str(tmp_path / "a")]
        with Daemon(command, log=tmp_path / "node.log") as node:
            node.wait_for_output("connected to the relay as box")
        with Daemon([*command, "--relay", address], log=tmp_path / "lured.log") as lured:
            lured.wait_for_output("not the pinned one")


def test_a_proxy_key_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    for options in (
        ("--proxy-pin", NEXT),  # the relay ends TLS itself
        ("--tls", "off", "--proxy-pin", NEXT),  # no address of the proxy
        ("--tls", "off", "--public-url", "https://a.example", "--proxy-pin", "ab"),
        ("--tls", "off", "--public-url", "https://a.example", "--proxy-pin", ",".join([NEXT] * 5)),
    ):
        with pytest.raises(CommandError, match="proxy_key_sha256"):
            wai("relay", "--data", tmp_path / "relay", *options)


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ("", "nodes do not know its key"),
        (NEXT, "does not match the pin"),
        ("its own", "nodes and callers reach it at"),
    ],
)
def test_doctor_says_whether_nodes_know_the_proxys_key(
    tmp_path: Path, known: str, says: str
) -> None:
    data, port = tmp_path / "relay", free_port()
    with tls_proxy(tmp_path / "proxy", port) as proxy:
        pin = proxy.pin.hex() if known == "its own" else known
        with relay(data, port, "--public-url", proxy.url, "--proxy-pin", pin) as running:
            running.wait_for_output("relay ready")
            shown = doctor(data, trusting=tmp_path / "proxy" / "relay.crt")
    assert says in shown
    assert ("nodes do not know" in shown) == (not known)


def doctor(data: Path, trusting: Path) -> str:
    options = ("--data", data, "--node-data", data.parent / "no-node")
    try:
        return wai("doctor", *options, env={"SSL_CERT_FILE": str(trusting)})
    except CommandError as error:  # no model is served
        return str(error)
