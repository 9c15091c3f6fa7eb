"""SIGHUP: settings and certificates change under an open stream; what makes no sense does not."""

from __future__ import annotations

import json
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.odd_upstream import MODELS, odd_upstream
from tests.harness.openai_service import KEY, MODEL, openai_service
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


def hang_up(running: Cluster) -> str:
    """SIGHUP, and what the relay says to that."""
    said = len(running.relay.output())
    running.relay.send(signal.SIGHUP)
    line = running.relay.wait_for_output("configuration.*(reloaded|stays).*", after=said)
    return line[0]


def test_settings_change_under_an_open_stream(tmp_path: Path) -> None:
    settings = tmp_path / "relay.toml"
    settings.write_text("[gateway]\nbody_bytes = 1000\n")
    (tmp_path / "cloud.key").write_text(KEY)
    with (
        odd_upstream() as upstream,
        openai_service(tmp_path) as service,
        cluster(tmp_path, "--config", str(settings)) as running,
    ):
        running.add_node("box", upstream.url, models=len(MODELS))
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}

        def status(model: str, **fields: Any) -> int:
            path, body = "/v1/chat/completions", chat(model, **fields)
            with request(running, path, body, headers) as answer:
                answer.read()
                return answer.status

        def allowed() -> str | None:
            page = headers | {"Origin": "https://app.example", "X-Forwarded-For": "192.0.2.1"}
            with request(running, "/v1/chat/completions", chat("cors"), page) as answer:
                return answer.headers["access-control-allow-origin"]

        waiting = chat("waits", stream=True)
        with request(running, "/v1/chat/completions", waiting, headers) as stream:
            coming = events(stream)
            assert "first" in next(coming)
            assert [status("nickname"), status("cloudy"), status("answers", user="x" * 1000)] == [
                *(404, 404, 413)
            ]
            assert allowed() == "*"
            settings.write_text(
                f"""
log_format = "json"
metrics_token = "of-the-scraper"
[aliases]
nickname = "answers"
[[providers]]
name = "cloud"
base_url = "{service.base_url}"
key_file = "{tmp_path / "cloud.key"}"
ca_file = "{service.ca_file}"
models = [{{ id = "cloudy", name = "{MODEL}" }}]
[cors]
origins = ["https://app.example"]
[proxy]
trusted = ["127.0.0.1"]
"""
            )
            said = hang_up(running)
            for name in ("log_format", "metrics_token", "aliases", "providers", "gateway"):
                assert name in said
            assert "restart" not in said
            assert [status("nickname"), status("cloudy"), status("answers", user="x" * 1000)] == [
                *(200, 200, 200)
            ]
            assert allowed() == "https://app.example"
            running.relay.wait_for_output('"address": "192.0.2.1", .*"model": "cors"')
            token = {"Authorization": "Bearer of-the-scraper"}
            with request(running, "/metrics", None, token) as page:
                assert page.status == 200
            running.relay.wait_for_output(r'^\{"time".*"model": "cloudy"')

            settings.write_text("[aliases]\nnickname = 7\n")
            assert "relay.toml, line 1: aliases" in hang_up(running)
            assert status("nickname") == 200

            settings.write_text("")
            assert "providers" in hang_up(running)
            assert [status("nickname"), status("cloudy")] == [404, 404]
            upstream.seen.release.set()
            rest = list(coming)
        assert json.loads(rest[0])["choices"][0]["delta"]["content"] == "second "
        assert rest[-1] == "[DONE]"
        assert "of-the-scraper" not in running.relay.output()


def test_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    settings, port = tmp_path / "relay.toml", free_port()
    settings.write_text(f'listen = "127.0.0.1:{port}"\n')
    command = [script("wai"), "relay", "--data", str(tmp_path / "relay")]
    command += ["--config", str(settings)]
    with Daemon(command, log=tmp_path / "relay.log") as relay:
        relay.wait_for_output("relay ready on")
        settings.write_text('listen = "127.0.0.1:1"\npublic_url = "https://wai.example"\n')
        relay.send(signal.SIGHUP)
        relay.wait_for_output("reloaded: public_url; needs a restart: listen$")
        # Self-signed: callers find the new name in it.
        context = ssl.create_default_context(cafile=str(tmp_path / "relay" / "relay.crt"))
        with (
            socket.create_connection(("127.0.0.1", port)) as connection,
            context.wrap_socket(connection, server_hostname="wai.example"),
        ):
            pass


def test_a_relay_changes_from_its_own_certificate_to_a_given_one_and_back(tmp_path: Path) -> None:
    settings, port, data = tmp_path / "relay.toml", free_port(), tmp_path / "relay"
    settings.write_text("")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    chain.write_bytes(pair.cert_chain_pems[0].bytes())
    key.write_bytes(pair.private_key_pem.bytes())

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", port)).strip()

    command = [script("wai"), "relay", "--data", str(data), "--config", str(settings)]
    command += ["--listen", f"127.0.0.1:{port}"]
    with Daemon(command, log=tmp_path / "relay.log") as relay:
        relay.wait_for_output("relay ready on")
        own = shown()
        assert (data / "relay.crt").read_text().startswith(own)
        settings.write_text(f'tls = "{chain},{key}"\n')
        relay.send(signal.SIGHUP)
        relay.wait_for_output("configuration reloaded: tls$")
        assert shown() == chain.read_text().strip()
        assert wai("key", "list", "--data", data, "--json") == "[]\n"  # it is found by its new pin
        said = len(relay.output())
        settings.write_text("")
        relay.send(signal.SIGHUP)
        relay.wait_for_output("configuration reloaded: tls$", after=said)
        assert shown() == own
        assert wai("key", "list", "--data", data, "--json") == "[]\n"
