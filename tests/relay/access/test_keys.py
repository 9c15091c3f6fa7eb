"""API keys: who is let in, and that a revoked one stays out whatever happens at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.relay.conftest import Clock, everything_in
from wai_api.limits import KeyLimits
from wai_protocol.errors import AuthError, Fault, RequestError, StoreError
from wai_relay.access.former_secrets import MAX_GOOD, REMEMBERED_S
from wai_relay.access.keys import MAX_LENT, KeyRing, trial_id
from wai_relay.contracts.api_keys import TRIAL_KEY_ID, KeyRefused
from wai_relay.storage import Store, Write

pytestmark = pytest.mark.anyio


def _bearer(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + secret.encode())]


def _fault(ring: KeyRing, headers: list[tuple[bytes, bytes]]) -> Fault:
    with pytest.raises(AuthError) as caught:
        ring.authenticate(headers)
    return caught.value.fault


async def test_a_key_is_taken_from_either_header(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, secret = await ring.create("app")
    assert secret.startswith("wai_sk_")
    assert ring.authenticate(_bearer(secret)) == key
    assert ring.authenticate([(b"authorization", b"bearer  " + secret.encode())]) == key
    assert ring.authenticate([(b"x-api-key", secret.encode())]) == key
    offered = b"realtime, openai-insecure-api-key." + secret.encode() + b" ,other"
    assert ring.authenticate([(b"sec-websocket-protocol", offered)]) == key
    # Anthropic's SDK may send both, one of them not ours.
    assert ring.authenticate([*_bearer("sk-ant-x"), (b"x-api-key", secret.encode())]) == key


async def test_no_key_and_a_wrong_key_are_told_apart(store: Store) -> None:
    ring = await KeyRing.load(store)
    _, secret = await ring.create("app")
    assert _fault(ring, []) is Fault.KEY_MISSING
    assert _fault(ring, [(b"authorization", b"Basic eDp5")]) is Fault.KEY_MISSING
    assert _fault(ring, _bearer(secret[:-1])) is Fault.KEY_INVALID
    assert _fault(ring, _bearer("x" * 1_000_000)) is Fault.KEY_INVALID
    assert _fault(ring, [(b"x-api-key", b"")]) is Fault.KEY_INVALID
    assert _fault(ring, [(b"sec-websocket-protocol", b"realtime")]) is Fault.KEY_MISSING
    other = b"openai-insecure-api-key.wai_sk_other"
    assert _fault(ring, [(b"sec-websocket-protocol", other)]) is Fault.KEY_INVALID


async def test_the_secret_is_nowhere_on_the_disk(store: Store, tmp_path: Path) -> None:
    ring = await KeyRing.load(store)
    key, secret = await ring.create("app")
    assert secret[12:].encode() not in everything_in(tmp_path)
    assert secret not in repr(key)
    assert len(key.prefix) < 12


async def test_a_revoked_key_fails_before_the_disk_has_heard_of_it(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, secret = await ring.create("app")
    revoking = asyncio.ensure_future(ring.revoke(key.id))
    await asyncio.sleep(0)
    assert _fault(ring, _bearer(secret)) is Fault.KEY_INVALID
    await revoking
    assert _fault(await KeyRing.load(store), _bearer(secret)) is Fault.KEY_INVALID


async def test_a_change_in_flight_does_not_revive_a_revoked_key(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, secret = await ring.create("app")
    change = asyncio.ensure_future(ring.set_limits(key.id, KeyLimits(rpm=5)))
    await asyncio.sleep(0)
    await ring.revoke(key.id)
    with pytest.raises(RequestError):
        await change
    assert _fault(ring, _bearer(secret)) is Fault.KEY_INVALID
    assert _fault(await KeyRing.load(store), _bearer(secret)) is Fault.KEY_INVALID


async def test_of_two_changes_at_once_one_is_told_to_look_again(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, secret = await ring.create("app")
    outcomes = await asyncio.gather(
        ring.set_limits(key.id, KeyLimits(rpm=1)),
        ring.set_limits(key.id, KeyLimits(rpm=2)),
        return_exceptions=True,
    )
    assert [isinstance(outcome, RequestError) for outcome in outcomes] == [False, True]
    assert ring.authenticate(_bearer(secret)).limits.rpm == 1
    assert (await KeyRing.load(store)).authenticate(_bearer(secret)).limits.rpm == 1


async def test_a_key_that_could_not_be_written_as_revoked_is_refused_all_the_same(
    store: Store,
) -> None:
    ring = await KeyRing.load(store)
    key, secret = await ring.create("app")
    await store.write(Write("DROP TABLE api_keys"))
    with pytest.raises(StoreError):
        await ring.revoke(key.id)
    assert _fault(ring, _bearer(secret)) is Fault.KEY_INVALID


async def test_an_expired_key_is_refused(store: Store, clock: Clock) -> None:
    ring = await KeyRing.load(store, clock)
    _, secret = await ring.create("app", KeyLimits(expires_at=clock.now + 10))
    ring.authenticate(_bearer(secret))
    clock.now += 10
    assert _fault(ring, _bearer(secret)) is Fault.KEY_INVALID


async def test_limits_survive_a_restart(store: Store) -> None:
    limits = KeyLimits(rpm=3, models=("a", "b"), local_only=True, continue_=True, expires_at=4e9)
    _, secret = await (await KeyRing.load(store)).create("app", limits)
    assert (await KeyRing.load(store)).authenticate(_bearer(secret)).limits == limits


async def test_revoking_twice_is_fine_and_an_unknown_key_is_not(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, _ = await ring.create("app")
    await ring.revoke(key.id)
    await ring.revoke(key.id)
    with pytest.raises(RequestError) as caught:
        await ring.revoke("key_nobody")
    assert caught.value.fault is Fault.NOT_FOUND
    assert await ring.list() == []
    assert [k.id for k in await ring.list(revoked=True)] == [key.id]


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\nb", "a\x1b[2J"])
async def test_a_name_that_cannot_be_shown_is_refused(store: Store, name: str) -> None:
    with pytest.raises(RequestError):
        await (await KeyRing.load(store)).create(name)


async def _with_stored(store: Store, text: str) -> KeyRing:
    ring = await KeyRing.load(store)
    await ring.create("app")
    await store.write(Write("UPDATE api_keys SET limits = $1", (text,)))
    return await KeyRing.load(store)


async def test_a_priority_that_an_older_relay_stored_counts_as_the_nearest_end(
    store: Store,
) -> None:
    ring = await _with_stored(store, '{"priority":-100,"rpm":5,"continue_":true,"newer":[1]}')
    [key] = await ring.list()
    assert key.limits == KeyLimits(priority=-3, rpm=5, continue_=True)


async def test_limits_are_stored_as_an_older_relay_reads_them(store: Store) -> None:
    ring = await KeyRing.load(store)
    await ring.create("app", KeyLimits(rpm=5, models=("m",), continue_=True))
    [row] = await store.read("SELECT limits FROM api_keys")
    assert row["limits"] == (
        '{"rpm":5,"tpm":null,"concurrency":null,"monthly_tokens":null,"expires_at":null,'
        '"models":["m"],"nodes":[],"local_only":false,"priority":0,"continue_":true}'
    )


@pytest.mark.parametrize("text", ['{"rpm":"many"}', '{"models":[1]}', "[]x", '"x"'])
async def test_damaged_limits_do_not_pass_for_no_limit(store: Store, text: str) -> None:
    with pytest.raises(StoreError, match="limits of the API key"):
        await _with_stored(store, text)


async def test_a_key_is_meant_by_its_id_or_its_name(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, _ = await ring.create("chat app")
    other, _ = await ring.create("notes")
    assert (ring.named("chat app"), ring.named(other.id)) == (key, other)
    with pytest.raises(RequestError, match="did you mean 'chat app'") as unknown:
        ring.named("chatapp")
    assert unknown.value.fault is Fault.NOT_FOUND
    with pytest.raises(RequestError, match=r"there is no API key 'zzz'$"):
        ring.named("zzz")


async def test_a_name_that_two_keys_have_is_refused_with_their_ids(store: Store) -> None:
    ring = await KeyRing.load(store)
    first, _ = await ring.create("app")
    second, _ = await ring.create("app")
    both = f"2 API keys are called 'app'; give an id: {first.id}, {second.id}"
    with pytest.raises(RequestError, match=both):
        ring.named("app")
    await ring.revoke(first.id)
    assert ring.named("app") == second
    assert await ring.named_of_all("app") == second
    await ring.revoke(second.id)
    assert (await ring.named_of_all(first.id)).id == first.id


async def test_a_renamed_key_stays_good_and_keeps_its_limits(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, secret = await ring.create("app", KeyLimits(rpm=3))
    await ring.rename(key.id, "chat")
    for known in (ring, await KeyRing.load(store)):
        renamed = known.authenticate(_bearer(secret))
        assert (renamed.id, renamed.name, renamed.limits.rpm) == (key.id, "chat", 3)
    with pytest.raises(RequestError, match="printable"):
        await ring.rename(key.id, "a\nb")


async def test_a_lent_key_is_good_for_its_time_and_is_nowhere_else(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    ring = await KeyRing.load(store, clock)
    before = everything_in(tmp_path)
    secret = ring.lend(60.0)
    lent = ring.authenticate(_bearer(secret))
    assert (lent.id, ring.name_of(lent.id)) == (TRIAL_KEY_ID, "an admin's trial")
    assert await ring.list(revoked=True) == []
    assert everything_in(tmp_path) == before
    clock.now += 60.0
    assert _fault(ring, _bearer(secret)) is Fault.KEY_INVALID


async def test_lent_keys_are_bounded_and_make_room_when_their_time_is_over(
    store: Store, clock: Clock
) -> None:
    ring = await KeyRing.load(store, clock)
    for _ in range(MAX_LENT):
        ring.lend(60.0)
    with pytest.raises(RequestError):
        ring.lend(60.0)
    clock.now += 60.0
    ring.lend(60.0)
    assert len(ring._by_hash) == 1


async def test_a_trial_that_is_over_makes_room_and_its_key_is_refused(
    store: Store, clock: Clock
) -> None:
    ring = await KeyRing.load(store, clock)
    secrets = [ring.lend(60.0 + n) for n in range(MAX_LENT)]
    clock.now += 20.0
    with pytest.raises(RequestError, match="wait until one of them is over, 40 s at most") as no:
        ring.lend(60.0)
    assert no.value.retry_after_s == 40
    ring.end_trial(trial_id(secrets[3]))
    assert _fault(ring, _bearer(secrets[3])) is Fault.KEY_INVALID
    ring.lend(60.0)
    with pytest.raises(RequestError, match="there is no trial"):
        ring.end_trial(trial_id(secrets[3]))


async def test_what_is_remembered_of_a_refused_key(store: Store, clock: Clock) -> None:
    ring = await KeyRing.load(store, clock)
    revoked, old_secret = await ring.create("old")
    expired, late_secret = await ring.create("late", KeyLimits(expires_at=clock.now))
    await ring.revoke(revoked.id)
    for known in (ring, await KeyRing.load(store, clock)):
        for secret, shown in (
            (old_secret, revoked.id),
            (late_secret, expired.id),
            ("wai_sk_abcdefgh", "wai_sk_abcd"),  # no more of it than a list shows
            ("sk-somebody-elses", ""),
            ("wai_sk_" + "x" * 1000, ""),
            ("wai_sk_\x00\x1b[2J", ""),
        ):
            with pytest.raises(KeyRefused) as refused:
                known.authenticate(_bearer(secret))
            assert refused.value.key == shown
        assert known.state_of(revoked.id) == ("old", "revoked")
        assert known.state_of(expired.id) == ("late", "expired")
        assert known.state_of("wai_sk_abcd") is None


async def test_a_rotated_key_is_good_by_both_secrets_for_a_while_and_stays_itself(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    ring = await KeyRing.load(store, clock)
    key, old = await ring.create("app", KeyLimits(rpm=5), ["prod"])
    changed, new = await ring.rotate(key.id, 3600.0)
    assert (changed.id, changed.name, changed.limits, changed.labels) == (
        *(key.id, "app", KeyLimits(rpm=5)),
        ("prod",),
    )
    assert changed.prefix == new[: len(changed.prefix)]
    for known in (ring, await KeyRing.load(store, clock)):
        assert known.authenticate(_bearer(old)).id == key.id
        assert known.authenticate(_bearer(new)).id == key.id
        assert known.former_good_until(key.id) == clock.now + 3600.0
    clock.now += 3600.0
    for known in (ring, await KeyRing.load(store, clock)):
        with pytest.raises(KeyRefused) as refused:
            known.authenticate(_bearer(old))
        assert refused.value.key == key.id  # so it can be said whose program uses it still
        assert known.authenticate(_bearer(new)).id == key.id
        assert known.former_good_until(key.id) is None
    for secret in (old, new):
        assert secret[12:].encode() not in everything_in(tmp_path)


async def test_without_a_grace_no_former_secret_is_good_any_more(
    store: Store, clock: Clock
) -> None:
    ring = await KeyRing.load(store, clock)
    key, first = await ring.create("app")
    _, second = await ring.rotate(key.id, 86400.0)
    _, third = await ring.rotate(key.id, 0.0)
    for known in (ring, await KeyRing.load(store, clock)):
        for secret in (first, second):
            assert _fault(known, _bearer(secret)) is Fault.KEY_INVALID
        assert known.authenticate(_bearer(third)).id == key.id


async def test_a_key_that_is_revoked_takes_its_former_secrets_with_it(
    store: Store, clock: Clock
) -> None:
    ring = await KeyRing.load(store, clock)
    key, old = await ring.create("app")
    _, new = await ring.rotate(key.id, 86400.0)
    await ring.revoke(key.id)
    for known in (ring, await KeyRing.load(store, clock)):
        for secret in (old, new):
            assert _fault(known, _bearer(secret)) is Fault.KEY_INVALID
    with pytest.raises(RequestError):
        await ring.rotate(key.id, 0.0)


async def test_a_changed_limit_holds_for_the_former_secret_too(store: Store, clock: Clock) -> None:
    ring = await KeyRing.load(store, clock)
    key, old = await ring.create("app")
    await ring.rotate(key.id, 86400.0)
    await ring.set_limits(key.id, KeyLimits(rpm=1))
    assert ring.authenticate(_bearer(old)).limits.rpm == 1


async def test_a_program_that_rotates_in_a_loop_is_stopped(store: Store, clock: Clock) -> None:
    ring = await KeyRing.load(store, clock)
    key, _ = await ring.create("app")
    for _ in range(MAX_GOOD):
        await ring.rotate(key.id, 86400.0)
    with pytest.raises(RequestError, match="former secrets"):
        await ring.rotate(key.id, 86400.0)
    clock.now += REMEMBERED_S + 86401.0
    await ring.rotate(key.id, 86400.0)
    assert len(ring._former._by_hash) == 1
    assert len(await store.read("SELECT * FROM api_key_secrets")) == 1


async def test_two_that_rotate_at_once_do_not_lose_a_secret(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, _ = await ring.create("app")
    results = await asyncio.gather(
        *(ring.rotate(key.id, 60.0) for _ in range(2)), return_exceptions=True
    )
    [(_, secret)] = [one for one in results if isinstance(one, tuple)]
    assert any(isinstance(one, RequestError) for one in results)
    assert (await KeyRing.load(store)).authenticate(_bearer(secret)).id == key.id


async def test_labels_are_kept_and_replaced(store: Store) -> None:
    ring = await KeyRing.load(store)
    key, _ = await ring.create("app", None, ["b", "a", "b"])
    assert key.labels == ("a", "b")
    await ring.set_labels(key.id, ["c"])
    await ring.rename(key.id, "other")
    for known in (ring, await KeyRing.load(store)):
        [listed] = await known.list()
        assert (listed.labels, listed.name) == (("c",), "other")
        assert known.labels() == {"c"}
    await ring.revoke(key.id)
    found = await ring.find(key.id)
    assert found is not None
    assert found.labels == ("c",)
    assert [one.labels for one in await ring.list(revoked=True)] == [("c",)]
