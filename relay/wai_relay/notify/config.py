"""Who is told of problems, as the operator writes it down: `[notify]` in the relay's settings.

[notify]
quiet = "22:00-07:00"
time_zone = "Europe/Berlin"

[[notify.ntfy]]
url = "https://ntfy.example/my-relay"
token_file = "/etc/wai/ntfy.token"

[[notify.webhook]]
url = "https://hooks.example/wai"
secret_file = "/etc/wai/webhook.secret"

[[notify.email]]
host = "mail.example"
sender = "wai@example.org"
to = ["me@example.org"]
user = "wai@example.org"
password_file = "/etc/wai/mail.password"

Values only.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from wai_protocol.errors import RequestError
from wai_relay.contracts.secret import read_secret
from wai_transport.origin import Origin

MAX_RECEIVERS: Final = 16
MAX_TO: Final = 16
_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_ADDRESS: Final = re.compile(r"[!#-;=?-~]+@[A-Za-z0-9.-]+")  # ASCII, no spaces, no < > "
_TOPIC: Final = re.compile(r"/[A-Za-z0-9_-]{1,64}")
_PORTS: Final = {"starttls": 587, "tls": 465, "off": 25}


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    """Where JSON is posted. With a secret the body is signed with it."""

    url: str
    """https://HOST[:PORT]/PATH."""
    secret_file: Path | None = None
    """A file with the secret that bodies are signed with."""
    secret_env: str | None = None
    """The variable of the relay's environment that has it instead."""
    ca_file: Path | None = None
    """Whom to believe that it is that server, in PEM; without it: the system's authorities."""

    def __post_init__(self) -> None:
        _one("a webhook", secret_file=self.secret_file, secret_env=self.secret_env)
        place_of(self.url)

    def read_secret(self) -> str:
        """What the body is signed with, "" for nothing. Raises `WaiError`."""
        return read_secret("notify.webhook", self.secret_env, self.secret_file)


@dataclass(frozen=True, slots=True)
class NtfyConfig:
    """A topic of an ntfy server."""

    url: str
    """https://SERVER/TOPIC."""
    token_file: Path | None = None
    """A file with the token that lets the relay publish there."""
    token_env: str | None = None
    """The variable of the relay's environment that has it instead."""
    ca_file: Path | None = None
    """Whom to believe that it is that server, in PEM; without it: the system's authorities."""

    def __post_init__(self) -> None:
        _one("ntfy", token_file=self.token_file, token_env=self.token_env)
        place_of(self.url)
        if _TOPIC.fullmatch(urlsplit(self.url).path) is None or urlsplit(self.url).query:
            raise RequestError("the url of ntfy is https://SERVER/TOPIC")

    @property
    def topic(self) -> str:
        """The topic's name."""
        return urlsplit(self.url).path[1:]

    def read_token(self) -> str:
        """What lets us publish there, "" for nothing. Raises `WaiError`."""
        return read_secret("notify.ntfy", self.token_env, self.token_file)


@dataclass(frozen=True, slots=True)
class EmailConfig:
    """A mail server that takes mail from us (a submission server)."""

    host: str
    """Its name or address."""
    sender: str
    """The address that messages are from."""
    to: tuple[str, ...]
    """The addresses that they go to."""
    tls: Literal["starttls", "tls", "off"] = "starttls"
    """starttls, tls from the first byte on, or off, for a server on this machine."""
    port: int | None = None
    """Without it: 587, 465 or 25, by `tls`."""
    user: str | None = None
    """Whom the relay signs in as; without it: it does not."""
    password_file: Path | None = None
    """A file with that user's password."""
    password_env: str | None = None
    """The variable of the relay's environment that has it instead."""
    ca_file: Path | None = None
    """Whom to believe that it is that server, in PEM; without it: the system's authorities."""

    def __post_init__(self) -> None:
        _one("email", password_file=self.password_file, password_env=self.password_env)
        if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", self.host):
            raise RequestError(f"the host of email is a name or an address, not {self.host!r}")
        if self.port is not None and not 0 < self.port < 65536:
            raise RequestError("the port of email is 1 to 65535")
        if not 0 < len(self.to) <= MAX_TO:
            raise RequestError(f"`to` of email has 1 to {MAX_TO} addresses")
        for address in (self.sender, *self.to):
            if _ADDRESS.fullmatch(address) is None:
                raise RequestError(f"{address!r} is not a mail address like me@example.org")
        has_password = self.password_file is not None or self.password_env is not None
        if (self.user is not None) != has_password:
            raise RequestError("email needs user and password_file (or password_env), or neither")
        if has_password and self.tls == "off":
            raise RequestError("email with a password needs tls = starttls or tls")

    @property
    def address(self) -> tuple[str, int]:
        """The server's host and port."""
        return self.host, self.port or _PORTS[self.tls]

    def read_password(self) -> str:
        """The user's password, "" without one. Raises `WaiError`."""
        return read_secret("notify.email", self.password_env, self.password_file)


