"""Webhooks and ntfy: real servers on loopback, good and bad ones; the way is the proxy's if set."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.connect_proxy import connect_proxy
from tests.harness.hook_server import HookServer, hook_server
from wai_api.health import ProblemView
from wai_protocol.errors import TransportError
from wai_relay.notify import post
from wai_relay.notify.config import NtfyConfig, WebhookConfig
from wai_relay.notify.message import Message
from wai_relay.notify.ntfy import Ntfy
from wai_relay.notify.receiver import Receiver
from wai_relay.notify.webhook import Webhook
from wai_transport.http_proxy import DIRECT, ProxySettings

pytestmark = pytest.mark.anyio

PROBLEM = ProblemView("node", "büro", "it is offline", "start it", "node büro away", 1.8e9)
MESSAGE = Message(1_800_000_060.5, "https://llm.example", (PROBLEM,), (), 2)
SECRET = "whsec-of-the-tests"


@pytest.fixture
def server() -> Iterator[HookServer]:
    with hook_server() as running:
        yield running


def _webhook(server: HookServer, tmp_path: Path, proxies: ProxySettings = DIRECT) -> Webhook:
    (tmp_path / "secret").write_text(SECRET)
    config = WebhookConfig(
        f"{server.url}/hook?for=wai", secret_file=tmp_path / "secret", ca_file=server.ca_file
    )
    return Webhook(config, proxies)


async def _refused(receiver: Receiver) -> str:
    with pytest.raises(TransportError) as failed:
        await receiver.deliver(MESSAGE)
    await receiver.aclose()
    return str(failed.value)


async def test_a_webhook_gets_json_that_it_can_check(server: HookServer, tmp_path: Path) -> None:
    receiver = _webhook(server, tmp_path)
    await receiver.deliver(MESSAGE)
    await receiver.aclose()
    [(path, headers, body)] = server.seen
    assert path == "/hook?for=wai"
    told = json.loads(body)
    assert (told["event"], told["relay"], told["others_lasting"]) == (
        *("problems", "https://llm.example"),
        2,
    )
    assert told["problems"] == [
        {
            "kind": "node",
            "subject": "büro",
            "text": "it is offline",
            "advice": "start it",
            "id": "node büro away",
            "since": 1.8e9,
        }
    ]
    assert told["recovered"] == []
    at, signed = headers["x-wai-signature"].split(",")
    assert at == "t=1800000060"
    expected = hmac.new(SECRET.encode(), b"1800000060." + body, hashlib.sha256).hexdigest()
    assert signed == f"v1={expected}"
    assert SECRET not in str(server.seen)


async def test_without_a_secret_nothing_is_signed(server: HookServer) -> None:
    receiver = Webhook(WebhookConfig(server.url), DIRECT)
    await receiver.deliver(MESSAGE)
    await receiver.aclose()
    [(path, headers, _)] = server.seen
    assert path == "/"
    assert "x-wai-signature" not in headers


async def test_ntfy_gets_a_topic_a_title_and_a_text(server: HookServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("tk_of_the_tests")
    config = NtfyConfig(f"{server.url}/my-relay", token_file=tmp_path / "token")
    receiver = Ntfy(config, DIRECT)
    await receiver.deliver(MESSAGE)
    await receiver.deliver(Message(1.8e9, "https://llm.example", (), (PROBLEM,)))
    await receiver.aclose()
    (path, headers, body), (_, _, over) = server.seen
    assert (path, headers["authorization"]) == ("/", "Bearer tk_of_the_tests")
    told = json.loads(body)
    assert (told["topic"], told["title"], told["priority"]) == (
        *("my-relay", "büro: it is offline"),
        4,
    )
    assert "start it" in told["message"]
    assert json.loads(over)["title"] == "Recovered: büro: it is offline"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (401, 'answers 401: {"error": "unauthorized\\x1b[2J"}'),
        (500, "answers 500"),
        (302, "redirects (status 302); give the address that it leads to"),
        (307, "redirects (status 307)"),
        ("endless error", "answers 500: xxx"),
    ],
)
async def test_what_refuses_or_redirects_is_no_delivery(
    server: HookServer, tmp_path: Path, answer: int | str, said: str
) -> None:
    server.answer = answer
    text = await _refused(_webhook(server, tmp_path))
    assert said in text
    assert len(text) < 500
    assert "for=wai" not in text  # the path of a webhook may be a secret
    assert len(server.seen) == 1  # no redirect was followed


async def test_an_answer_without_end_is_not_read(server: HookServer, tmp_path: Path) -> None:
    server.answer = "endless"
    receiver = _webhook(server, tmp_path)
    await receiver.deliver(MESSAGE)
    await receiver.aclose()


@pytest.mark.parametrize("answer", ["silent", "drips"])
async def test_one_that_does_not_answer_is_left_in_time(
    server: HookServer, tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "DELIVER_S", 0.3)
    server.answer = answer
    assert "did not answer within 0.3 s" in await _refused(_webhook(server, tmp_path))


async def test_one_that_is_not_there(tmp_path: Path) -> None:
    with hook_server() as gone:
        pass
    assert "can't be reached" in await _refused(_webhook(gone, tmp_path))


async def test_it_is_reached_by_tls_and_through_the_proxy(tmp_path: Path) -> None:
    with hook_server(tmp_path) as server, connect_proxy() as proxy:
        config = WebhookConfig(f"https://hook.test:{server.port}/", ca_file=server.ca_file)
        receiver = Webhook(config, ProxySettings(proxy.url))
        await receiver.deliver(MESSAGE)
        await receiver.aclose()
    assert proxy.asked == [f"CONNECT hook.test:{server.port} HTTP/1.1"]
    assert len(server.seen) == 1


async def test_a_certificate_that_nobody_vouches_for_is_not_believed(tmp_path: Path) -> None:
    with hook_server(tmp_path) as server:
        receiver = Webhook(WebhookConfig(server.url), DIRECT)
        assert "certificate is not valid" in await _refused(receiver)
    assert server.seen == []
