"""docs/several-relays.md: its load balancers send callers to the relays that are ready."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.docs.blocks import the_block
from tests.harness.caller import chat
from tests.harness.cluster import Cluster
from tests.harness.counting_upstream import MODEL, counting_upstream
from tests.harness.front_proxy import caddy_with, haproxy_with
from tests.harness.postgres import PostgresServer
from tests.harness.processes import free_port, wait_until
from tests.harness.real import require_real
from tests.harness.relays import own_id, relays

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(300)]

PAGE: Final = "several-relays.md"
ASKED: Final = 8
Runs = Callable[[Path, str, int], AbstractContextManager[None]]


def unverified() -> ssl.SSLContext:
    """The relays of this test have certificates of their own, of which callers know none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ask(port: int, secret: str) -> int:
    """The status of a chat completion by the load balancer, on a new connection; 0 without one."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=unverified())
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", chat(MODEL, max_tokens=2), headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def served_by(relay: Cluster) -> set[str]:
    rows = relay.admin("get", f"/requests/finished?limit={ASKED}")["data"]
    return {row["relay"] for row in rows}


@pytest.mark.parametrize("name", ["haproxy", "caddy"])
def test_callers_go_to_the_relays_that_are_ready(tmp_path: Path, name: str) -> None:
    require_real(name)
    port = free_port()
    with (
        counting_upstream() as upstream,
        PostgresServer() as server,
        relays(tmp_path, server.create_database("fleet"), 2) as running,
    ):
        first, second = running
        first.add_node("box", upstream.url)
        wait_until(lambda: second.state_of("box") == "ready", "the node is not at the second")
        secret = first.create_key("app").secret
        with _RUNS[name](tmp_path, _text(name, port, running), port):
            wait_until(lambda: ask(port, secret) == 200, "nobody answers")
            assert [ask(port, secret) for _ in range(ASKED)] == [200] * ASKED
            wait_until(lambda: len(served_by(second)) == 2, "callers go to one relay alone")

            second.admin("post", f"/relays/{own_id(second)}/drain")
            wait_until(partial(_goes_to_one, first, port, secret), "callers go to a drained relay")
            second.relay.stop()
            assert [ask(port, secret) for _ in range(ASKED)] == [200] * ASKED


def _goes_to_one(relay: Cluster, port: int, secret: str) -> bool:
    for _ in range(ASKED):
        ask(port, secret)
    return len(served_by(relay)) == 1


def _text(name: str, port: int, running: list[Cluster]) -> str:
    """The page's block, but for names and ports."""
    first, second = (relay.port for relay in running)
    replaced = {
        "haproxy": {
            "bind :443": f"bind 127.0.0.1:{port}",
            "relay1.example.com:443": f"127.0.0.1:{first}",
            "relay2.example.com:443": f"127.0.0.1:{second}",
        },
        "caddy": {
            "llm.example.com {": f"https://127.0.0.1:{port} {{\n    tls internal",
            # The page's relays end no TLS; those of this test do.
            "relay1.internal:8080": f"https://127.0.0.1:{first}",
            "relay2.internal:8080": f"https://127.0.0.1:{second}",
            "flush_interval -1": "flush_interval -1\n"
            "        transport http {\n            tls_insecure_skip_verify\n        }",
        },
    }[name]
    language, holding = {"haproxy": ("haproxy", "backend"), "caddy": ("caddyfile", "llm.")}[name]
    text = the_block(PAGE, language, holding=holding)
    for old, new in replaced.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


_RUNS: Final[dict[str, Runs]] = {"haproxy": haproxy_with, "caddy": caddy_with}
