"""A node behind a proxy joins and comes up through it, by what the environment says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.harness.cluster import CommandError, cluster, wai
from tests.harness.connect_proxy import connect_proxy
from tests.harness.processes import Daemon
from tests.harness.real import script

pytestmark = pytest.mark.e2e


def test_a_node_joins_and_comes_up_through_a_proxy(tmp_path: Path) -> None:
    options = ("--public-url", "https://relay.test")
    with connect_proxy(user="ann:hush") as proxy, cluster(tmp_path, *options) as running:
        proxy.target_port = running.port
        invite = running.invite()
        join = ("node", "join", invite, "--data", tmp_path / "box", "--name", "box")
        with pytest.raises(CommandError, match="asks for a user name"):
            wai(*join, env={**os.environ, "HTTPS_PROXY": proxy.url})
        behind = {"https_proxy": proxy.url.replace("//", "//ann:hush@")}
        wai(*join, env={**os.environ, **behind})
        command = [script("wai"), "node", "run", "--data", str(tmp_path / "box")]
        with Daemon(command, log=tmp_path / "box.log", env=behind) as node:
            running.wait_for_state("box", "ready")
            assert "hush" not in node.output()
    assert set(proxy.asked) == {"CONNECT relay.test:443 HTTP/1.1"}
    assert len(proxy.asked) == 3


def test_commands_and_doctor_reach_the_relay_through_the_proxy(tmp_path: Path) -> None:
    options = ("--public-url", "https://relay.test")
    with connect_proxy() as proxy, cluster(tmp_path, *options) as running:
        proxy.target_port = running.port
        behind = {**os.environ, "https_proxy": proxy.url}
        join = ("node", "join", running.invite(), "--data", tmp_path / "box", "--name", "box")
        wai(*join, env=behind)
        token = running.data / "admin.token"
        pin = json.loads((running.data / "relay.json").read_text())["pin"]
        far = ("--relay", "https://relay.test", "--token-file", token, "--pin", pin)
        assert "box" in wai("node", "list", *far, env=behind)
        no_relay = ("--data", tmp_path / "none", "--node-data", tmp_path / "box")
        with pytest.raises(CommandError) as problem:
            wai("doctor", *no_relay, "--json", env=behind)
        found = json.loads(problem.value.output)
        assert [finding["check"] for finding in found if not finding["ok"]] == ["here"]  # not run
        assert f"the proxy 127.0.0.1:{proxy.port} answers" in found[1]["text"]
    assert set(proxy.asked) == {"CONNECT relay.test:443 HTTP/1.1"}


def test_a_proxy_that_refuses_is_said_by_name(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    far = ("--relay", "https://relay.test", "--token-file", tmp_path / "token")
    with connect_proxy(answer=b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
        refused = {**os.environ, "https_proxy": proxy.url}
        with pytest.raises(CommandError, match=r"the proxy .* refuses a connection to relay\.test"):
            wai("node", "list", *far, env=refused)
    with pytest.raises(CommandError, match=r"the proxy .* can't be reached"):
        wai("node", "list", *far, env=refused)
