"""A link signs one browser in, and only while its admin is what it was."""

from __future__ import annotations

import pytest

from tests.relay.conftest import Clock
from wai_protocol.errors import AuthError
from wai_relay.access.admins import Admins
from wai_relay.access.sign_in_links import LINK_S, MAX_LINKS, SignInLinks
from wai_relay.access.sign_ins import SignIns
from wai_relay.storage import Store

pytestmark = pytest.mark.anyio


async def test_a_link_signs_in_once(store: Store, clock: Clock) -> None:
    admins = await Admins.load(store, "wai_at_local", clock)
    sign_ins = await SignIns.load(store, admins, clock)
    secret, expires_at = sign_ins.links.make("local")
    assert expires_at == clock.now + LINK_S
    found, cookie = await sign_ins.begin(secret.encode())
    assert (found.admin, sign_ins.find(cookie).id) == ("local", found.id)
    with pytest.raises(AuthError, match="wai sign-in link"):
        await sign_ins.begin(secret.encode())


@pytest.mark.parametrize("change", ["time", "token", "revoked", "another secret"])
async def test_a_link_is_worthless_after(change: str, store: Store, clock: Clock) -> None:
    admins = await Admins.load(store, "wai_at_local", clock)
    await admins.create("anna", "wai_at_anna")
    links = SignInLinks(admins, clock)
    secret, _ = links.make("anna")
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
        links.redeem(secret.encode())


async def test_links_that_nobody_opens_take_bounded_memory(store: Store, clock: Clock) -> None:
    links = SignInLinks(await Admins.load(store, "wai_at_local", clock), clock)
    first, *_, last = [links.make("local")[0] for _ in range(MAX_LINKS + 1)]
    assert links.redeem(last.encode()) == "local"
    with pytest.raises(AuthError):
        links.redeem(first.encode())
