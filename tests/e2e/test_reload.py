"""SIGHUP: a replaced certificate is shown, and one that is no pair changes nothing."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

import pytest
import trustme

from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import script

pytestmark = pytest.mark.e2e


def test_a_replaced_certificate_is_shown_after_a_reload(tmp_path: Path) -> None:
    port, chain, key = free_port(), tmp_path / "chain.pem", tmp_path / "key.pem"

    def replace() -> str:
        pair = trustme.CA().issue_cert("localhost")
        chain.write_bytes(pair.cert_chain_pems[0].bytes())
        key.write_bytes(pair.private_key_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(chain.read_text()).hex()

    def shown() -> str:
        pem = ssl.get_server_certificate(("127.0.0.1", port))
        return ssl.PEM_cert_to_DER_cert(pem).hex()

    first = replace()
    command = [script("wai"), "relay", "--data", str(tmp_path / "relay")]
    command += ["--listen", f"127.0.0.1:{port}", "--tls", f"{chain},{key}"]
    with Daemon(command, log=tmp_path / "relay.log") as relay:
        relay.wait_for_output("relay ready on")
        assert shown() == first
        second = replace()
        relay.send(signal.SIGHUP)
        wait_until(lambda: shown() == second, "the new certificate is not shown")
        key.write_text("not a key")
        relay.send(signal.SIGHUP)
        relay.wait_for_output("the old one stays")
        assert shown() == second