@dataclass(frozen=True, slots=True)
class NotifyConfig:
    """Who is told of problems, and when. Raises `RequestError` for values that make no sense."""

    webhook: tuple[WebhookConfig, ...] = ()
    """Where JSON is posted."""
    ntfy: tuple[NtfyConfig, ...] = ()
    """Topics of ntfy servers."""
    email: tuple[EmailConfig, ...] = ()
    """Mail servers, and whom to write to."""
    after_s: float = 60.0
    """How long something must be wrong before anybody is told, and be over before that is told."""
    quiet: str = ""
    """Hours of the day in which nobody is told (22:00-07:00); what is still wrong then is told at
    their end."""
    time_zone: str = ""
    """Whose day that is, such as Europe/Berlin; empty: this machine's."""

    def __post_init__(self) -> None:
        if not 0 <= self.after_s <= 86400:
            raise RequestError("notify.after_s is 0 to 86400 (a day)")
        if self.quiet and _HOURS.fullmatch(self.quiet) is None:
            raise RequestError('notify.quiet is HH:MM-HH:MM, such as "22:00-07:00"')
        if len(self.webhook) + len(self.ntfy) + len(self.email) > MAX_RECEIVERS:
            raise RequestError(f"notify has at most {MAX_RECEIVERS} receivers")
        try:
            self.zone()
        except (KeyError, ValueError, OSError) as error:
            raise RequestError(
                f"notify.time_zone: this machine knows no zone {self.time_zone!r}"
            ) from error

    def zone(self) -> datetime.tzinfo | None:
        """The zone of the quiet hours; without it: this machine's. Raises `KeyError`, `ValueError`
        or `OSError` for one that this machine does not know."""
        if not self.time_zone:
            return None
        from zoneinfo import ZoneInfo

        return ZoneInfo(self.time_zone)

    def is_quiet(self, now: float) -> bool:
        """Whether nobody is to be told now. `now`: seconds since 1970."""
        hours = _HOURS.fullmatch(self.quiet)
        if hours is None:
            return False
        begins, ends = (int(hours[n]) * 60 + int(hours[n + 1]) for n in (1, 3))
        local = datetime.datetime.fromtimestamp(now, self.zone())
        minute = local.hour * 60 + local.minute
        if begins <= ends:
            return begins <= minute < ends
        return minute >= begins or minute < ends


def place_of(url: str) -> tuple[Origin, str]:
    """The server of a URL, and its path with its query. Raises `RequestError`, which does not quote
    what comes after the host: that may be a secret."""
    try:
        parts = urlsplit(url)
        origin, _ = Origin.parse(f"{parts.scheme}://{parts.netloc}")
    except (ValueError, RequestError):
        raise RequestError("the url of a receiver is https://HOST[:PORT]/PATH") from None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.fragment or not (target.isascii() and target.isprintable() and " " not in target):
        raise RequestError("the url of a receiver is https://HOST[:PORT]/PATH, in ASCII")
    return origin, target


def _one(what: str, **given: object) -> None:
    if sum(value is not None for value in given.values()) > 1:
        raise RequestError(f"{what} takes one of {' and '.join(given)}")
