"""Certificates without help: a real authority, strict, that refuses every second nonce."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.cluster import wai
from tests.harness.pebble import Pebble, pebble
from tests.harness.processes import Daemon, free_port
from tests.harness.real import require_real, script
from wai_protocol.invite import decode

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

DOMAIN = "llm.example.com"
LONG_S = 90 * 86400
SHORT_S = 9  # two thirds of it pass while the test looks
CALLERS = 4
RENEWALS = 2
RENEWED_S = 60.0
ISSUED = r"valid until"


@dataclass(frozen=True, slots=True)
class AcmeRelay:
    port: int
    data: Path
    daemon: Daemon
    authority: Pebble

    def trust(self) -> ssl.SSLContext:
        """A caller that believes the authority and nobody else."""
        return ssl.create_default_context(cadata=self.authority.root())


@contextmanager
def relay_with_authority(
    folder: Path, *options: str, lifetime_s: int = LONG_S, http_port: int = 0
) -> Iterator[AcmeRelay]:
    require_real("pebble")
    port = free_port()
    command = [script("wai"), "relay", "--data", str(folder / "relay")]
    command += ["--listen", f"127.0.0.1:{port}", "--tls", "acme", "--domain", DOMAIN]
    with pebble(
        folder / "ca", tls_port=port, http_port=http_port or free_port(), lifetime_s=lifetime_s
    ) as authority:
        env = {"WAI_RELAY_ACME_CA": str(authority.ca)}
        if http_port:
            env["WAI_RELAY_ACME_CHALLENGE"] = "http-01"
            env["WAI_RELAY_ACME_HTTP_LISTEN"] = f"127.0.0.1:{http_port}"
        command += ["--acme-directory", authority.directory, *options]
        with Daemon(command, log=folder / "relay.log", env=env) as daemon:
            daemon.wait_for_output(ISSUED)
            yield AcmeRelay(port, folder / "relay", daemon, authority)


async def ask(relay: AcmeRelay, trust: ssl.SSLContext) -> bytes:
    """A whole exchange on a new connection; the certificate's number. Raises if it is not good."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", relay.port, ssl=trust, server_hostname=DOMAIN
    )
    try:
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        return shown
    finally:
        writer.close()


async def test_the_first_certificate_is_got_on_the_relays_own_port(tmp_path: Path) -> None:
    with relay_with_authority(tmp_path, "--acme-email", "me@example.com") as relay:
        await ask(relay, relay.trust())
        # The certificate is not for 127.0.0.1, and commands here know the relay all the same.
        wai("key", "create", "app", "--data", relay.data)
        invite = json.loads(wai("invite", "create", "--data", relay.data, "--json"))
        assert decode(invite["invite"]).url == f"https://{DOMAIN}:{relay.port}"


async def test_port_80_is_the_other_way(tmp_path: Path) -> None:
    with relay_with_authority(tmp_path, http_port=free_port()) as relay:
        await ask(relay, relay.trust())


async def test_a_restart_shows_the_certificate_that_is_there(tmp_path: Path) -> None:
    with relay_with_authority(tmp_path) as relay:
        trust = relay.trust()
        shown = await ask(relay, trust)
        relay.daemon.stop()
        with Daemon(relay.daemon.argv, log=tmp_path / "again.log") as again:
            again.wait_for_output("relay ready on")
            assert await ask(relay, trust) == shown


async def test_no_handshake_fails_while_certificates_are_renewed(tmp_path: Path) -> None:
    with relay_with_authority(tmp_path, lifetime_s=SHORT_S) as relay:
        trust = relay.trust()
        shown: set[bytes] = set()
        asked = 0

        async def call() -> None:
            nonlocal asked
            while len(shown) <= RENEWALS:
                shown.add(await ask(relay, trust))
                asked += 1

        async with asyncio.timeout(RENEWED_S), asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(call())
        print(f"{asked} handshakes over {RENEWALS} renewals, none failed")
