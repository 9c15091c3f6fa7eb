"""A deployment that fails, on the Models page: why, what its server printed, Retry and Edit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest

from tests.harness.cluster import Cluster, CommandError, wai
from tests.harness.model_fleet import MODEL, model, model_fleet
from tests.harness.processes import wait_until
from tests.harness.real import require_real, script
from wai_node.managed.deployment import START_TRIES

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(300)]

STARTED_MS: Final = 90_000  # a llama-server has loaded its model
CAUSE: Final = "error: the GPU is on fire"
# A llama-server that does not come up while a file is there; it writes a line there for each try.
SERVER: Final = """\
#!/bin/sh
case "$*" in
  *--version*|*--help*|*--list-devices*) ;;
  *) [ ! -e {broken} ] || {{ echo try >>{broken}; echo "{cause}" >&2; exit 1; }} ;;
esac
exec {server} "$@"
"""


def _given_up(running: Cluster, broken: Path) -> bool:
    if len(broken.read_text().splitlines()) < START_TRIES:
        return False
    [deployed] = model(running, "list")
    return bool(deployed["state"] == "failed")


async def test_what_failed_says_why_and_is_tried_again_or_edited(
    tmp_path: Path, tiny_model: Path
) -> None:
    require_real("chromium", "dashboard", "llama-server")
    from .browser import browser, open_page, page_of, sign_in

    broken, server = tmp_path / "broken", tmp_path / "llama-server"
    broken.touch()
    server.write_text(
        SERVER.format(broken=broken, cause=CAUSE, server=script("llama-server-vulkan"))
    )
    server.chmod(0o755)
    gguf = await asyncio.to_thread(tiny_model.read_bytes)
    with model_fleet(tmp_path, gguf, server=str(server)) as (running, _):
        data = ("--data", running.data)
        deploy = ("model", "deploy", MODEL, "--node", "box", "--context", "512", *data)
        await asyncio.to_thread(wai, *deploy, "--no-wait")
        async with browser() as chromium, page_of(chromium, running) as page:
            await sign_in(page, running)
            await open_page(page, "Models")
            row = page.get_by_role("row", name=f"{MODEL} on box")
            await row.get_by_text("failed", exact=True).wait_for(timeout=STARTED_MS)
            await row.get_by_label(f"Last lines of {MODEL}").get_by_text(CAUSE).wait_for()

            # The node's own tries are over, so that only the button starts the server again.
            await asyncio.to_thread(wait_until, lambda: _given_up(running, broken), "three tries")
            broken.unlink()
            await row.get_by_role("button", name=f"Retry {MODEL}").click()
            await row.get_by_text("ready", exact=True).wait_for(timeout=STARTED_MS)
            assert await row.get_by_role("button", name=f"Retry {MODEL}").count() == 0

        with pytest.raises(CommandError, match="has not failed: it is ready"):
            await asyncio.to_thread(wai, "model", "retry", MODEL, "--node", "box", *data)
