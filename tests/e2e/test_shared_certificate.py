"""Relays with one domain have one certificate, whichever of them the authority meets."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness.cluster import wai
from tests.harness.counting_upstream import counting_upstream
from tests.harness.pebble import Pebble, pebble
from tests.harness.postgres import PostgresServer
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import require_real, script
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.target import local_target

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(300)]

DOMAIN = "llm.example.com"
LONG_S = 90 * 86400
SHORT_S = 12


@dataclass(frozen=True, slots=True)
class Pair:
    """The port of the relay that gets the certificate, that of the other one, and the database."""

    renewing: int
    other: int
    authority: Pebble
    server: PostgresServer
    folder: Path


@contextmanager
def a_pair(folder: Path, challenge: str, lifetime_s: int = LONG_S) -> Iterator[Pair]:
    """Two relays; the authority checks the name at the one that does not ask it."""
    require_real("pebble")
    (folder / "cluster.key").write_text("0123456789abcdef0123456789abcdef\n")
    renewing, other = free_port(), free_port()
    web = [free_port(), free_port()]
    with ExitStack() as ending:
        server = ending.enter_context(PostgresServer())
        url = server.create_database("fleet")
        authority = ending.enter_context(
            pebble(folder / "ca", tls_port=other, http_port=web[1], lifetime_s=lifetime_s)
        )
        env = {
            "WAI_RELAY_ACME_CA": str(authority.ca),
            "WAI_RELAY_ACME_CHALLENGE": challenge,
            "WAI_RELAY_CLUSTER_KEY_FILE": str(folder / "cluster.key"),
        }
        for port, web_port in ((renewing, web[0]), (other, web[1])):
            command = [script("wai"), "relay", "--data", str(folder / str(port))]
            command += ["--listen", f"127.0.0.1:{port}", "--tls", "acme", "--domain", DOMAIN]
            command += ["--acme-directory", authority.directory, "--database", url]
            command += ["--node-url", f"https://localhost:{port}"]
            daemon = ending.enter_context(
                Daemon(
                    command,
                    log=folder / f"{port}.log",
                    env={**env, "WAI_RELAY_ACME_HTTP_LISTEN": f"127.0.0.1:{web_port}"},
                )
            )
            daemon.wait_for_output("relay ready")
        yield Pair(renewing, other, authority, server, folder)


def shown(port: int) -> bytes:
    """The certificate that a relay shows, whoever signed it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=DOMAIN) as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def is_trusted(port: int, root: str) -> bool:
    context = ssl.create_default_context(cadata=root)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=DOMAIN),
        ):
            return True
    except ssl.SSLError:
        return False


@pytest.mark.parametrize("challenge", ["tls-alpn-01", "http-01"])
def test_the_authority_meets_the_relay_that_did_not_ask_it(tmp_path: Path, challenge: str) -> None:
    with a_pair(tmp_path, challenge) as pair:
        root = pair.authority.root()
        for port in (pair.renewing, pair.other):
            wait_until(lambda port=port: is_trusted(port, root), "no certificate")  # type: ignore[misc]
        assert shown(pair.renewing) == shown(pair.other)
        query = "SELECT name, encode(sealed, 'hex') FROM shared_files"
        rows = [row.split("|") for row in pair.server.execute(query, "fleet")]
        assert {name for name, _ in rows} == {"acme.pem", "acme-account.key"}
        assert b"PRIVATE KEY" not in b"".join(bytes.fromhex(sealed) for _, sealed in rows)


def test_a_node_expects_the_domains_certificate_at_each_relay(tmp_path: Path) -> None:
    with a_pair(tmp_path, "tls-alpn-01") as pair, counting_upstream() as upstream:
        root = tmp_path / "root.pem"
        root.write_text(pair.authority.root())
        for port in (pair.renewing, pair.other):
            wait_until(lambda port=port: is_trusted(port, root.read_text()), "no certificate")  # type: ignore[misc]
        folders = [tmp_path / str(port) for port in (pair.renewing, pair.other)]
        invite = admin(folders[0], "post", "/invites")["invite"]
        home, env = tmp_path / "box", {**os.environ, "SSL_CERT_FILE": str(root)}
        wai("node", "join", invite, "--data", home, "--name", "box", env=env)
        command = [script("wai"), "node", "run", "--data", str(home), "--upstream", upstream.url]
        with Daemon(command, log=tmp_path / "node.log", env={"SSL_CERT_FILE": str(root)}):
            for folder in folders:
                wait_until(partial(serves, folder), "the node has no session there")
            told = admin(folders[1], "get", "/requests")  # asks the other relay, by its pin
            assert told["data"] == []


def admin(folder: Path, method: str, path: str) -> Any:
    with AdminClient(local_target(folder)) as relay:
        return getattr(relay, method)(path)


def serves(folder: Path) -> bool:
    return [node["state"] for node in admin(folder, "get", "/nodes")["data"]] == ["ready"]


def test_a_renewed_certificate_is_shown_by_all_relays(tmp_path: Path) -> None:
    with a_pair(tmp_path, "tls-alpn-01", SHORT_S) as pair:
        root = pair.authority.root()
        wait_until(lambda: is_trusted(pair.other, root), "no certificate")
        first = shown(pair.other)
        wait_until(lambda: shown(pair.other) != first, "it is not renewed")
        wait_until(lambda: shown(pair.other) == shown(pair.renewing), "they show different ones")
