"""The options of a deployment in the dialog that deploys: folded, and those of the edit dialog."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Final

import pytest

from tests.harness.cluster import wai
from tests.harness.model_fleet import MODEL, REPO, model_fleet
from tests.harness.real import require_real

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(240)]
STARTED_MS: Final = 90_000  # a llama-server has loaded its model


async def test_a_model_is_deployed_with_options_that_are_folded_at_first(
    tmp_path: Path, tiny_model: Path
) -> None:
    require_real("chromium", "dashboard", "llama-server")
    from .browser import browser, open_page, page_of, sign_in

    gguf = await asyncio.to_thread(tiny_model.read_bytes)
    with model_fleet(tmp_path, gguf) as (running, _):
        # the console of a browser names what a node refuses
        async with browser() as chromium, page_of(chromium, running, allowed="of 400") as page:
            await sign_in(page, running)
            await open_page(page, "Models")
            await page.get_by_label("Search models").fill("tiny")
            await page.get_by_role("button", name="Search").click()
            await page.get_by_role("button", name=REPO).click()
            dialog = page.get_by_role("dialog")
            await dialog.get_by_label("Context per slot").select_option("512")
            assert not await dialog.get_by_label("Alias").is_visible()
            await dialog.get_by_text("More options").click()
            await dialog.get_by_label("Alias").fill("small")
            await dialog.get_by_label("Reasoning format").select_option("none")
            await dialog.get_by_label("Draft model").fill("none")
            deploy = dialog.get_by_role("button", name="Deploy F16 on box")

            await dialog.get_by_label("Experts in RAM").fill("1")
            async with page.expect_response(re.compile(r"/models/fit\?.*&cpu_moe=1")):
                await dialog.get_by_label("GPUs", exact=True).focus()
            await deploy.click()
            await dialog.get_by_text("no GPU that its engine can use").wait_for()

            await dialog.get_by_label("Experts in RAM").fill("auto")
            await deploy.click()
            await dialog.wait_for(state="hidden")
            row = page.get_by_role("row", name=f"{MODEL} on box")
            await row.get_by_text("ready", exact=True).wait_for(timeout=STARTED_MS)
            await row.get_by_text("Reasoning format none · Alias small").wait_for()
            await row.get_by_role("button", name=f"Options of {MODEL}").click()
            assert await page.get_by_role("dialog").get_by_label("Alias").input_value() == "small"
        listing = "model", "list", "--data", running.data, "--json"
        [listed] = json.loads(await asyncio.to_thread(wai, *listing))
        assert (listed["alias"], listed["reasoning_format"]) == ("small", "none")
        assert (listed["cpu_moe"], listed["cache_type"], listed["draft"]) == (None, "f16", "")
