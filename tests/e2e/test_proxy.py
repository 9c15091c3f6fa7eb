"""A node behind a proxy joins and comes up through it, by what the environment says."""

from __future__ import annotations

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
