"""What a person does in the dashboard, from the first sign-in to a revoked key, in one go."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.harness.caller import request
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.counting_upstream import MODEL as COUNTER
from tests.harness.counting_upstream import CountingUpstream, counting_upstream
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.processes import Daemon, wait_until
from tests.harness.real import require_real, script
from wai_node.models.hub import HEADER_STEP_BYTES

if TYPE_CHECKING:
    from playwright.async_api import Page

# A real llama-server starts twice, on cores that other tests keep busy.
pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(400)]
REPO: Final = "tiny-labs/tiny-GGUF"
DEPLOYED: Final = f"{REPO}:Q8_0"
SLOW_S: Final = 0.5  # between the download's pieces until its progress was seen: it can't be missed
STARTED_MS: Final = 90_000  # a llama-server has loaded its model


async def test_from_sign_in_to_a_revoked_key(tmp_path: Path, tiny_model: Path) -> None:
    require_real("chromium", "dashboard", "llama-server")
    from .browser import browser, open_page, page_of, sign_in

    files = {"tiny-Q8_0.gguf": await asyncio.to_thread(tiny_model.read_bytes)}
    with (
        FakeHub({REPO: FakeRepo(files)}) as hub,
        counting_upstream() as counter,
        cluster(tmp_path) as running,
    ):
        async with browser() as chromium, page_of(chromium, running) as page:
            await sign_in(page, running)
            await open_page(page, "Keys")
            key = await _create_key(page)

            await open_page(page, "Nodes")
            with await _add_node(page, tmp_path, counter, hub):
                await page.get_by_text("box has arrived: ready").wait_for()
                await page.get_by_role("button", name="Close").click()
                await page.get_by_role("row", name="box").get_by_role("link", name="box").click()
                await page.get_by_role("heading", name="box", level=1).wait_for()
                await page.get_by_text("RAM").first.wait_for()  # its hardware
                await page.get_by_role("cell", name=COUNTER).wait_for()

                await open_page(page, "Models")
                await _deploy(page, hub)

                await open_page(page, "Try it")
                await page.get_by_label("API key").fill(key)
                await _chat(page, DEPLOYED)
                await page.get_by_role("button", name="Send").wait_for()

                await _chat(page, COUNTER)
                await open_page(page, "Requests")
                await _cancel(page, counter)
                await open_page(page, "Try it")
                await page.get_by_text("ended by the relay's admin").wait_for()

                await open_page(page, "Usage")
                await page.get_by_role("button", name="By key").click()
                await page.get_by_role("cell", name="my-app").wait_for()
                await page.get_by_role("button", name="By model").click()
                await page.get_by_role("cell", name=DEPLOYED).wait_for()

                await open_page(page, "Models")
                await _swap_context(page)
                await _change_options(page)

                await open_page(page, "Keys")
                await page.get_by_role("button", name="Revoke my-app").click()
                await page.get_by_text("Revoke for good?").click()
                await page.get_by_text("No key yet").wait_for()
                assert await asyncio.to_thread(_asks, running, key) == 401
                await page.get_by_role("button", name="Sign out").click()
                await page.get_by_role("heading", name="Sign in to wai").wait_for()


async def _create_key(page: Page) -> str:
    await page.get_by_role("button", name="Create a key").click()
    await page.get_by_label("Name").fill("my-app")
    await page.get_by_role("button", name="Create", exact=True).click()
    key = await page.get_by_label("key", exact=True).inner_text()
    assert key.startswith("wai_sk_")
    await page.get_by_role("button", name="Close").click()
    return key


async def _add_node(page: Page, folder: Path, upstream: CountingUpstream, hub: FakeHub) -> Daemon:
    """Join by the command that is shown, as a node called box."""
    await page.get_by_role("button", name="Add a node").click()
    await page.get_by_role("button", name="Make the command").click()
    command = await page.get_by_label("command", exact=True).inner_text()
    invite = re.search(r"wai_inv_[\w-]+", command)
    assert invite, command
    data = folder / "box"
    await asyncio.to_thread(wai, "node", "join", invite[0], "--data", data, "--name", "box")
    return Daemon(
        [script("wai"), "node", "run", "--data", str(data), "--upstream", upstream.url],
        log=folder / "node.log",
        env={**os.environ, "HF_ENDPOINT": hub.endpoint},
    )


async def _deploy(page: Page, hub: FakeHub) -> None:
    """Search, choose, deploy; its download is seen to go on, until it is ready."""
    # What search and deployment wait for, the header, comes at once: they would wait for long.
    hub.faults.pause_s, hub.faults.pause_from = SLOW_S, HEADER_STEP_BYTES
    await page.get_by_label("Search models").fill("tiny")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("button", name=REPO).click()
    await page.get_by_label("Context per slot").select_option("512")
    await page.get_by_role("button", name="Deploy Q8_0 on box").click()
    await page.get_by_role("dialog").wait_for(state="hidden")
    row = page.get_by_role("row", name=DEPLOYED)
    await row.get_by_role("progressbar", name=f"Download of {DEPLOYED}").wait_for()
    await row.get_by_text(re.compile(r"[1-9]\d* % of")).wait_for()
    hub.faults.pause_s = 0.0
    await row.get_by_text("ready", exact=True).wait_for(timeout=STARTED_MS)
    await row.get_by_text("512 served").wait_for()


async def _chat(page: Page, model: str) -> None:
    """Say something, until its answer has some words."""
    await page.get_by_label("Model", exact=True).select_option(model)
    await page.get_by_label("Message").fill("Hello")
    await page.get_by_role("button", name="Send").click()
    answer = page.get_by_role("log").locator(".assistant").last
    await answer.filter(has_text=re.compile(r".{9}", re.DOTALL)).wait_for()


async def _cancel(page: Page, upstream: CountingUpstream) -> None:
    """End the one request that runs, once it is seen to stream."""
    row = page.get_by_role("row", name=COUNTER)
    await row.get_by_text("streaming").wait_for()
    await row.get_by_role("cell", name="my-app", exact=True).wait_for()
    await row.get_by_role("button", name="Why box").click()
    weighed = page.get_by_role("dialog").get_by_role("row", name=re.compile(r"^box .*\d ms\b"))
    await weighed.wait_for()  # with the time to the first token that was expected of it
    await page.get_by_role("button", name="Close").click()
    await row.get_by_role("button", name="Cancel").click()
    await row.get_by_text("End it?").click()
    await page.get_by_text("Nothing runs now").wait_for()
    await asyncio.to_thread(wait_until, lambda: upstream.seen.running == 0, "it goes on upstream")


async def _swap_context(page: Page) -> None:
    row = page.get_by_role("row", name=DEPLOYED)
    await row.get_by_label(f"Context of {DEPLOYED}", exact=True).fill("1024")
    await row.get_by_role("button", name="Swap").click()
    await row.get_by_text("1,024 served").wait_for(timeout=STARTED_MS)
    await row.get_by_text("ready", exact=True).wait_for(timeout=STARTED_MS)


async def _change_options(page: Page) -> None:
    row = page.get_by_role("row", name=DEPLOYED)
    await row.get_by_role("button", name=f"Options of {DEPLOYED}").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Flash attention").select_option("on")
    await dialog.get_by_label("In memory").select_option("on demand")
    await dialog.get_by_label("Unload after idle seconds").fill("600")
    await dialog.get_by_label("Priority").fill("5")
    await dialog.get_by_role("button", name="Change").click()
    await row.get_by_text("flash attention on").wait_for(timeout=STARTED_MS)
    await row.get_by_text("unloaded after 10 min · priority 5").wait_for(timeout=STARTED_MS)
    await row.get_by_text("ready", exact=True).wait_for(timeout=STARTED_MS)


def _asks(running: Cluster, key: str) -> int:
    """The status that an app with `key` gets."""
    with request(running, "/v1/models", headers={"Authorization": f"Bearer {key}"}) as response:
        return response.status
