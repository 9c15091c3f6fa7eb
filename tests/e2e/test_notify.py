"""`[notify]` with real processes: a test, and a real problem, arrive; what can't is said."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.harness.cluster import CommandError, cluster, wai
from tests.harness.hook_server import hook_server
from tests.harness.processes import free_port
from tests.harness.smtp_server import smtp_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


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


def test_receivers_are_taken_over_by_a_reload_and_a_mistake_changes_nothing(
    tmp_path: Path,
) -> None:
    settings = tmp_path / "relay.toml"
    settings.write_text("")
    with hook_server() as hook, cluster(tmp_path, "--config", str(settings)) as running:

        def reload(text: str, said: str) -> None:
            settings.write_text(text)
            known = len(running.relay.output())
            running.relay.send(signal.SIGHUP)
            running.relay.wait_for_output(said, after=known)

        with pytest.raises(CommandError, match=r"put \[notify\] into"):
            wai("notify", "test", "--data", running.data)
        webhook = f'[[notify.webhook]]\nurl = "{hook.url}/hook"\n'
        reload(webhook, "configuration reloaded: notify")
        expected = f"ok       webhook 127.0.0.1:{hook.port}\n"
        assert wai("notify", "test", "--data", running.data) == expected
        missing = f'secret_file = "{tmp_path / "none"}"\n'
        reload(webhook + missing, "the new configuration can't be used, the old one stays")
        assert wai("notify", "test", "--data", running.data) == expected
        assert len(hook.seen) == 2
