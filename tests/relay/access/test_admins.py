"""Admins and the audit log: who may in, who may not any more, and what is written down."""

from __future__ import annotations

import pytest

from tests.relay.conftest import Clock
from wai_api.bounds import MAX_TOKEN_BYTES
from wai_protocol.errors import AuthError, Fault, RequestError
from wai_relay.access.admins import Admins
from wai_relay.access.audit import MAX_LISTED, AuditLog
from wai_relay.storage import Store, Write

pytestmark = pytest.mark.anyio


@pytest.fixture
async def admins(store: Store, clock: Clock) -> Admins:
    return await Admins.load(store, "local-token", clock)


async def test_a_token_lets_in_from_now_on_and_over_a_restart(
    admins: Admins, store: Store, clock: Clock
) -> None:
    await admins.create("ann", "ann-token")
    for ring in (admins, await Admins.load(store, "local-token", clock)):
        assert ring.authenticate(b"ann-token") == "ann"
        assert ring.authenticate(b"local-token") == "local"
    rows = await store.read("SELECT * FROM admins")
    assert "token" not in str([tuple(row.values()) for row in rows])


async def test_a_revoked_admin_is_out_at_once_and_after_a_restart(
    admins: Admins, store: Store, clock: Clock
) -> None:
    await admins.create("ann", "ann-token")
    await admins.revoke("ann")
    for ring in (admins, await Admins.load(store, "local-token", clock)):
        assert not ring.knows("ann")
        with pytest.raises(AuthError) as refused:
            ring.authenticate(b"ann-token")
        assert refused.value.fault is Fault.KEY_INVALID
    assert [admin.name for admin in await admins.list()] == ["local"]


async def test_a_revoked_name_may_be_given_again_with_another_token(admins: Admins) -> None:
    await admins.create("ann", "old")
    await admins.revoke("ann")
    await admins.create("ann", "new")
    assert admins.authenticate(b"new") == "ann"
    with pytest.raises(AuthError):
        admins.authenticate(b"old")


async def test_a_name_that_is_taken_keeps_its_owner(admins: Admins) -> None:
    await admins.create("ann", "ann-token")
    for name in ("ann", "local"):
        with pytest.raises(RequestError) as refused:
            await admins.create(name, "thief")
        assert refused.value.fault is Fault.NAME_TAKEN
    with pytest.raises(AuthError):
        admins.authenticate(b"thief")
    assert admins.authenticate(b"ann-token") == "ann"


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "ann\n", "é", "a" * 65, "a/b", "<b>"])
async def test_a_name_that_could_be_mistaken_is_refused(admins: Admins, name: str) -> None:
    with pytest.raises(RequestError):
        await admins.create(name, "token")


async def test_the_admin_of_this_machine_and_strangers_are_not_revoked(admins: Admins) -> None:
    with pytest.raises(RequestError) as refused:
        await admins.revoke("local")
    assert refused.value.fault is Fault.FORBIDDEN
    with pytest.raises(RequestError) as refused:
        await admins.revoke("nobody")
    assert refused.value.fault is Fault.NOT_FOUND


@pytest.mark.parametrize("token", [b"", b"wrong", b"x" * (MAX_TOKEN_BYTES + 1), b"\xff\x00"])
async def test_what_is_no_token_lets_nobody_in(admins: Admins, token: bytes) -> None:
    with pytest.raises(AuthError):
        admins.authenticate(token)


async def test_a_token_that_is_longer_than_one_can_be_is_not_taken_for_its_beginning(
    store: Store, clock: Clock
) -> None:
    longest = "t" * MAX_TOKEN_BYTES
    admins = await Admins.load(store, longest, clock)
    assert admins.authenticate(longest.encode()) == "local"
    with pytest.raises(AuthError):
        admins.authenticate(longest.encode() + b"t")


async def test_the_audit_log_is_read_newest_first_in_pages(store: Store, clock: Clock) -> None:
    log = AuditLog(store, clock)
    for n in range(5):
        clock.now += 1
        await log.record("ann", "key.create", f"key_{n}", name="é", n=n)
    assert log.changes == 5
    first = await log.list(limit=2)
    assert [entry.subject for entry in first] == ["key_4", "key_3"]
    assert (first[0].at, first[0].actor, first[0].detail) == (
        clock.now,
        "ann",
        {"name": "é", "n": 4},
    )
    rest = await log.list(before=first[-1].id)
    assert [entry.subject for entry in rest] == ["key_2", "key_1", "key_0"]
    assert await log.list(before=rest[-1].id) == []


async def test_one_look_at_the_audit_log_is_bounded(store: Store, clock: Clock) -> None:
    row = (
        "INSERT INTO audit_log (at, actor, action, subject, detail) VALUES (1, 'a', 'b', 'c', '{}')"
    )
    await store.write(*(Write(row) for _ in range(MAX_LISTED + 5)))
    assert len(await AuditLog(store, clock).list(limit=10**9)) == MAX_LISTED
