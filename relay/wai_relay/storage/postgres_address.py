"""Where PostgreSQL is, who we are there, and how a connection to it is made.

The address is libpq's URL: `postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full`. It may name
several hosts, by commas: the one that takes writes is used, whichever that is at the time. Names
are resolved at each attempt. What the URL leaves out comes from libpq's variables and files
(`PGPASSFILE`, `~/.pgpass`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from wai_protocol.errors import RequestError, StoreError

if TYPE_CHECKING:
    import asyncpg

SCHEMES: Final = ("postgresql://", "postgres://")
OLDEST_VERSION: Final = 14  # the oldest that its makers mend, and that tells what is a standby
# To one host, with TLS and password: a second where a continent lies between. With the next one the
# time in which a host is missed that is gone without a word, a fail-over takes less than 10 s.
CONNECT_TIMEOUT_S: Final = 4.0
GONE_AFTER_S: Final = 5
"""For so long a host may leave what was sent to it without a sign that it arrived."""
# For one statement, at the server: the longest report takes one second with a year of usage.
STATEMENT_TIMEOUT_S: Final = 10
# For a row that another relay is changing: it is held for the time of a commit.
LOCK_TIMEOUT_S: Final = 5
# The server ends a transaction that says nothing for so long: its relay was cut off.
IDLE_TRANSACTION_TIMEOUT_S: Final = 15
# At our end, where the server does not answer at all: then the connection is given up.
ANSWER_TIMEOUT_S: Final = STATEMENT_TIMEOUT_S + 2.0
# An unused connection whose other end is gone is noticed after 25 s at most, by either end: the
# server then gives the locks free that it held.
_KEEPALIVE: Final = {"idle": 10, "interval": 5, "count": 3}
_SOCKET_OPTIONS: Final = {
    "TCP_KEEPIDLE": _KEEPALIVE["idle"],
    "TCP_KEEPINTVL": _KEEPALIVE["interval"],
    "TCP_KEEPCNT": _KEEPALIVE["count"],
    "TCP_USER_TIMEOUT": GONE_AFTER_S * 1000,
}
# Parameters of libpq that the driver would send to the server, which does not know them. What they
# are for is the relay's own choice (timeouts, keepalives, the host), or nothing that is done here.
_LEFT_OUT: Final = frozenset(
    {
        *("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval"),
        *("keepalives_count", "fallback_application_name", "load_balance_hosts"),
        *("channel_binding", "gssencmode", "sslcompression", "sslsni"),
    }
)
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
MAX_PASSWORD_BYTES: Final = 4096
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:]*)(:\d*)?")  # the name may be left out
_MAX_PORT: Final = 65_535  # uvloop would take another one for a larger number
_MAX_NAME_BYTES: Final = 63  # PostgreSQL cuts longer ones


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Which database to use. Raises `RequestError` if the URL is none.

    `password_file`: a file whose first line is the password; it is read for each connection, so
    that the password can be changed.
    """

    url: str = field(repr=False)
    password_file: Path | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(SCHEMES):
            raise RequestError("database is a URL: postgresql://USER@HOST:PORT/DATABASE")
        parts = _split(self.url)
        # Else a part of the password would pass for a host or a path, and would be shown.
        hosts = parts.netloc.rpartition("@")[2].split(",")
        if (
            "@" in parts.path + parts.query
            or parts.fragment
            or not all(_HOST.fullmatch(host) for host in hosts)
        ):
            raise RequestError(
                "database is no URL that can be used: what is not a letter or a digit in user and"
                " password is written as in other URLs, %40 for @, %2F for /, %3A for :"
            )
        named = _options(parts)
        ports = [host.rpartition(":")[2] for host in hosts] + named.get("port", "").split(",")
        if any(port.isdecimal() and int(port) > _MAX_PORT for port in ports):
            raise RequestError(f"database has a port over {_MAX_PORT}")
        if "application_name" in named:
            raise RequestError("the relay sets application_name itself: leave it out of database")
        for name in ("channel_binding", "gssencmode"):
            if named.get(name) == "require":
                raise RequestError(
                    f"the relay's driver of PostgreSQL can't do {name}=require: leave it out of"
                    " database, and use sslmode=verify-full"
                )

    def __str__(self) -> str:
        """Return who and where, without a password: USER@HOST:PORT/DATABASE."""
        parts = _split(self.url)
        user, hosts = _user_and_hosts(parts)
        return f"{f'{user}@{hosts}' if user else hosts}{parts.path}"

    @property
    def has_password(self) -> bool:
        """Whether the URL itself has a password."""
        parts = _split(self.url)
        return ":" in parts.netloc.rpartition("@")[0] or "password" in _options(parts)

    def hosts(self) -> list[PostgresAddress]:
        """Return an address for each of its hosts, so that each has a time limit of its own."""
        parts = _split(self.url)
        login, at, hosts = parts.netloc.rpartition("@")
        if not hosts:
            return [dataclasses.replace(self, url=url) for url in _each_named(self.url, parts)]
        rest = parts.path + (f"?{parts.query}" if parts.query else "")
        return [
            dataclasses.replace(self, url=f"{parts.scheme}://{login}{at}{host}{rest}")
            for host in hosts.split(",")
        ]


