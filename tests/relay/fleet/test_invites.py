"""Invites: each lets exactly one node in, whatever races, restarts and lost answers there are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.relay.conftest import Clock, everything_in
from wai_protocol.errors import AuthError, Fault, RequestError, WaiError
from wai_protocol.identity import NodeKey, node_id
from wai_protocol.invite import decode
from wai_relay.fleet.invites import InviteAddress, Invites
from wai_relay.fleet.registry import NodeRegistry
from wai_relay.storage import Store

pytestmark = pytest.mark.anyio

ADDRESS = InviteAddress("https://relay.example", b"r" * 32, b"p" * 32)


async def _parts(store: Store, clock: Clock) -> tuple[Invites, NodeRegistry]:
    registry = await NodeRegistry.load(store, clock)
    return Invites(store, registry, clock), registry


async def _invite(invites: Invites, **options: object) -> bytes:
    _, text = await invites.create(ADDRESS, **options)  # type: ignore[arg-type]
    return decode(text).secret


async def test_the_string_says_where_the_relay_is_and_how_to_know_it(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    invites, _ = await _parts(store, clock)
    _, text = await invites.create(ADDRESS)
    invite = decode(text)
    assert (invite.url, invite.relay, invite.pin) == (ADDRESS.url, ADDRESS.relay, ADDRESS.pin)
    assert invite.secret not in everything_in(tmp_path)


async def test_a_node_that_asks_two_relays_at_once_gets_the_same_answer_from_both(
    store: Store, clock: Clock
) -> None:
    (here, _), (there, _) = await _parts(store, clock), await _parts(store, clock)
    secret, key = await _invite(here), NodeKey.generate()
    asked = [relay.redeem(secret, key.public, "box") for relay in (here, there)]
    one, other = await asyncio.gather(*asked)
    assert one == other


async def test_a_node_that_asks_again_at_a_relay_that_has_not_heard_of_it_gets_the_same_answer(
    store: Store, clock: Clock
) -> None:
    (here, _), (there, _) = await _parts(store, clock), await _parts(store, clock)
    secret, key = await _invite(here), NodeKey.generate()
    first = await here.redeem(secret, key.public, "box")
    assert await there.redeem(secret, key.public, "box") == first


async def test_two_hosts_of_one_name_come_in_at_relays_that_have_not_heard_of_each_other(
    store: Store, clock: Clock
) -> None:
    (here, _), (there, _) = await _parts(store, clock), await _parts(store, clock)
    names = [
        (await relay.redeem(await _invite(here), NodeKey.generate().public, None, "gpu.lan")).name
        for relay in (here, there)
    ]
    assert names == ["gpu", "gpu-2"]


async def test_of_twenty_nodes_that_race_for_an_invite_one_gets_in(
    store: Store, clock: Clock
) -> None:
    invites, registry = await _parts(store, clock)
    secret = await _invite(invites)
    keys = [NodeKey.generate() for _ in range(20)]
    outcomes = await asyncio.gather(
        *(invites.redeem(secret, key.public, f"n{i}") for i, key in enumerate(keys)),
        return_exceptions=True,
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, WaiError)]
    assert len(refused) == 19
    assert {error.fault for error in refused} == {Fault.INVITE_INVALID}
    assert len(registry.nodes()) == 1
    assert len((await NodeRegistry.load(store)).nodes()) == 1


async def test_a_node_that_did_not_hear_the_answer_may_ask_again(
    store: Store, clock: Clock
) -> None:
    invites, _ = await _parts(store, clock)
    secret, key = await _invite(invites), NodeKey.generate()
    first = await invites.redeem(secret, key.public, "box")
    assert await invites.redeem(secret, key.public, "box") == first
    after_restart, _ = await _parts(store, clock)
    assert await after_restart.redeem(secret, key.public, "box") == first
    with pytest.raises(AuthError, match="used"):
        await after_restart.redeem(secret, NodeKey.generate().public, "other")


async def test_a_taken_name_costs_no_invite(store: Store, clock: Clock) -> None:
    invites, _ = await _parts(store, clock)
    await invites.redeem(await _invite(invites), NodeKey.generate().public, "box")
    secret, key = await _invite(invites), NodeKey.generate()
    with pytest.raises(RequestError) as caught:
        await invites.redeem(secret, key.public, "box")
    assert caught.value.fault is Fault.NAME_TAKEN
    with pytest.raises(RequestError):
        await invites.redeem(secret, key.public, "b x")
    assert (await invites.redeem(secret, key.public, "box2")).name == "box2"


async def test_expired_revoked_and_unknown_invites_say_which(store: Store, clock: Clock) -> None:
    invites, _ = await _parts(store, clock)
    secret = await _invite(invites, ttl_s=60.0)
    clock.now += 60
    with pytest.raises(AuthError, match="expired"):
        await invites.redeem(secret, NodeKey.generate().public, None)
    record, text = await invites.create(ADDRESS)
    await invites.revoke(record.id)
    with pytest.raises(AuthError, match="revoked"):
        await invites.redeem(decode(text).secret, NodeKey.generate().public, None)
    with pytest.raises(AuthError, match="does not know"):
        await invites.redeem(b"0" * 16, NodeKey.generate().public, None)


async def test_a_used_invite_cannot_be_revoked_which_would_look_as_if_it_helped(
    store: Store, clock: Clock
) -> None:
    invites, _ = await _parts(store, clock)
    record, text = await invites.create(ADDRESS)
    await invites.redeem(decode(text).secret, NodeKey.generate().public, None)
    with pytest.raises(RequestError, match="used already"):
        await invites.revoke(record.id)
    assert [i.state(clock.now) for i in await invites.list()] == ["used"]


async def test_a_removed_node_is_out_also_after_a_restart_and_in_by_a_new_invite(
    store: Store, clock: Clock
) -> None:
    invites, registry = await _parts(store, clock)
    secret, key = await _invite(invites), NodeKey.generate()
    node = await invites.redeem(secret, key.public, "box")
    await registry.remove(node.id)
    for known in (registry, await NodeRegistry.load(store, clock)):
        with pytest.raises(AuthError) as caught:
            known.by_public_key(key.public)
        assert caught.value.fault is Fault.NODE_REMOVED
    with pytest.raises(AuthError):
        await invites.redeem(secret, key.public, "box")  # not by the invite that it has used
    again = await invites.redeem(await _invite(invites, name="new"), key.public, None)
    assert (again.id, again.name) == (node_id(key.public), "new")
    assert registry.by_public_key(key.public) == again
    assert again.removed_at is None


async def test_no_deploy_is_remembered(store: Store, clock: Clock) -> None:
    invites, _ = await _parts(store, clock)
    key = NodeKey.generate()
    await invites.redeem(await _invite(invites, may_deploy=False), key.public, "box")
    node = (await NodeRegistry.load(store)).by_public_key(key.public)
    assert node.may_deploy is False


async def test_renaming_to_a_taken_name_is_refused(store: Store, clock: Clock) -> None:
    invites, registry = await _parts(store, clock)
    first = await invites.redeem(await _invite(invites), NodeKey.generate().public, "a")
    await invites.redeem(await _invite(invites), NodeKey.generate().public, "b")
    with pytest.raises(RequestError) as caught:
        await registry.rename(first.id, "b")
    assert caught.value.fault is Fault.NAME_TAKEN
    assert (await registry.rename(first.id, "c")).name == "c"
    assert registry.find("c") is not None


async def test_a_node_without_a_name_is_called_as_its_host_is(store: Store, clock: Clock) -> None:
    invites, _ = await _parts(store, clock)

    async def name(host: str, **options: object) -> str:
        secret = await _invite(invites, **options)
        return (await invites.redeem(secret, NodeKey.generate().public, None, host)).name

    assert await name("box.home.arpa") == "box"
    assert await name("box") == "box-2"
    assert await name("Anna\u2019s PC") == "Anna-s-PC"
    assert await name("-" + "x" * 200) == "x" * 56
    assert await name("box", name="told") == "told"
    assert (await name("\u4e2d\u6587")).startswith("node-")
    assert (await name("")).startswith("node-")


async def test_two_hosts_of_one_name_that_join_at_once_both_get_in(
    store: Store, clock: Clock
) -> None:
    invites, registry = await _parts(store, clock)
    secrets = [await _invite(invites) for _ in range(4)]
    joined = await asyncio.gather(
        *(invites.redeem(s, NodeKey.generate().public, None, "box") for s in secrets)
    )
    assert {node.name for node in joined} == {"box", "box-2", "box-3", "box-4"}
    assert len(registry.nodes()) == 4


async def test_a_drained_node_is_drained_after_a_restart(store: Store, clock: Clock) -> None:
    invites, registry = await _parts(store, clock)
    node = await invites.redeem(await _invite(invites), NodeKey.generate().public, "box")
    await registry.set_drained(node.id, drained=True)
    again = (await NodeRegistry.load(store)).get(node.id)
    assert again is not None
    assert (again.drained, again.may_deploy) == (True, True)
    await registry.set_drained(node.id, drained=False)
    assert (await NodeRegistry.load(store)).find("box") == node


async def test_a_renamed_node_is_found_by_its_new_name_only(store: Store, clock: Clock) -> None:
    invites, registry = await _parts(store, clock)
    node = await invites.redeem(await _invite(invites), NodeKey.generate().public, "box")
    await invites.redeem(await _invite(invites), NodeKey.generate().public, "other")
    await registry.rename(node.id, "desk")
    for known in (registry, await NodeRegistry.load(store)):
        found = known.find("desk")
        assert found is not None
        assert (found.id, known.find("box")) == (node.id, None)
    with pytest.raises(RequestError) as taken:
        await registry.rename(node.id, "other")
    assert taken.value.fault is Fault.NAME_TAKEN
