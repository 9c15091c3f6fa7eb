"""`[notify]` with real processes: a test, and a real problem, arrive; what can't is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.cluster import CommandError, cluster, wai
from tests.harness.hook_server import hook_server
from tests.harness.processes import free_port
from tests.harness.smtp_server import smtp_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_a_test_and_a_problem_arrive_and_a_receiver_that_is_not_there_is_said(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text("whsec-of-the-tests")
    with hook_server() as hook, smtp_server(tmp_path, tls="off") as mail:
        settings = tmp_path / "relay.toml"
        settings.write_text(
            f"""
[notify]
after_s = 0
[[notify.webhook]]
url = "{hook.url}/hook"
secret_file = "{tmp_path / "secret"}"
[[notify.ntfy]]
url = "http://127.0.0.1:{free_port()}/topic"
[[notify.email]]
host = "127.0.0.1"
port = {mail.port}
tls = "off"
sender = "wai@example.org"
to = ["me@example.org"]
[[providers]]
name = "cloud"
base_url = "http://127.0.0.1:{free_port()}/v1"
models = [{{id = "chat"}}]
"""
        )
        with cluster(tmp_path, "--config", str(settings)) as running:
            with pytest.raises(CommandError) as failed:
                wai("notify", "test", "--data", running.data)
            assert failed.value.status == 1
            said = failed.value.output.splitlines()
            assert said[0] == f"ok       webhook 127.0.0.1:{hook.port}"
            assert said[1].startswith("problem  ntfy 127.0.0.1:")
            assert said[2] == f"ok       email 127.0.0.1:{mail.port}"
            assert json.loads(hook.seen[0][2])["event"] == "test"

            hook.wait_for(2)
            told = json.loads(hook.seen[1][2])
            kinds = {one["kind"] for one in told["problems"]}
            assert kinds == {"notify", "provider"}  # a receiver that is away is a problem too
            assert told["relay"] == running.url
            assert "whsec-of-the-tests" not in running.relay.output()
        assert "[wai] A test from" in mail.mails[0]["subject"]


def test_who_told_nobody_is_told_so(tmp_path: Path) -> None:
    with cluster(tmp_path) as running, pytest.raises(CommandError, match=r"put \[notify\] into"):
        wai("notify", "test", "--data", running.data)
