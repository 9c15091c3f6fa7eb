"""nginx and haproxy in front: each caller by its own address, and tokens at once."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness.caller import chat, events
from tests.harness.cluster import cluster, wai
from tests.harness.front_proxy import haproxy, nginx
from tests.harness.odd_upstream import MODELS, odd_upstream
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import require_real, script

pytestmark = pytest.mark.e2e

TRUSTED = {"WAI_RELAY_PROXY": '{trusted = ["127.0.0.1"]}'}
ADMIN, STRANGER, CALLER = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # the proxies are 127.0.0.1


def connect(
    port: int, source: str, context: ssl.SSLContext | None = None
) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection("127.0.0.1", port, 30, source_address=(source, 0))
    return http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=30, source_address=(source, 0), context=context
    )


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> http.client.HTTPResponse:
    named = {"Content-Type": "application/json", **(headers or {})}
    connection.request("GET" if body is None else "POST", path, body, named)
    return connection.getresponse()


def sign_in(port: int, source: str, token: str, **headers: str) -> int:
    connection = connect(port, source)
    body = json.dumps({"token": token}).encode()
    try:
        return ask(connection, "/dashboard/session", body, headers).status
    finally:
        connection.close()


def test_behind_nginx_each_caller_counts_for_itself_and_tokens_come_at_once(
    tmp_path: Path,
) -> None:
    require_real("nginx")
    data, port = tmp_path / "relay", free_port()
    command = [script("wai"), "relay", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    command += ["--tls", "off", "--public-url", f"http://127.0.0.1:{port}"]
    with (
        odd_upstream() as odd,
        Daemon(command, log=tmp_path / "relay.log", env=TRUSTED) as relay,
        nginx(tmp_path, port) as front,
    ):
        relay.wait_for_output("relay ready")
        invite = json.loads(wai("invite", "create", "--data", data, "--json"))["invite"]
        wai("node", "join", invite, "--data", tmp_path / "odd", "--name", "odd")
        key = json.loads(wai("key", "create", "app", "--data", data, "--json"))["key"]
        node = [script("wai"), "node", "run", "--data", str(tmp_path / "odd")]
        node += ["--upstream", odd.url]
        with Daemon(node, log=tmp_path / "node.log"):
            wait_until(lambda: _models(data) >= len(MODELS), "the node is not ready")
            odd.seen.release.clear()
            forged = {"X-Forwarded-For": ADMIN, "Forwarded": f"for={ADMIN}"}
            headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": ADMIN}
            connection = connect(front, CALLER)
            body = chat("waits", stream=True)
            arriving = events(ask(connection, "/v1/chat/completions", body, headers))
            assert "first" in next(arriving)  # while the upstream holds the second back
            odd.seen.release.set()
            assert [*arriving][-1] == "[DONE]"
            connection.close()
            relay.wait_for_output(f"address={CALLER} ")

            statuses = [sign_in(front, STRANGER, "wai_at_wrong", **forged) for _ in range(8)]
            assert statuses[-1] == 429
            assert sign_in(front, ADMIN, "wai_at_mistyped") == 401
            token = (data / "admin.token").read_text().strip()
            assert sign_in(front, ADMIN, token) == 200
            assert sign_in(front, STRANGER, token) == 200


@pytest.mark.parametrize("option", ["send-proxy-v2", "send-proxy"])
def test_haproxy_names_the_caller_and_tls_stays_from_end_to_end(
    tmp_path: Path, option: str
) -> None:
    require_real("haproxy")
    with (
        cluster(tmp_path, env=TRUSTED) as running,
        haproxy(tmp_path, running.port, option) as front,
    ):
        connection = connect(front, CALLER, running.tls())
        key = running.create_key().secret
        answer = ask(connection, "/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert answer.status == 200
        connection.close()
        running.relay.wait_for_output(f"address={CALLER} ")

        running.join("box")
        node = running.start_node(
            "box", "--relay", f"127.0.0.1:{front}", "--upstream", "http://127.0.0.1:9"
        )
        node.daemon.wait_for_output("connected to the relay as box")


def _models(data: Path) -> int:
    nodes = json.loads(wai("node", "list", "--data", data, "--json"))
    return sum(len(node["serving"]) for node in nodes)
