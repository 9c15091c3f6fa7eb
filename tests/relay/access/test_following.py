"""What one relay writes to a shared store holds at another one; two here share a file.

The second relay reads while it writes itself: nothing that it revoked comes back by an older read.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace as with_changes

import pytest

from tests.relay.conftest import Clock
from wai_api.limits import KeyLimits
from wai_protocol.errors import AuthError, RequestError, StoreError
from wai_relay.access.admins import Admins, local_admin_of
from wai_relay.access.keys import KeyRing
from wai_relay.access.sign_ins import SignIns
from wai_relay.settings import SettingsBook
from wai_relay.storage import Store, Value, Write

pytestmark = pytest.mark.anyio


def authorization(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {secret}".encode())]


class SlowReads(Store):
    """A store whose reads can be held back once they have their rows, and whose writes can fail."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.reading = asyncio.Event()
        self.fails = False

    async def write(self, *writes: Write) -> None:
        if self.fails:
            raise StoreError("the database is away")
        await self._store.write(*writes)

    def submit(self, *writes: Write) -> None:
        self._store.submit(*writes)

    async def read(self, sql: str, *values: Value) -> list[dict[str, object]]:
        rows = await self._store.read(sql, *values)
        self.reading.set()
        await self.go_on.wait()
        return rows

    async def close(self) -> None:
        await self._store.close()


async def test_a_key_of_another_relay_is_good_and_is_refused_when_revoked_there(
    store: Store, clock: Clock
) -> None:
    here, there = await KeyRing.load(store, clock), await KeyRing.load(store, clock)
    key, secret = await there.create("app", labels=["team"])
    with pytest.raises(AuthError):
        here.authenticate(authorization(secret))
    await here.follow(key.id)
    assert here.authenticate(authorization(secret)) == key
    await there.set_limits(key.id, KeyLimits(rpm=3))
    await here.follow(key.id)
    assert here.authenticate(authorization(secret)).limits.rpm == 3
    await there.revoke(key.id)
    await here.follow(key.id)
    with pytest.raises(AuthError):
        here.authenticate(authorization(secret))
    assert here.state_of(key.id) == ("app", "revoked")


async def test_after_a_gap_all_keys_are_as_the_store_has_them(store: Store, clock: Clock) -> None:
    here, there = await KeyRing.load(store, clock), await KeyRing.load(store, clock)
    gone, gone_secret = await here.create("gone")
    kept, kept_secret = await here.create("kept")
    await there.follow()
    await there.revoke(gone.id)
    _, fresh_secret = await there.create("fresh")
    _, rotated_secret = await there.rotate(kept.id, 60.0)
    await here.follow()
    with pytest.raises(AuthError):
        here.authenticate(authorization(gone_secret))
    assert here.authenticate(authorization(fresh_secret)).name == "fresh"
    assert here.authenticate(authorization(rotated_secret)).id == kept.id
    assert here.authenticate(authorization(kept_secret)).id == kept.id  # its grace
    clock.now += 61.0
    with pytest.raises(AuthError):
        here.authenticate(authorization(kept_secret))


async def test_a_read_from_before_a_revocation_does_not_bring_the_key_back(
    store: Store, clock: Clock
) -> None:
    slow = SlowReads(store)
    ring = await KeyRing.load(slow, clock)
    key, secret = await ring.create("app")
    slow.go_on.clear()
    slow.reading.clear()
    following = asyncio.create_task(ring.follow(key.id))
    await slow.reading.wait()
    revoking = asyncio.create_task(ring.revoke(key.id))
    await asyncio.sleep(0)
    with pytest.raises(AuthError):  # before the store has it
        ring.authenticate(authorization(secret))
    slow.go_on.set()
    await asyncio.gather(following, revoking)
    with pytest.raises(AuthError):
        ring.authenticate(authorization(secret))


async def test_a_revocation_that_could_not_be_stored_outlives_what_is_followed(
    store: Store, clock: Clock
) -> None:
    slow = SlowReads(store)
    ring = await KeyRing.load(slow, clock)
    key, secret = await ring.create("app")
    slow.fails = True
    with pytest.raises(StoreError, match="refused now"):
        await ring.revoke(key.id)
    await ring.follow()
    with pytest.raises(AuthError):
        ring.authenticate(authorization(secret))
    other = await KeyRing.load(store, clock)
    assert other.authenticate(authorization(secret)) == key  # which hears nothing of it
    slow.fails = False
    await ring.follow()  # the database is back
    await other.follow()
    for relay in (ring, other):
        with pytest.raises(AuthError):
            relay.authenticate(authorization(secret))


async def test_of_two_relays_that_change_a_key_at_once_one_is_told_to_look_again(
    store: Store, clock: Clock
) -> None:
    here, there = await KeyRing.load(store, clock), await KeyRing.load(store, clock)
    key, _ = await here.create("app")
    await there.follow()
    await here.set_limits(key.id, KeyLimits(rpm=1))
    with pytest.raises(RequestError, match="changed meanwhile"):
        await there.set_limits(key.id, KeyLimits(rpm=2))
    await there.follow(key.id)
    changed = await there.set_limits(key.id, KeyLimits(rpm=2))
    assert with_changes(changed, labels=()).limits.rpm == 2


async def test_each_machine_has_an_admin_of_its_own_who_is_known_at_all_relays(
    store: Store, clock: Clock
) -> None:
    one, two = local_admin_of("relay_one"), local_admin_of("relay_two")
    here = await Admins.load(store, "wai_at_one", clock, local=one)
    there = await Admins.load(store, "wai_at_two", clock, local=two)
    await here.follow()
    assert here.authenticate(b"wai_at_two") == two
    assert there.authenticate(b"wai_at_one") == one
    with pytest.raises(RequestError, match="admin of this machine"):
        await here.revoke(one)
    await here.revoke(two)  # of a machine that was stolen
    await there.follow()
    assert there.authenticate(b"wai_at_two") == two  # only its own file says otherwise, there
    with pytest.raises(AuthError):
        here.authenticate(b"wai_at_two")


async def test_a_browser_that_signed_in_at_one_relay_is_signed_in_at_all_and_out_of_all(
    store: Store, clock: Clock
) -> None:
    one, two = local_admin_of("relay_one"), local_admin_of("relay_two")
    admins = await Admins.load(store, "wai_at_one", clock, local=one)
    others = await Admins.load(store, "wai_at_two", clock, local=two)
    here = await SignIns.load(store, admins, clock)
    there = await SignIns.load(store, others, clock)
    sign_in, cookie = await here.begin(b"wai_at_one")
    with pytest.raises(AuthError):
        there.find(cookie)
    await there.follow()
    assert there.find(cookie).admin == one
    await there.end_by_id(sign_in.id)
    await here.follow()
    with pytest.raises(AuthError):
        here.find(cookie)


async def test_a_setting_of_another_relay_holds_here(store: Store, clock: Clock) -> None:
    here, there = await SettingsBook.load(store, clock), await SettingsBook.load(store, clock)
    await there.change(invite_ttl_s=60.0)
    await here.follow()
    assert here.now.invite_ttl_s == 60.0
