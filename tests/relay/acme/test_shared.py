"""What relays share of a certificate is sealed: another key opens nothing, and says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from wai_protocol.errors import StoreError
from wai_relay.acme.shared import SharedCertificate, read_cluster_key
from wai_relay.storage import Write
from wai_relay.storage.postgres import PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress
from wai_transport.folder import DataFolder

pytestmark = pytest.mark.anyio

KEY = b"k" * 32
Make = Callable[..., SharedCertificate]


@pytest.fixture
async def store(relay_database: str) -> AsyncIterator[PostgresStore]:
    opened = await PostgresStore.open(PostgresAddress(relay_database))
    yield opened
    await opened.close()


@pytest.fixture
def relay(store: PostgresStore, tmp_path: Path) -> Make:
    """What one relay has, in a folder of its own."""

    def make(name: str, domain: str = "llm.example.com", key: bytes = KEY) -> SharedCertificate:
        return SharedCertificate(store, name, domain, key, DataFolder.open(tmp_path / name))

    return make


async def test_a_file_of_one_relay_is_at_the_other_as_it_was(relay: Make, tmp_path: Path) -> None:
    here, there = relay("here"), relay("there")
    (tmp_path / "here" / "acme.pem").write_bytes(b"certificate and key")
    await here.publish("acme.pem")
    assert await there.fetch() == {"acme.pem"}
    assert (tmp_path / "there" / "acme.pem").read_bytes() == b"certificate and key"
    assert (tmp_path / "there" / "acme.pem").stat().st_mode & 0o777 == 0o600
    assert await there.fetch() == set()


async def test_another_domain_has_a_certificate_of_its_own(relay: Make, tmp_path: Path) -> None:
    here, there = relay("here"), relay("there", domain="other.example.com")
    (tmp_path / "here" / "acme.pem").write_bytes(b"certificate and key")
    await here.publish("acme.pem")
    assert await there.fetch() == set()


async def test_another_cluster_key_opens_nothing(relay: Make, tmp_path: Path) -> None:
    here, there = relay("here"), relay("there", key=b"x" * 32)
    (tmp_path / "here" / "acme.pem").write_bytes(b"certificate and key")
    await here.publish("acme.pem")
    with pytest.raises(StoreError, match="another cluster key"):
        await there.fetch()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE shared_files SET sealed = 'short'::bytea",
        "UPDATE shared_files SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1)",
        "UPDATE shared_files SET name = 'admin.token'",  # a file that is none of the certificate's
    ],
)
async def test_what_was_changed_in_the_database_is_not_used(
    relay: Make, tmp_path: Path, store: PostgresStore, change: str
) -> None:
    here, there = relay("here"), relay("there")
    (tmp_path / "here" / "acme.pem").write_bytes(b"certificate and key")
    await here.publish("acme.pem")
    await store.write(Write(change))
    with pytest.raises(StoreError, match="another cluster key"):
        await there.fetch()
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("content", [b"", b"too short", b"x" * 5000])
def test_a_file_without_a_cluster_key_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "cluster.key"
    file.write_bytes(content)
    with pytest.raises(StoreError, match="cluster key"):
        read_cluster_key(file)
    with pytest.raises(StoreError, match="No such file"):
        read_cluster_key(tmp_path / "none")
