"""A link signs one browser in, and only while its admin is what it was."""

from __future__ import annotations

import asyncio

import pytest

from tests.relay.conftest import Clock
from wai_protocol.errors import AuthError
from wai_relay.access.admins import Admins, local_admin_of
from wai_relay.access.sign_in_links import LINK_S, MAX_LINKS, SignInLinks
from wai_relay.access.sign_ins import SignIns
from wai_relay.storage import Store
from wai_relay.storage.postgres import PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress

pytestmark = pytest.mark.anyio


async def test_a_link_signs_in_once(store: Store, clock: Clock) -> None:
    admins = await Admins.load(store, "wai_at_local", clock)
    sign_ins = await SignIns.load(store, admins, clock)
    secret, expires_at = await sign_ins.links.make("local")
    assert expires_at == clock.now + LINK_S
    found, cookie = await sign_ins.begin(secret.encode())
    assert (found.admin, sign_ins.find(cookie).id) == ("local", found.id)
    with pytest.raises(AuthError, match="wai sign-in link"):
        await sign_ins.begin(secret.encode())


async def test_a_link_that_one_relay_made_signs_in_at_another_once(
    relay_database: str, clock: Clock
) -> None:
    store = await PostgresStore.open(PostgresAddress(relay_database))
    one, two = local_admin_of("relay_one"), local_admin_of("relay_two")
    admins = await Admins.load(store, "wai_at_one", clock, local=one)
    others = await Admins.load(store, "wai_at_two", clock, local=two)
    here, there = SignInLinks(store, admins, clock), SignInLinks(store, others, clock)
    secret, _ = await here.make(one)
    taken = [relay.redeem(secret.encode()) for relay in (there, here, there)]
    outcomes = await asyncio.gather(*taken, return_exceptions=True)
    assert [found for found in outcomes if not isinstance(found, AuthError)] == [one]
    await store.close()


@pytest.mark.parametrize("change", ["time", "token", "revoked", "another secret"])
async def test_a_link_is_worthless_after(change: str, store: Store, clock: Clock) -> None:
    admins = await Admins.load(store, "wai_at_local", clock)
    await admins.create("anna", "wai_at_anna")
    links = SignInLinks(store, admins, clock)
    secret, _ = await links.make("anna")
    match change:
        case "time":
            clock.now += LINK_S
        case "token":
            await admins.revoke("anna")
            await admins.create("anna", "wai_at_other")
        case "revoked":
            await admins.revoke("anna")
        case _:
            secret = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    with pytest.raises(AuthError):
        await links.redeem(secret.encode())


async def test_links_that_nobody_opens_take_bounded_memory(store: Store, clock: Clock) -> None:
    links = SignInLinks(store, await Admins.load(store, "wai_at_local", clock), clock)
    made = []
    for _ in range(MAX_LINKS + 1):
        made.append((await links.make("local"))[0])
        clock.now += 1.0
    first, *_, last = made
    assert await links.redeem(last.encode()) == "local"
    with pytest.raises(AuthError):
        await links.redeem(first.encode())
