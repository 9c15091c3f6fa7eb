"""`make screenshots`: each page, light and dark, desktop and phone, into docs/images.

A real relay with two nodes on a real llama-server and a little traffic, so that the pages have
something to show.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster, cluster
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
    "audit": "Admins & audit",
}
BUSY: Final = ("overview", "requests")  # pages that are taken while requests run
SETTLE_S: Final = 1.2  # until charts are drawn and the feed has come
CALLS: Final = 12  # enough for a chart with a shape
LONG_TOKENS: Final = 2000


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


async def _main(folder: Path) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = tiny_gguf(folder)
    with llama_server(model, folder, slots=4) as llama, cluster(folder) as running:
        running.add_node("gpu-box", llama.url)
        running.add_node("attic", llama.url)
        secrets = [running.create_key(name).secret for name in ("notes-app", "ci", "home")]
        await _traffic(running, secrets, 200)
        async with browser() as chromium, asyncio.TaskGroup() as tasks:
            for size, width in ((DESKTOP, "desktop"), (PHONE, "phone")):
                for scheme in ("light", "dark"):
                    async with page_of(chromium, running, size=size, scheme=scheme) as page:
                        await sign_in(page, running)
                        for name, title in PAGES.items():
                            if name in BUSY:
                                tasks.create_task(_traffic(running, secrets, LONG_TOKENS))
                            await open_page(page, title)
                            await asyncio.sleep(SETTLE_S)
                            await page.screenshot(path=FOLDER / f"{name}-{width}-{scheme}.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(_main(Path(place)))
