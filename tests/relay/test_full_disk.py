"""What takes access away works on a full disk, says that it is not written, and works once more."""

from __future__ import annotations

import pytest

from tests.relay.conftest import Clock
from wai_protocol.errors import AuthError, RequestError, StoreError
from wai_protocol.handshake import Hello, ProvenHello
from wai_protocol.identity import NodeKey
from wai_protocol.invite import decode
from wai_relay.access.admins import Admins
from wai_relay.access.keys import KeyRing
from wai_relay.access.sign_ins import SignIns
from wai_relay.fleet.invites import InviteAddress, Invites
from wai_relay.fleet.nodes import ConnectedFleet
from wai_relay.fleet.registry import NodeRegistry
from wai_relay.storage import Row, SqliteStore, Store, Value, Write

pytestmark = pytest.mark.anyio

KEY = NodeKey.generate()


class FillingDisk(Store):
    """A store whose disk is full while `full` is set."""

    def __init__(self, inner: SqliteStore) -> None:
        self.inner = inner
        self.full = False

    async def write(self, *writes: Write) -> None:
        if self.full:
            raise StoreError("writing to relay.db failed: database or disk is full")
        await self.inner.write(*writes)

    def submit(self, *writes: Write) -> None:
        if not self.full:
            self.inner.submit(*writes)

    async def read(self, sql: str, *values: Value) -> list[Row]:
        return await self.inner.read(sql, *values)

    async def close(self) -> None:
        await self.inner.close()


@pytest.fixture
async def disk(store: SqliteStore) -> FillingDisk:
    return FillingDisk(store)


async def test_a_node_is_cut_off_at_once_and_removed_by_a_second_try(
    disk: FillingDisk, clock: Clock
) -> None:
    registry = await NodeRegistry.load(disk, clock)
    invites = Invites(disk, registry, clock)
    _, text = await invites.create(InviteAddress("https://relay.example", b"r" * 32, b"p" * 32))
    await invites.redeem(decode(text).secret, KEY.public, "box")
    fleet = ConnectedFleet(registry, invites)
    hello = Hello(KEY.public, "box", b"", instance="first", tunnel=0)
    await fleet.admit(ProvenHello(hello, None))
    disk.full = True
    for _ in range(2):
        with pytest.raises(StoreError, match="do it again"):
            await fleet.remove("box")
        assert fleet.sessions == 0
        with pytest.raises(AuthError):
            await fleet.admit(ProvenHello(hello, None))
    disk.full = False
    await fleet.remove("box")
    assert list(fleet.nodes()) == []
    with pytest.raises(RequestError):
        await fleet.remove("box")
    assert (await NodeRegistry.load(disk, clock)).nodes() == []


async def test_a_key_is_refused_at_once_and_revoked_by_a_second_try(
    disk: FillingDisk, clock: Clock
) -> None:
    keys = await KeyRing.load(disk, clock)
    key, secret = await keys.create("app")
    headers = [(b"authorization", b"Bearer " + secret.encode())]
    disk.full = True
    for _ in range(2):
        with pytest.raises(StoreError, match="do it again"):
            await keys.revoke(key.id)
        with pytest.raises(AuthError):
            keys.authenticate(headers)
    disk.full = False
    await keys.revoke(key.id)
    with pytest.raises(AuthError):
        (await KeyRing.load(disk, clock)).authenticate(headers)


async def test_an_admin_is_refused_at_once_and_revoked_by_a_second_try(
    disk: FillingDisk, clock: Clock
) -> None:
    admins = await Admins.load(disk, "local-token", clock)
    await admins.create("ann", "ann-token")
    disk.full = True
    for _ in range(2):
        with pytest.raises(StoreError, match="do it again"):
            await admins.revoke("ann")
        with pytest.raises(AuthError):
            admins.authenticate(b"ann-token")
    disk.full = False
    await admins.revoke("ann")
    with pytest.raises(RequestError):
        await admins.revoke("ann")
    assert not (await Admins.load(disk, "local-token", clock)).knows("ann")


async def test_a_start_without_news_needs_no_disk(disk: FillingDisk, clock: Clock) -> None:
    sign_ins = await SignIns.load(disk, await Admins.load(disk, "local-token", clock), clock)
    _, cookie = await sign_ins.begin(b"local-token")
    disk.full = True
    again = await SignIns.load(disk, await Admins.load(disk, "local-token", clock), clock)
    assert again.find(cookie).admin == "local"


async def test_a_browser_is_signed_out_at_once_and_for_good_by_a_second_try(
    disk: FillingDisk, clock: Clock
) -> None:
    admins = await Admins.load(disk, "local-token", clock)
    sign_ins = await SignIns.load(disk, admins, clock)
    first, cookie = await sign_ins.begin(b"local-token")
    disk.full = True
    for _ in range(2):
        with pytest.raises(StoreError, match="do it again"):
            await sign_ins.end_by_id(first.id)
        with pytest.raises(AuthError):
            sign_ins.find(cookie)
    disk.full = False
    await sign_ins.end_by_id(first.id)
    assert (await SignIns.load(disk, admins, clock)).list() == []
