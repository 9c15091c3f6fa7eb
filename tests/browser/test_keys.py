"""Keys in a browser: made with labels and a budget, rotated, and used as the page says, word for
word."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import yaml

from tests.harness import npm
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.real import require_real
from tests.harness.strict_server import MODEL, strict_server

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

PROGRAMS: Final = {"Claude Code": "claude", "Aider": "aider", "Open WebUI": "open-webui"}
_SHOWS_ITS_ENVIRONMENT: Final = (
    '#!/bin/sh\nenv | grep -E "^(ANTHROPIC|OPENAI|SSL|NODE)_"\necho "$@"\n'
)


async def test_a_new_key_is_used_as_the_page_says_and_then_rotated(tmp_path: Path) -> None:
    require_real("chromium", "dashboard", "npm openai")
    from .browser import browser, open_page, page_of, sign_in

    with strict_server() as upstream, cluster(tmp_path) as running:
        await asyncio.to_thread(running.add_node, "box", upstream.url)
        folder = tmp_path / "app"
        folder.mkdir()
        shutil.copy(running.data / "relay-ca.crt", folder)
        async with browser() as chromium, page_of(chromium, running) as page:
            await sign_in(page, running)
            await open_page(page, "Keys")
            await page.get_by_role("button", name="Create a key").click()
            await page.get_by_label("Name").fill("my-app")
            await page.get_by_label("Labels").fill("team=web, prod")
            await page.get_by_label("Tokens per month").fill("1000")
            await page.get_by_role("button", name="Create", exact=True).click()
            secret = await page.get_by_label("key", exact=True).inner_text()
            assert await page.get_by_label("base URL", exact=True).inner_text() == running.base_url
            await _try_snippets(page, folder, secret)
            await page.get_by_role("button", name="Close").click()

            row = page.get_by_role("row", name="my-app")
            await row.get_by_text("prod, team=web").wait_for()
            await row.get_by_text("of 1K").wait_for()
            await page.get_by_role("button", name="Rotate my-app").click()
            await page.get_by_label("The former secret is good for").select_option("3600")
            await page.get_by_role("button", name="Rotate", exact=True).click()
            fresh = await page.get_by_label("key", exact=True).inner_text()
            await page.get_by_role("button", name="Close").click()
            await row.get_by_text("the former until").wait_for()
            for good in (secret, fresh):
                assert await asyncio.to_thread(_lists, running, good) == 200

            await open_page(page, "Usage")
            await page.get_by_role("button", name="By label").click()
            await page.get_by_role("cell", name="team=web").wait_for()


async def _try_snippets(page: Page, folder: Path, secret: str) -> None:
    python = {**os.environ, "SSL_CERT_FILE": "relay-ca.crt"}
    node = {**os.environ, "NODE_EXTRA_CA_CERTS": "relay-ca.crt"}
    text = await _snippet(page, "curl")
    assert '"content": "hi"' in await _run(["sh", "-c", text], folder)
    (folder / "app.py").write_text(await _snippet(page, "Python"))
    assert await _run([sys.executable, "app.py"], folder, python) == "hi"
    (folder / "app.mjs").write_text(await _snippet(page, "JavaScript"))
    (folder / "node_modules").symlink_to(npm.FOLDER / "node_modules")
    program = npm.node_program()
    assert program is not None
    assert await _run([program, "app.mjs"], folder, node) == "hi"
    compile(await _snippet(page, "LangChain"), "app.py", "exec")
    [model] = yaml.safe_load(await _snippet(page, "Continue"))["models"]
    assert (model["model"], model["apiKey"], model["provider"]) == (MODEL, secret, "openai")
    assert model["requestOptions"] == {"caBundlePath": "relay-ca.crt"}
    assert secret in await _snippet(page, "Cline")
    (folder / "bin").mkdir()
    for name, command in PROGRAMS.items():  # they are not installed here: what reaches them
        stand_in = folder / "bin" / command
        stand_in.write_text(_SHOWS_ITS_ENVIRONMENT)
        stand_in.chmod(0o755)
        path = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        said = await _run(["sh", "-c", await _snippet(page, name)], folder, path)
        assert secret in said
        assert "relay-ca.crt" in said
        assert said.splitlines()[-1].endswith("serve" if name == "Open WebUI" else MODEL)


async def _snippet(page: Page, name: str) -> str:
    await page.get_by_role("button", name=name, exact=True).click()
    return await page.get_by_label(f"{name} snippet", exact=True).inner_text()


async def _run(argv: list[str], folder: Path, env: dict[str, str] | None = None) -> str:
    def run() -> str:
        done = subprocess.run(
            argv, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return await asyncio.to_thread(run)


def _lists(running: Cluster, secret: str) -> int:
    from tests.harness.caller import request

    headers = {"Authorization": f"Bearer {secret}"}
    with request(running, "/v1/models", None, headers) as response:
        response.read()
        return response.status


def test_the_same_by_commands(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        options = ("--data", running.data, "--json")
        made = json.loads(wai("key", "create", "app", "--label", "web", *options))
        rotated = json.loads(wai("key", "rotate", "app", "--grace", "1h", *options))
        assert (made["id"], made["labels"]) == (rotated["id"], ["web"])
        assert _lists(running, made["key"]) == _lists(running, rotated["key"]) == 200
        last = json.loads(wai("key", "rotate", "app", "--grace", "0", *options))
        assert [_lists(running, one["key"]) for one in (made, rotated, last)] == [401, 401, 200]
        wai("key", "update", "app", "--label", "none", "--data", running.data)
        [listed] = json.loads(wai("key", "list", *options))
        assert listed["labels"] == []
        assert wai("key", "list", "--label", "web", "--data", running.data).startswith(
            "no API keys"
        )
