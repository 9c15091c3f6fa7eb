"""Mail to real mail servers on loopback: a good one, and all that hang, lie or never stop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.harness.smtp_server import PASSWORD, USER, SmtpServer, smtp_server
from wai_api.health import ProblemView
from wai_protocol.errors import TransportError
from wai_relay.notify import email
from wai_relay.notify.config import EmailConfig
from wai_relay.notify.email import Email
from wai_relay.notify.message import Message

pytestmark = pytest.mark.anyio

PROBLEM = ProblemView("node", "büro", "it is offline", "start it", "node")
MESSAGE = Message(1.8e9, "https://llm.example", (PROBLEM,))


def _receiver(server: SmtpServer, tmp_path: Path, **changes: Any) -> Email:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    given: dict[str, Any] = {
        "host": "localhost",
        "port": server.port,
        "sender": "wai@example.org",
        "to": ("me@example.org", "you@example.org"),
        "tls": server.tls,
        "ca_file": server.ca_file,
    }
    if server.tls != "off":
        given |= {"user": USER, "password_file": tmp_path / "password"}
    return Email(EmailConfig(**(given | changes)))


async def _refused(receiver: Email) -> str:
    with pytest.raises(TransportError) as failed:
        await receiver.deliver(MESSAGE)
    await receiver.aclose()
    assert PASSWORD not in str(failed.value)
    return str(failed.value)


@pytest.mark.parametrize("tls", ["starttls", "tls", "off"])
async def test_a_mail_arrives_whole(tmp_path: Path, tls: str) -> None:
    with smtp_server(tmp_path, tls=tls) as server:
        receiver = _receiver(server, tmp_path)
        await receiver.deliver(MESSAGE)
        await receiver.deliver(MESSAGE)
        await receiver.aclose()
    [mail, again] = server.mails
    assert mail["subject"] == "[wai] büro: it is offline"
    assert (mail["from"], mail["to"]) == ("wai@example.org", "me@example.org, you@example.org")
    assert mail["auto-submitted"] == "auto-generated"
    assert mail["message-id"] != again["message-id"]
    assert mail.get_content().replace("\r\n", "\n") == MESSAGE.text + "\n"
    assert server.recipients[:2] == ["<me@example.org>", "<you@example.org>"]
    if tls == "starttls":  # nothing of the mail, nor the password, before TLS
        before = server.lines[: server.lines.index("TLS")]
        assert [line.split(" ")[0] for line in before] == ["ehlo", "STARTTLS"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no starttls", "STARTTLS extension not supported"),
        ("web", "what it sends is not SMTP"),
        ("endless line", "what it sends is not SMTP"),
        ("endless reply", "more than 100 lines"),
        ("busy", "421 4.3.2 too busy"),
        ("no such user", "does not take mail for me@example.org: 5.1.1 nobody is called that"),
        ("spam", "554 5.7.1 looks like spam"),
    ],
)
async def test_what_a_server_refuses_is_said_in_its_words(
    tmp_path: Path, fault: str, said: str
) -> None:
    with smtp_server(tmp_path, fault=fault) as server:
        text = await _refused(_receiver(server, tmp_path))
    assert said in text
    assert f"localhost:{server.port}" in text
    assert server.mails == []


@pytest.mark.parametrize("fault", ["silent", "drips", "hangs in starttls", "hangs after data"])
async def test_a_server_that_hangs_is_left_in_time_and_its_connection_is_closed(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(email, "DELIVER_S", 0.5)
    with smtp_server(tmp_path, fault=fault) as server:
        receiver = _receiver(server, tmp_path)
        assert "did not take the mail within 0.5 s" in await _refused(receiver)
        assert await asyncio.to_thread(server.closed.wait, 10)


async def test_who_stops_waiting_leaves_no_connection(tmp_path: Path) -> None:
    with smtp_server(tmp_path, fault="silent") as server:
        receiver = _receiver(server, tmp_path)
        sending = asyncio.create_task(receiver.deliver(MESSAGE))
        await asyncio.sleep(0.05)
        sending.cancel()
        await asyncio.wait((sending,))
        await receiver.aclose()
        assert await asyncio.to_thread(server.closed.wait, 10)


async def test_plain_text_that_comes_before_tls_is_not_believed(tmp_path: Path) -> None:
    with smtp_server(tmp_path, fault="injects") as server:
        receiver = _receiver(server, tmp_path)
        await receiver.deliver(MESSAGE)
        await receiver.aclose()
    assert [line.split(" ")[0] for line in server.lines[:5]] == [
        *("ehlo", "STARTTLS", "TLS", "ehlo", "AUTH")
    ]


async def test_a_wrong_password_is_said_and_not_shown(tmp_path: Path) -> None:
    with smtp_server(tmp_path) as server:
        receiver = _receiver(server, tmp_path, user="somebody")
        assert "535 5.7.8 bad user or password" in await _refused(receiver)


async def test_a_certificate_that_nobody_vouches_for_is_not_believed(tmp_path: Path) -> None:
    with smtp_server(tmp_path) as server:
        receiver = _receiver(server, tmp_path, ca_file=None)
        assert "certificate verify failed" in await _refused(receiver)
    assert "AUTH" not in server.lines


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with smtp_server(tmp_path) as server:
        pass
    assert "refused" in (await _refused(_receiver(server, tmp_path))).lower()
