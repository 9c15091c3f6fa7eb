"""The dialog that deploys a model on several nodes, and says what became of it on each."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.harness.cluster import Cluster, wai
from tests.harness.model_fleet import MODEL, REPO, model_fleet
from tests.harness.real import require_real

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(240)]
STARTED_MS: Final = 90_000  # a llama-server has loaded its model


async def test_a_model_is_deployed_on_two_nodes_on_demand(tmp_path: Path, tiny_model: Path) -> None:
    require_real("chromium", "dashboard", "llama-server")
    from .browser import browser, open_page, page_of, sign_in

    gguf = await asyncio.to_thread(tiny_model.read_bytes)
    with model_fleet(tmp_path, gguf) as (running, _):
        await asyncio.to_thread(_second_node, running)
        async with browser() as chromium, page_of(chromium, running) as page:
            await sign_in(page, running)
            await open_page(page, "Models")
            await _deploy(page)
            for node in ("box", "attic"):
                row = page.get_by_role("row", name=f"{MODEL} on {node}")
                await row.get_by_text("ready", exact=True).wait_for(timeout=STARTED_MS)
                await row.get_by_text(re.compile("on demand")).wait_for()
                await row.get_by_text(re.compile("priority 3")).wait_for()
        listed = json.loads(await asyncio.to_thread(_list, running))
        assert {(d["node"], d["load"], d["priority"]) for d in listed} == {
            ("box", "on_demand", 3),
            ("attic", "on_demand", 3),
        }


def _second_node(running: Cluster) -> None:
    data = running.folder / "attic"
    wai("node", "join", running.invite(), "--data", data, "--name", "attic")
    running.run_node("attic", "--config", str(running.folder / "node.toml"), models=0)


def _list(running: Cluster) -> str:
    return wai("model", "list", "--data", running.data, "--json")


async def _deploy(page: Page) -> None:
    await page.get_by_label("Search models").fill("tiny")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("button", name=REPO).click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Context per slot").select_option("512")
    await dialog.get_by_label("In memory").select_option("on demand")
    await dialog.get_by_label("Priority").fill("3")
    several = dialog.get_by_label("On several nodes")
    await several.get_by_label("Quantisation").select_option("F16")
    await several.get_by_label("Replicas").fill("2")
    await several.get_by_role("button", name="Deploy on several").click()
    told = dialog.get_by_role("status", name="What became of it")
    for node in ("box", "attic"):
        row = told.get_by_role("listitem").filter(has=page.get_by_text(node, exact=True))
        await row.get_by_text("deployed", exact=True).wait_for(timeout=STARTED_MS)
        await row.get_by_text("it fits").wait_for()
    await dialog.get_by_role("button", name="Close").click()
