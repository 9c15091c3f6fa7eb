"""The dashboard's files: types, caching, the policy on every answer, and nothing outside them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from tests.relay.admin.fakes import exchange
from wai_relay.dashboard.static import BASE, POLICY, StaticFiles, redirect

pytestmark = pytest.mark.anyio

SCRIPT = b"console.log(1)\n" * 50


@pytest.fixture
def app(tmp_path: Path) -> Starlette:
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>wai</title>")
    (folder / "assets" / "app-1234.js").write_bytes(SCRIPT)
    (folder / "assets" / "app-1234.css").write_text("body{}")
    (folder / "icon.svg").write_text("<svg/>")
    (folder / "notes.txt").write_text("no type that a browser needs")
    (tmp_path / "admin.token").write_text("wai_at_secret")
    return serving(folder)


def serving(folder: Path) -> Starlette:
    routes = [
        Route(BASE, redirect),
        Route(f"{BASE}/{{path:path}}", StaticFiles(folder).respond, methods=["GET"]),
    ]
    return Starlette(routes=routes)


async def get(app: Any, path: str, **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await exchange(app, "GET", path, sent)


@pytest.mark.parametrize(
    ("path", "media_type", "cache"),
    [
        ("", b"text/html; charset=utf-8", b"no-cache"),
        ("assets/app-1234.js", b"text/javascript; charset=utf-8", b"public, max-age=31536000"),
        ("assets/app-1234.css", b"text/css; charset=utf-8", b"public, max-age=31536000"),
        ("icon.svg", b"image/svg+xml", b"no-cache"),
    ],
)
async def test_each_file_has_its_type_its_caching_and_the_policy(
    app: Starlette, path: str, media_type: bytes, cache: bytes
) -> None:
    status, headers, _ = await get(app, f"{BASE}/{path}")
    assert status == 200
    assert headers[b"content-type"] == media_type
    assert headers[b"cache-control"].startswith(cache)
    assert headers[b"content-security-policy"] == POLICY.encode()
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_the_policy_allows_nothing_that_is_not_named_and_nothing_inline() -> None:
    assert POLICY.startswith("default-src 'none'")
    assert not re.search(r"unsafe|\*|https?:|data:|blob:|wasm", POLICY)


async def test_a_browser_that_has_a_file_is_not_sent_it_again(app: Starlette) -> None:
    _, headers, _ = await get(app, f"{BASE}/")
    known = headers[b"etag"].decode()
    status, headers, body = await get(app, f"{BASE}/", if_none_match=known)
    assert (status, body) == (304, b"")
    assert headers[b"content-security-policy"] == POLICY.encode()
    assert (await get(app, f"{BASE}/", if_none_match='"other"'))[0] == 200


async def test_a_file_is_packed_for_who_can_unpack_it_alone(app: Starlette) -> None:
    path = f"{BASE}/assets/app-1234.js"
    _, headers, body = await get(app, path, accept_encoding="gzip, br")
    assert headers[b"content-encoding"] == b"gzip"
    assert gzip.decompress(body) == SCRIPT
    assert int(headers[b"content-length"]) == len(body)
    _, headers, body = await get(app, path)
    assert b"content-encoding" not in headers
    assert body == SCRIPT
    assert headers[b"vary"] == b"accept-encoding"


@pytest.mark.parametrize("path", ["nodes", "keys/key_1", "no/such/page"])
async def test_the_pages_own_routes_are_the_page(app: Starlette, path: str) -> None:
    status, _, body = await get(app, f"{BASE}/{path}")
    assert (status, b"<title>wai" in body) == (200, True)


@pytest.mark.parametrize(
    "path",
    [
        *("../admin.token", "assets/../../admin.token", "..%2fadmin.token", "/etc/passwd.txt"),
        *("assets/app-0000.js", "notes.txt", "index.html", "assets/app-1234.js/"),
    ],
)
async def test_nothing_but_the_built_files_is_served(app: Starlette, path: str) -> None:
    status, headers, body = await get(app, f"{BASE}/{path}")
    assert b"secret" not in body
    assert b"console.log" not in body
    assert status == 404 or b"<title>wai" in body
    assert headers[b"content-security-policy"] == POLICY.encode()


async def test_an_installation_without_the_pages_says_what_to_do(tmp_path: Path) -> None:
    status, _, body = await get(serving(tmp_path / "none"), f"{BASE}/")
    assert status == 503
    assert b"pip install" in body


async def test_without_a_slash_a_browser_is_sent_to_the_page(app: Starlette) -> None:
    status, headers, _ = await get(app, BASE)
    assert (status, headers[b"location"]) == (308, b"/dashboard/")
