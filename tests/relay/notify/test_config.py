"""`[notify]`: what can't work is refused at the start, without quoting what may be a secret."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pytest

from wai_cli.options.settings import load
from wai_protocol.errors import RequestError, StoreError
from wai_relay.config import RelayConfig
from wai_relay.notify.config import EmailConfig, NotifyConfig, NtfyConfig, WebhookConfig
from wai_relay.notify.notifier import receivers_of

HOOK = "https://hooks.example/services/T0/secret?sig=abc"


def _at(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("quiet", "at", "expected"),
    [
        ("22:00-07:00", "2026-11-29T22:00:00+01:00", True),
        ("22:00-07:00", "2026-11-29T06:59:59+01:00", True),
        ("22:00-07:00", "2026-11-29T07:00:00+01:00", False),
        ("22:00-07:00", "2026-11-29T21:59:00+01:00", False),
        ("12:30-13:00", "2026-11-29T12:45:00+01:00", True),
        ("12:30-13:00", "2026-11-29T13:00:00+01:00", False),
        ("22:00-07:00", "2026-07-01T21:30:00+02:00", False),  # summer time there
        ("22:00-07:00", "2026-07-01T22:30:00+02:00", True),
        ("", "2026-11-29T03:00:00+01:00", False),
        ("08:00-08:00", "2026-11-29T08:00:00+01:00", False),
    ],
)
def test_quiet_hours_are_those_of_the_zone(quiet: str, at: str, expected: bool) -> None:
    config = NotifyConfig(quiet=quiet, time_zone="Europe/Berlin")
    assert config.is_quiet(_at(at)) is expected


def _email(**changes: Any) -> EmailConfig:
    return EmailConfig(**{"host": "mail", "sender": "a@b.org", "to": ("c@d.org",), **changes})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NotifyConfig(quiet="10pm"), "HH:MM-HH:MM"),
        (lambda: NotifyConfig(quiet="24:00-07:00"), "HH:MM-HH:MM"),
        (lambda: NotifyConfig(time_zone="Mars/Olympus"), "no zone 'Mars/Olympus'"),
        (lambda: NotifyConfig(time_zone="../../etc/passwd"), "no zone"),
        (lambda: NotifyConfig(after_s=-1.0), "after_s"),
        (lambda: NotifyConfig(after_s=float("nan")), "after_s"),
        (lambda: NotifyConfig(webhook=(WebhookConfig(HOOK),) * 17), "at most 16"),
        (lambda: WebhookConfig("ftp://x/y"), "https://HOST"),
        (lambda: WebhookConfig("https://user:pw@x/y"), "https://HOST"),
        (lambda: WebhookConfig("https://x:port/y"), "https://HOST"),
        (lambda: WebhookConfig("https://x/a b"), "in ASCII"),
        (lambda: WebhookConfig("https://x/a\r\nHost: y"), "https://HOST"),
        (lambda: WebhookConfig(HOOK, Path("a"), "B"), "one of secret_file and secret_env"),
        (lambda: NtfyConfig("https://ntfy.example/"), "https://SERVER/TOPIC"),
        (lambda: NtfyConfig("https://ntfy.example/a/b"), "https://SERVER/TOPIC"),
        (lambda: _email(to=()), "1 to 16 addresses"),
        (lambda: _email(to=("me@x.org\nBcc: you@y.org",)), "is not a mail address"),
        (lambda: _email(sender="Wai <a@b.org>"), "is not a mail address"),
        (lambda: _email(user="a"), "user and password_file"),
        (lambda: _email(user="a", password_env="B", tls="off"), "needs tls"),
        (lambda: _email(port=0), "1 to 65535"),
        (lambda: _email(host="mail server"), "a name or an address"),
    ],
)
def test_what_can_not_work_is_refused(make: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match) as refused:
        make()
    assert "secret?" not in str(refused.value)
    assert "pw@" not in str(refused.value)


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("tls", 465), ("off", 25)])
def test_the_port_of_a_mail_server_follows_its_tls(tls: Any, port: int) -> None:
    assert _email(tls=tls).address == ("mail", port)
    assert _email(tls=tls, port=2525).address == ("mail", 2525)


def test_a_secret_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    for config in (
        NotifyConfig(webhook=(WebhookConfig(HOOK, secret_file=tmp_path / "none"),)),
        NotifyConfig(ntfy=(NtfyConfig("https://ntfy.example/t", token_env="WAI_NOT_SET"),)),
        NotifyConfig(email=(_email(user="a", password_file=tmp_path / "none"),)),
        NotifyConfig(webhook=(WebhookConfig(HOOK, ca_file=tmp_path / "none"),)),
    ):
        with pytest.raises((RequestError, StoreError)):
            receivers_of(config)


def test_the_settings_file_has_all_of_it_and_names_the_line_of_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(
        """
[notify]
quiet = "22:00-07:00"
time_zone = "Europe/Berlin"

[[notify.ntfy]]
url = "https://ntfy.example/my-relay"

[[notify.email]]
host = "mail.example"
sender = "wai@example.org"
to = ["me@example.org"]
"""
    )

    def read() -> RelayConfig:
        return load(
            RelayConfig,
            file=file,
            environment={},
            prefix="WAI_RELAY_",
            flags={"data": tmp_path},
        )

    config = read().notify
    assert (config.ntfy[0].topic, config.email[0].to) == ("my-relay", ("me@example.org",))
    file.write_text(file.read_text().replace("sender", "from"))
    with pytest.raises(RequestError, match=r"line 11: unknown key 'from' in \[notify\.email\]"):
        read()
    assert "WAI_NOT_SET" not in os.environ