async def connect(address: PostgresAddress, purpose: str = "") -> asyncpg.Connection:
    """Connect to the host that takes writes. Raises `StoreError`, which says what to do.

    `purpose`: what `pg_stat_activity` shows of the connection, beside that it is a relay's.
    """
    failures: list[StoreError] = []
    for host in address.hosts():
        try:
            return await _connect(host, purpose)
        except StoreError as error:
            failures.append(error)
    # The host that can be reached tells more than one that cannot.
    raise max(failures, key=lambda error: not isinstance(error, UnreachableError))


class UnreachableError(StoreError):
    """Nothing answers at the address, or what does is not what takes writes: that may pass."""


async def _connect(address: PostgresAddress, purpose: str) -> asyncpg.Connection:
    import asyncpg

    secret: dict[str, Any] = {}
    if address.password_file is not None:
        secret["password"] = await asyncio.to_thread(_read_password, address.password_file)
    name = f"wai relay: {purpose}" if purpose else "wai relay"
    try:
        connection: asyncpg.Connection = await asyncpg.connect(
            _for_driver(address.url),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=ANSWER_TIMEOUT_S,
            target_session_attrs="read-write",
            server_settings={
                "application_name": name.encode()[:_MAX_NAME_BYTES].decode(errors="ignore"),
                "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
                "lock_timeout": f"{LOCK_TIMEOUT_S}s",
                "idle_in_transaction_session_timeout": f"{IDLE_TRANSACTION_TIMEOUT_S}s",
                "client_encoding": "utf8",  # whatever the URL says: the driver knows no other
                "jit": "off",  # it costs each report 100 ms
                **{f"tcp_keepalives_{name}": str(value) for name, value in _KEEPALIVE.items()},
            },
            **secret,
        )
    except (
        *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
        *(OSError, TimeoutError, ValueError),
    ) as error:
        raise _why_not(address, error) from error
    try:
        await _prepare(address, connection)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            raise _why_not(address, error) from error
        raise
    return connection


