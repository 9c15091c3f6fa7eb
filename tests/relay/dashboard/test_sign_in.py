"""Signing in from a browser: the cookie, what a change must carry, and what ends it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from tests.relay.admin.fakes import TOKEN, Api, exchange, make_api
from tests.relay.conftest import Clock
from wai_protocol.errors import AuthError
from wai_relay.access.admins import Admins
from wai_relay.access.sign_ins import COOKIE, CSRF_HEADER, MAX_SIGN_INS, SIGN_IN_S, SignIns
from wai_relay.dashboard.sign_in import MAX_BODY_BYTES
from wai_relay.dashboard.throttle import TOTAL_TRIES, TRIES
from wai_relay.storage import SqliteStore

pytestmark = pytest.mark.anyio

SESSION = "/dashboard/session"


@dataclass
class Browser:
    """Keeps the cookie, as a browser does."""

    api: Api
    address: str = "192.0.2.1"
    cookie: str = ""
    csrf: str = ""

    async def send(
        self, method: str, path: str, body: bytes = b"", /, **headers: str
    ) -> tuple[int, dict[bytes, bytes], Any]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            sent["cookie"] = f"{COOKIE}={self.cookie}"
        status, got, answer = await exchange(
            self.api.app, method, path, sent, body, address=self.address
        )
        return status, got, json.loads(answer) if answer else None

    async def sign_in(self, token: str = TOKEN, **headers: str) -> int:
        body = json.dumps({"token": token}).encode()
        status, got, answer = await self.send(
            "POST", SESSION, body, **{"content_type": "application/json", **headers}
        )
        if status == 200:
            self.cookie = got[b"set-cookie"].decode().partition(";")[0].partition("=")[2]
            self.csrf = answer["csrf"]
        return status


@pytest.fixture
async def browser(store: SqliteStore, clock: Clock) -> Browser:
    return Browser(await make_api(store, clock))


async def test_the_cookie_is_for_this_host_alone_and_hidden_from_scripts(browser: Browser) -> None:
    body = json.dumps({"token": f"  {TOKEN}\n"}).encode()
    status, headers, told = await browser.send("POST", SESSION, body, **_json())
    assert status == 200
    cookie = headers[b"set-cookie"].decode()
    assert re.fullmatch(
        rf"__Host-wai=[\w-]{{43}}; Max-Age={SIGN_IN_S:.0f};"
        r" Path=/; Secure; HttpOnly; SameSite=Strict",
        cookie,
    )
    assert "Domain" not in cookie
    assert headers[b"cache-control"] == b"no-store"
    assert (told["name"], TOKEN in json.dumps(told)) == ("local", False)


async def test_who_is_signed_in_reads_at_once_and_changes_only_with_the_pages_token(
    browser: Browser,
) -> None:
    assert await browser.sign_in() == 200
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 200
    for headers in ({}, {"x_wai_csrf": ""}, {"x_wai_csrf": "0" * 64}, {"x_wai_csrf": "é"}):
        status, _, answer = await browser.send("POST", "/admin/v1/keys", b'{"name":"a"}', **headers)
        assert (status, answer["error"]["code"]) == (403, "forbidden"), headers
    assert await browser.api.context.keys.list() == []
    good = {CSRF_HEADER: browser.csrf}
    assert (await browser.send("POST", "/admin/v1/keys", b'{"name":"a"}', **good))[0] == 201
    [entry, *_] = await browser.api.context.audit.list()
    assert (entry.actor, entry.action) == ("local", "key.create")


async def test_one_browsers_page_token_is_of_no_use_in_another(browser: Browser) -> None:
    other = Browser(browser.api)
    assert [await one.sign_in() for one in (browser, other)] == [200, 200]
    headers = {CSRF_HEADER: other.csrf}
    assert (await browser.send("POST", "/admin/v1/keys", b'{"name":"a"}', **headers))[0] == 403


async def test_who_comes_back_is_told_who_they_are_and_strangers_nothing(browser: Browser) -> None:
    assert (await browser.send("GET", SESSION))[2] is None
    await browser.sign_in()
    _, _, told = await browser.send("GET", SESSION)
    assert (told["name"], told["csrf"]) == ("local", browser.csrf)
    for wrong in ("x", "x" * 100_000, browser.cookie[:-1]):
        browser.cookie = wrong
        assert (await browser.send("GET", SESSION))[2] is None
        assert (await browser.send("GET", "/admin/v1/keys"))[0] == 401


async def test_signing_out_ends_it_here_and_takes_the_cookie_back(browser: Browser) -> None:
    await browser.sign_in()
    assert (await browser.send("DELETE", SESSION))[0] == 403  # another page's doing
    status, headers, _ = await browser.send("DELETE", SESSION, **{CSRF_HEADER: browser.csrf})
    assert status == 204
    assert b"Max-Age=0" in headers[b"set-cookie"]
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 401


async def test_a_sign_in_ends_by_itself_after_a_month(browser: Browser, clock: Clock) -> None:
    await browser.sign_in()
    clock.now += SIGN_IN_S - 1
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 200
    clock.now += 1
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 401


async def test_an_admin_who_is_revoked_is_out_in_every_browser_at_once(
    browser: Browser, store: SqliteStore
) -> None:
    _, made = await browser.api.call("POST", "/admins", {"name": "ann"})
    browsers = [Browser(browser.api), Browser(browser.api)]
    assert [await one.sign_in(made["token"]) for one in browsers] == [200, 200]
    await browser.api.call("DELETE", "/admins/ann")
    for one in browsers:
        assert (await one.send("GET", "/admin/v1/keys"))[0] == 401
    assert await Browser(browser.api).sign_in(made["token"]) == 401
    assert await store.read("SELECT * FROM sign_ins WHERE admin = 'ann'") == []
    # Who gets the name later does not inherit what was signed in before.
    await browser.api.call("POST", "/admins", {"name": "ann"})
    for one in browsers:
        assert (await one.send("GET", "/admin/v1/keys"))[0] == 401


async def test_a_sign_in_outlives_a_restart_and_the_store_has_no_cookie(
    browser: Browser, store: SqliteStore, clock: Clock
) -> None:
    await browser.sign_in()
    again = await SignIns.load(store, browser.api.context.admins, clock)
    assert again.find(browser.cookie).admin == "local"
    rows = await store.read("SELECT * FROM sign_ins")
    assert browser.cookie not in str(rows)
    clock.now += SIGN_IN_S
    again = await SignIns.load(store, browser.api.context.admins, clock)
    with pytest.raises(AuthError):
        again.find(browser.cookie)
    assert await store.read("SELECT * FROM sign_ins") == []


async def test_sign_ins_are_bounded_and_the_oldest_goes(browser: Browser) -> None:
    sign_ins = browser.api.context.sign_ins
    cookies = [(await sign_ins.begin(TOKEN.encode()))[1] for _ in range(MAX_SIGN_INS + 1)]
    with pytest.raises(AuthError):
        sign_ins.find(cookies[0])
    assert sign_ins.find(cookies[1]).admin == "local"


async def test_wrong_tokens_are_slowed_down_by_address(browser: Browser) -> None:
    assert [await browser.sign_in(f"wai_at_{n}") for n in range(TRIES)] == [401] * TRIES
    status, headers, answer = await browser.send(
        "POST", SESSION, json.dumps({"token": "wai_at_wrong"}).encode(), **_json()
    )
    assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(headers[b"retry-after"]) > 0
    assert await Browser(browser.api, address="192.0.2.2").sign_in("wai_at_wrong") == 401


async def test_a_stranger_with_wrong_tokens_does_not_lock_out_the_admin_behind_the_same_proxy(
    browser: Browser,
) -> None:
    for n in range(3 * TOTAL_TRIES):
        await browser.sign_in(f"wai_at_{n}")
    for _ in range(3):
        assert await browser.sign_in() == 200
        assert await browser.sign_in("wai_at_wrong") == 429


async def test_many_strangers_with_wrong_tokens_do_not_lock_out_an_admin(browser: Browser) -> None:
    for n in range(3 * TOTAL_TRIES):
        await Browser(browser.api, address=f"192.0.2.{n}").sign_in("wai_at_wrong")
    assert await browser.sign_in() == 200


async def test_wrong_bearer_tokens_do_not_lock_out_an_admins_programs(browser: Browser) -> None:
    for n in range(3 * TOTAL_TRIES):
        assert (await browser.api.call("GET", "/keys", token=f"wai_at_{n}"))[0] == 401
    assert (await browser.api.call("GET", "/keys"))[0] == 200


async def test_no_other_page_and_no_form_signs_a_browser_in(browser: Browser) -> None:
    assert await browser.sign_in(sec_fetch_site="cross-site") == 403
    assert await browser.sign_in(sec_fetch_site="same-site") == 403
    assert await browser.sign_in(content_type="text/plain") == 400
    assert await browser.sign_in(content_type="application/x-www-form-urlencoded") == 400
    assert await browser.sign_in(sec_fetch_site="same-origin") == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", 400),
        (b"{}", 400),
        (b'{"token":""}', 400),
        (b'{"token":"a","b":1}', 400),
        (b'{"token":"' + b"x" * 300 + b'"}', 400),
        (b'{"token":"\xff"}', 400),
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
)
async def test_what_is_no_token_is_refused_before_it_is_tried(
    browser: Browser, body: bytes, expected: int
) -> None:
    for _ in range(TRIES + 1):  # and counts for no throttle
        assert (await browser.send("POST", SESSION, body, **_json()))[0] == expected


async def test_every_sign_in_and_out_is_in_the_audit_log(browser: Browser) -> None:
    await browser.sign_in()
    await browser.send("DELETE", SESSION, **{CSRF_HEADER: browser.csrf})
    log = await browser.api.context.audit.list()
    assert [entry.action for entry in reversed(log)] == ["admin.sign_in", "admin.sign_out"]


async def test_a_method_that_is_not_there_hears_of_all_that_are(browser: Browser) -> None:
    status, headers, _ = await browser.send("PUT", SESSION)
    assert status == 405
    allowed = {method.strip() for method in headers[b"allow"].split(b",")}
    assert allowed == {b"GET", b"HEAD", b"POST", b"DELETE"}


def _json() -> dict[str, str]:
    return {"content_type": "application/json"}


async def test_a_sign_in_ends_with_the_token_that_it_was_made_by(
    browser: Browser, store: SqliteStore, clock: Clock
) -> None:
    await browser.sign_in()
    admins = await Admins.load(store, "wai_at_another", clock)  # the relay was started anew
    again = await SignIns.load(store, admins, clock)
    with pytest.raises(AuthError):
        again.find(browser.cookie)
    assert again.list() == []
    assert await store.read("SELECT * FROM sign_ins") == []


async def test_a_token_that_is_replaced_while_the_relay_runs_ends_its_sign_ins(
    browser: Browser, store: SqliteStore, clock: Clock
) -> None:
    _, made = await browser.api.call("POST", "/admins", {"name": "ann"})
    ann = Browser(browser.api)
    assert [await browser.sign_in(), await ann.sign_in(made["token"])] == [200, 200]
    browser.api.context.admins.replace_local("wai_at_another")
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 401
    assert (await ann.send("GET", "/admin/v1/keys"))[0] == 200
    assert await browser.sign_in() == 401
    assert await browser.sign_in("wai_at_another") == 200
    browser.api.context.admins.replace_local(TOKEN)
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 401


async def test_sign_ins_are_listed_with_when_from_where_and_by_what(
    browser: Browser, clock: Clock
) -> None:
    await browser.sign_in(user_agent="Firefox/150 " + "x" * 1000)
    clock.now += 3600
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 200
    _, listed = await browser.api.call("GET", "/sign-ins")
    (entry,) = listed["data"]
    _, _, session = await browser.send("GET", SESSION)
    assert entry["id"] == session["id"]
    assert (entry["admin"], entry["address"]) == ("local", "192.0.2.1")
    assert (entry["created_at"], entry["used_at"]) == (clock.now - 3600, clock.now)
    assert entry["user_agent"].startswith("Firefox/150")
    assert len(entry["user_agent"]) <= 256
    assert browser.cookie not in json.dumps(listed)


async def test_one_sign_in_is_ended_by_its_id_and_the_others_go_on(browser: Browser) -> None:
    other = Browser(browser.api)
    assert [await one.sign_in() for one in (browser, other)] == [200, 200]
    _, _, session = await other.send("GET", SESSION)
    status, ended = await browser.api.call("DELETE", f"/sign-ins/{session['id']}")
    assert (status, ended["id"]) == (200, session["id"])
    assert (await other.send("GET", "/admin/v1/keys"))[0] == 401
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 200
    assert (await browser.api.call("DELETE", f"/sign-ins/{session['id']}"))[0] == 404
    [entry, *_] = await browser.api.context.audit.list()
    assert entry.action == "admin.end_sign_in"


async def test_all_sign_ins_are_ended_or_all_but_one(browser: Browser) -> None:
    others = [Browser(browser.api), Browser(browser.api)]
    for one in (browser, *others):
        await one.sign_in()
    _, _, session = await browser.send("GET", SESSION)
    _, left = await browser.api.call("DELETE", f"/sign-ins?but={session['id']}")
    assert [entry["id"] for entry in left["data"]] == [session["id"]]
    for one in others:
        assert (await one.send("GET", "/admin/v1/keys"))[0] == 401
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 200
    await browser.api.call("DELETE", "/sign-ins")
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 401


async def test_a_sign_in_that_is_ended_stays_ended_after_a_restart(
    browser: Browser, store: SqliteStore, clock: Clock
) -> None:
    await browser.sign_in()
    await browser.api.call("DELETE", "/sign-ins")
    again = await SignIns.load(store, browser.api.context.admins, clock)
    assert again.list() == []


async def test_ending_sign_ins_needs_an_admin_and_the_pages_token(browser: Browser) -> None:
    await browser.sign_in()
    assert (await browser.api.call("DELETE", "/sign-ins", token=None))[0] == 401
    assert (await browser.send("DELETE", "/admin/v1/sign-ins"))[0] == 403
    assert (await browser.send("GET", "/admin/v1/keys"))[0] == 200
