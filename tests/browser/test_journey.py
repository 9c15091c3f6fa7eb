"""What a person does in the dashboard, from the first sign-in to a revoked key, in one go."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from tests.harness.caller import request
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.llama_server import llama_server
from tests.harness.processes import Daemon
from tests.harness.real import require_real, script

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
REPO = "tiny-labs/tiny-GGUF"


async def test_from_sign_in_to_a_revoked_key(tmp_path: Path, tiny_model: Path) -> None:
    require_real("chromium", "dashboard", "llama-server")
    from .browser import browser, open_page, page_of, sign_in

    files = {"tiny-Q8_0.gguf": await asyncio.to_thread(tiny_model.read_bytes)}
    with (
        FakeHub({REPO: FakeRepo(files)}) as hub,
        llama_server(tiny_model, tmp_path, key="upstream-key") as llama,
        cluster(tmp_path) as running,
    ):
        async with browser() as chromium, page_of(chromium, running) as page:
            await sign_in(page, running)

            await open_page(page, "Nodes")
            await page.get_by_role("button", name="Add a node").click()
            await page.get_by_role("button", name="Make the command").click()
            command = await page.get_by_label("command", exact=True).inner_text()
            invite = command.split()[3]
            data = tmp_path / "box"
            await asyncio.to_thread(wai, "node", "join", invite, "--data", data, "--name", "box")
            upstream = ["--upstream", llama.url, "--upstream-key", "upstream-key"]
            node = Daemon(
                [script("wai"), "node", "run", "--data", str(data), *upstream],
                log=tmp_path / "node.log",
                env={**os.environ, "HF_ENDPOINT": hub.endpoint},
            )
            with node:
                await page.get_by_text("box has arrived: ready").wait_for()
                await page.get_by_role("button", name="Close").click()

                await open_page(page, "Models")
                await page.get_by_label("Search models").fill("tiny")
                await page.get_by_role("button", name="Search").click()
                await page.get_by_role("button", name=REPO).click()
                await page.get_by_label("Context per slot").select_option("512")
                await page.get_by_role("button", name="Deploy Q8_0 on box").click()
                deployed = page.get_by_role("row", name=f"{REPO}:Q8_0")
                await deployed.get_by_text("ready", exact=True).wait_for(timeout=60_000)

                await open_page(page, "Keys")
                await page.get_by_role("button", name="Create a key").click()
                await page.get_by_label("Name").fill("my-app")
                await page.get_by_role("button", name="Create", exact=True).click()
                key = await page.get_by_label("key", exact=True).inner_text()
                assert key.startswith("wai_sk_")
                await page.get_by_role("button", name="Close").click()

                await open_page(page, "Try it")
                await page.get_by_label("API key").fill(key)
                await page.get_by_label("Message").fill("Hello")
                await page.get_by_role("button", name="Send").click()
                answer = page.get_by_role("log").locator(".assistant")
                await answer.filter(has_text=re.compile(r".{9}", re.DOTALL)).wait_for()
                await page.get_by_role("button", name="Send").wait_for(timeout=60_000)

                await open_page(page, "Usage")
                await page.get_by_role("button", name="By key").click()
                await page.get_by_role("cell", name="my-app").wait_for()

                await open_page(page, "Keys")
                await page.get_by_role("button", name="Revoke my-app").click()
                await page.get_by_text("Revoke for good?").click()
                await page.get_by_text("No key yet").wait_for()
                assert await asyncio.to_thread(_asks, running, key) == 401
                await page.get_by_role("button", name="Sign out").click()
                await page.get_by_role("heading", name="Sign in to wai").wait_for()


def _asks(running: Cluster, key: str) -> int:
    """The status that an app with `key` gets."""
    with request(running, "/v1/models", headers={"Authorization": f"Bearer {key}"}) as response:
        return response.status