async def _prepare(address: PostgresAddress, connection: asyncpg.Connection) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST_VERSION:
        raise StoreError(
            f"PostgreSQL at {address} is version {version.major}: a relay needs"
            f" {OLDEST_VERSION} or newer"
        )
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise StoreError(
            f"the database at {address} has the encoding {encoding}: make one with"
            " CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    # sum() of integers has this type, and SQLite's an integer.
    await connection.set_type_codec(
        "numeric", schema="pg_catalog", encoder=str, decoder=_number, format="text"
    )
    sock = connection._transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _SOCKET_OPTIONS.items():
            with suppress(AttributeError, OSError):  # macOS lacks some
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _why_not(address: PostgresAddress, error: Exception) -> StoreError:
    """Return the error that says why there is no connection, and what to do."""
    import asyncpg

    user = _user_and_hosts(_split(address.url))[0] or "the user of this process"
    match error:
        case asyncpg.InvalidPasswordError():
            return StoreError(
                f"PostgreSQL at {address} refuses the password of {user}: put the right one into"
                " the file that database_password_file names"
            )
        case asyncpg.InvalidAuthorizationSpecificationError():
            return StoreError(
                f"PostgreSQL at {address} does not let {user} in ({error}): make that role, or"
                " allow it in pg_hba.conf"
            )
        case asyncpg.InvalidCatalogNameError():
            return StoreError(
                f"PostgreSQL at {address} has no such database ({error}): make it with"
                " CREATE DATABASE … ENCODING 'UTF8'"
            )
        case asyncpg.TooManyConnectionsError():
            return UnreachableError(
                f"PostgreSQL at {address} takes no more connections ({error}): raise"
                " max_connections there"
            )
        case asyncpg.TargetServerAttributeNotMatched():
            return UnreachableError(
                f"PostgreSQL at {address} is a standby, or takes no writes: name the primary, or"
                " several hosts by commas"
            )
        case TimeoutError():
            return UnreachableError(
                f"PostgreSQL at {address} does not answer within {CONNECT_TIMEOUT_S:.0f} s: is the"
                " address right, and does a firewall let the relay through?"
            )
        case socket.gaierror():
            return UnreachableError(
                f"the name of PostgreSQL's host in {address} is not known: {error.strerror}"
            )
        case FileNotFoundError() if (missing := _missing_file(address)) is not None:
            return StoreError(f"{missing}, which the URL of PostgreSQL names, is not there")
        case ssl.SSLError():
            return StoreError(
                f"PostgreSQL at {address} and the relay do not agree on TLS ({error}): look at"
                " sslmode and sslrootcert in the URL"
            )
        case OSError():
            reason = error.strerror or str(error)
            return UnreachableError(
                f"PostgreSQL at {address} cannot be reached ({reason}): is it running, and is the"
                " address right?"
            )
        case (
            asyncpg.UndefinedObjectError()
            | asyncpg.InvalidParameterValueError()
            | asyncpg.CantChangeRuntimeParamError()
        ):
            return StoreError(
                f"PostgreSQL at {address} does not take an option that its URL has after the ?:"
                f" {error}"
            )
        case asyncpg.PostgresError():
            return UnreachableError(f"PostgreSQL at {address} refuses a connection: {error}")
        case asyncpg.InterfaceError() | ValueError():
            # Not shown: it may quote what the URL says. It is a word that asyncpg does not know.
            return StoreError(
                f"the URL of PostgreSQL at {address} has an option that is not known, or a value"
                " that makes no sense: look at what stands after its ?"
            )
        case _:
            return StoreError(f"no connection to PostgreSQL at {address} can be made: {error}")


def _read_password(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_PASSWORD_BYTES).decode()
    except OSError as error:
        raise StoreError(f"{file} with the database's password: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{file} with the database's password is not text in UTF-8") from error
    return text.partition("\n")[0].rstrip("\r")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # its text may have a part of the password
        raise RequestError("database is not a URL: is an IPv6 address in brackets?") from None


def _options(parts: SplitResult) -> dict[str, str]:
    """What stands after the ? of a URL."""
    return dict(parse_qsl(parts.query))


def _each_named(url: str, parts: SplitResult) -> list[str]:
    """A URL for each host that is named after the ?, as in `?host=a,b&port=1,2`."""
    named = _options(parts)
    hosts, ports = named.get("host", "").split(","), named.get("port", "").split(",")
    if len(hosts) == 1 or len(ports) not in (1, len(hosts)):
        return [url]  # the driver refuses what makes no sense
    each = []
    for host, port in zip(hosts, ports if len(ports) > 1 else ports * len(hosts), strict=True):
        own = {**named, "host": host, **({"port": port} if port else {})}
        query = urlencode(own, safe="/", quote_via=quote)
        each.append(f"{parts.scheme}://{parts.netloc}{parts.path}?{query}")
    return each


def _for_driver(url: str) -> str:
    """The URL without what the driver does not know."""
    parts = _split(url)
    query = "&".join(
        one for one in parts.query.split("&") if one.partition("=")[0] not in _LEFT_OUT
    )
    rest = parts.path + (f"?{query}" if query else "")
    return f"{parts.scheme}://{parts.netloc}{rest}"


def _missing_file(address: PostgresAddress) -> str | None:
    """A file that the URL names and that is not there."""
    named = _options(_split(address.url))
    return next(
        (named[name] for name in _FILES if name in named and not Path(named[name]).exists()), None
    )


def _user_and_hosts(parts: SplitResult) -> tuple[str, str]:
    login, _, hosts = parts.netloc.rpartition("@")
    named = _options(parts)
    return login.partition(":")[0] or named.get("user", ""), hosts or named.get("host", "")


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
