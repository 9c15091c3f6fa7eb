"""A relay with a provider in its settings, and no node: as an operator would set it up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import cluster
from tests.harness.connect_proxy import connect_proxy
from tests.harness.openai_service import KEY, MODEL, openai_service
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_a_provider_serves_by_alias_and_is_shown_and_priced(tmp_path: Path) -> None:
    with openai_service(tmp_path) as service:
        (tmp_path / "cloud.key").write_text(KEY + "\n")
        settings = tmp_path / "relay.toml"
        settings.write_text(
            f"""
[aliases]
"gpt-4o" = "chat"
[[providers]]
name = "cloud"
base_url = "{service.base_url}"
key_file = "{tmp_path / "cloud.key"}"
ca_file = "{service.ca_file}"
[[providers.models]]
id = "chat"
name = "{MODEL}"
input_price = 1.0
output_price = 10.0
"""
        )
        with cluster(tmp_path, "--config", str(settings)) as running:
            headers = {"Authorization": f"Bearer {running.create_key().secret}"}
            with request(running, "/v1/models", None, headers) as listed:
                assert [m["id"] for m in json.loads(listed.read())["data"]] == ["chat", "gpt-4o"]
            with request(running, "/v1/chat/completions", chat("gpt-4o"), headers) as answer:
                assert answer.status == 200
                assert answer.headers["x-wai-node"] == "provider:cloud"
                assert answer.headers["x-wai-reason"] == "failover"
                answer.read()

            def priced() -> bool:
                costs = {row["group"]: row["cost"] for row in running.usage("node")}
                return costs.get("provider:cloud") == pytest.approx(0.003)

            wait_until(priced, "the cost does not arrive")
        assert KEY not in running.relay.output()


def test_a_provider_is_reached_through_the_proxy_of_the_environment(tmp_path: Path) -> None:
    with openai_service(tmp_path) as service, connect_proxy(user="ann:hush") as proxy:
        (tmp_path / "cloud.key").write_text(KEY + "\n")
        settings = tmp_path / "relay.toml"
        settings.write_text(
            f"""
[[providers]]
name = "cloud"
base_url = "https://cloud.test:{service.port}/v1"
key_file = "{tmp_path / "cloud.key"}"
ca_file = "{service.ca_file}"
models = [{{id = "chat", name = "{MODEL}"}}]
"""
        )
        env = {"HTTPS_PROXY": proxy.url.replace("//", "//ann:hush@")}
        with cluster(tmp_path, "--config", str(settings), env=env) as running:
            headers = {"Authorization": f"Bearer {running.create_key().secret}"}
            with request(running, "/v1/chat/completions", chat("chat"), headers) as answer:
                assert answer.status == 200
                answer.read()
        assert "hush" not in running.relay.output()
    # once, or again where the provider was idle and was asked whether it is well
    assert set(proxy.asked) == {f"CONNECT cloud.test:{service.port} HTTP/1.1"}
