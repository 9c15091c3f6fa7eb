"""The pages of a node with GPUs and an Ollama: its load, and a model that is deployed on Ollama."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.cluster import cluster
from tests.harness.fake_nvml import write_shim
from tests.harness.ollama_disk import ollama_disk
from tests.harness.real import require_real

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(400)]

CARDS = "[{}, {'handle': Errors(LOST)}]"


async def test_a_nodes_load_and_a_model_on_its_ollama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_real("chromium", "dashboard")
    from .browser import DESKTOP, PHONE, browser, open_page, page_of, sign_in

    shim = tmp_path / "shim"
    shim.mkdir()
    write_shim(shim, CARDS)
    monkeypatch.setenv("PYTHONPATH", str(shim))
    shots = Path(os.environ.get("WAI_SHOTS", tmp_path))
    with (
        ollama_disk(
            registry={"qwen3:8b": [5_200_000_000 // 1000]}, models={"mine:latest": 5}
        ) as disk,
        cluster(tmp_path) as running,
    ):
        running.add_node("gpu-box", disk.url)
        async with browser() as chromium:
            async with page_of(chromium, running, size=DESKTOP, allowed="of 400") as page:
                await sign_in(page, running)
                await open_page(page, "Nodes")
                await page.get_by_role("link", name="gpu-box").click()
                load = page.get_by_label("Load of the machine")
                await load.get_by_text("NVIDIA H200", exact=True).wait_for()
                await load.get_by_text("24.0 GiB of 150.0 GiB").wait_for()
                await load.get_by_text("64 °C · 412 of 700 W").wait_for()
                await load.get_by_text("it is lost").wait_for()
                await load.get_by_label("GPU use over 15 minutes, now 87 %").wait_for()
                await page.screenshot(path=shots / "nodes.png")
                await open_page(page, "Models")
                disk.held.clear()
                await page.get_by_label("Name of the model there").fill("qwen3:8b")
                await page.get_by_label("Deploy on a server").get_by_role("button").click()
                row = page.get_by_role("row", name="ollama:qwen3:8b on gpu-box")
                await row.get_by_text("of 5.0 MiB").wait_for()
                await page.screenshot(path=shots / "models.png")
                disk.held.set()
                await row.get_by_text("callers ask for qwen3:8b").wait_for()
                await row.get_by_role("button", name="Unload").click()
                await row.get_by_text("asleep").wait_for()
                await row.get_by_role("button", name="Load").click()
                await row.get_by_text("ready").wait_for()
                await page.get_by_label("Name of the model there").fill("no such")
                await page.get_by_label("Deploy on a server").get_by_role("button").click()
                await page.get_by_text("is no name of a model of Ollama's").wait_for()
            async with page_of(chromium, running, size=PHONE, scheme="dark") as page:
                await sign_in(page, running)
                await open_page(page, "Nodes")
                await page.get_by_role("link", name="gpu-box").click()
                await page.get_by_label("Load of the machine").wait_for()
                wide = await page.evaluate("document.documentElement.scrollWidth")
                assert wide <= PHONE[0]
                await page.screenshot(path=shots / "nodes-phone.png")
                await open_page(page, "Models")
                row = page.get_by_role("row", name="ollama:qwen3:8b on gpu-box")
                await row.wait_for()
                await page.screenshot(path=shots / "models-phone.png")
                await row.get_by_role("button", name="Remove").click()
                await row.get_by_role("button", name="Delete it there").click()
                await row.wait_for(state="detached")
    assert disk.deleted == ["qwen3:8b"]
