"""`make screenshots`: each page, light and dark, desktop and phone, into docs/images.

A real relay with two nodes on a real llama-server, models from the fake hub (one is there, one is
on its way) and a little traffic, so that the pages have something to show.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from playwright.async_api import Page

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.llama_server import llama_server
from tests.harness.tiny_gguf import tiny_gguf

from .browser import DESKTOP, PHONE, browser, open_page, page_of, sign_in

FOLDER: Final = Path(__file__).parents[2] / "docs" / "images"
PAGES: Final = {
    "overview": "Overview",
    "nodes": "Nodes",
    "requests": "Live requests",
    "models": "Models",
    "keys": "Keys",
    "usage": "Usage",
    "try": "Try it",
    "settings": "Settings",
}
BUSY: Final = ("overview", "requests")  # pages that are taken while requests run
SETTLE_S: Final = 1.2  # until charts are drawn and the feed has come
CALLS: Final = 12  # enough for a chart with a shape
LONG_TOKENS: Final = 2000
SERVED: Final = "tiny-labs/tiny-GGUF"
PADDING_BYTES: Final = 64 << 20
SHORT_PAUSE_S: Final = 0.02  # while the node reads the coming model's header, and no more
COMING: Final = "tiny-labs/tiny-chat-GGUF"
PAUSE_S: Final = (
    0.2  # between the coming model's pieces of 4 KiB: it is still on its way at the end
)


def _call(running: Cluster, secret: str, max_tokens: int) -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    body = chat("tiny", stream=True, max_tokens=max_tokens)
    with (
        suppress(OSError),
        request(running, "/v1/chat/completions", body, headers) as response,
    ):
        response.read()


async def _traffic(running: Cluster, secrets: list[str], max_tokens: int) -> None:
    calls = (
        asyncio.to_thread(_call, running, secrets[number % len(secrets)], max_tokens)
        for number in range(CALLS)
    )
    await asyncio.gather(*calls)


def _deploy(running: Cluster, repo: str, node: str, *options: str) -> None:
    data = ("--data", str(running.data))
    wai("model", "deploy", f"{repo}:Q8_0", "--node", node, "--context", "512", *options, *data)


async def _fill(page: Page, name: str, secret: str) -> None:
    """What a person does on the page before it shows much."""
    if name == "models":
        await page.get_by_label("Search models").fill("tiny")
        await page.get_by_role("button", name="Search").click()
        await page.get_by_role("button", name=COMING, exact=True).wait_for()
    if name == "try" and not await page.locator(".assistant").count():
        await page.get_by_label("API key").fill(secret)
        await page.get_by_label("Model", exact=True).select_option("tiny")
        await page.get_by_label("Message").fill("What is a relay good for?")
        await page.get_by_role("button", name="Send").click()
        answer = page.locator(".assistant")
        await answer.filter(has_text=re.compile(r".{99}", re.DOTALL)).wait_for()
        if await page.get_by_role("button", name="Stop").count():
            await page.get_by_role("button", name="Stop").click()


async def _take(page: Page, running: Cluster, secrets: list[str], place: str) -> None:
    await sign_in(page, running)
    async with asyncio.TaskGroup() as tasks:
        for name, title in PAGES.items():
            if name in BUSY:
                tasks.create_task(_traffic(running, secrets, LONG_TOKENS))
            await open_page(page, title)
            await page.mouse.move(0, 0)  # nothing is pointed at
            await _fill(page, name, secrets[0])
            await asyncio.sleep(SETTLE_S)
            await page.screenshot(path=FOLDER / f"{name}-{place}.png")


async def _main(folder: Path) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = tiny_gguf(folder)
    files = {"tiny-Q8_0.gguf": model.read_bytes()}
    longer = {name: content + bytes(PADDING_BYTES) for name, content in files.items()}
    with (
        FakeHub({SERVED: FakeRepo(files), COMING: FakeRepo(longer)}) as hub,
        llama_server(model, folder, slots=4) as llama,
        cluster(folder) as running,
    ):
        os.environ["HF_ENDPOINT"] = hub.endpoint
        running.add_node("gpu-box", llama.url)
        running.add_node("attic", llama.url)
        secrets = [running.create_key(name).secret for name in ("notes-app", "ci", "home")]
        await _traffic(running, secrets, 200)
        await asyncio.to_thread(_deploy, running, SERVED, "gpu-box")
        hub.faults.pause_s = SHORT_PAUSE_S
        await asyncio.to_thread(_deploy, running, COMING, "attic", "--no-wait")
        hub.faults.pause_s = PAUSE_S
        async with browser() as chromium:
            for size, width in ((DESKTOP, "desktop"), (PHONE, "phone")):
                for scheme in ("light", "dark"):
                    async with page_of(chromium, running, size=size, scheme=scheme) as page:
                        await _take(page, running, secrets, f"{width}-{scheme}")
        hub.faults.pause_s = 0.0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(_main(Path(place)))
