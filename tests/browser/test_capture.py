"""Capture and replay as a person does them: turned on for one key, looked at, sent again, wiped;
what a hostile caller says is text and nothing else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final

import pytest

from tests.harness.caller import request
from tests.harness.cluster import Cluster, CommandError, cluster, wai
from tests.harness.real import require_real
from tests.harness.strict_server import MODEL, strict_server

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.e2e]

HOSTILE: Final = (
    "</pre><img src=x onerror=\"document.title='taken'\"><script>1</script>\u001b[31mred"
)


def ask(running: Cluster, secret: str, text: str) -> str:
    """Send a chat; the request's id."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    with request(running, "/v1/chat/completions", json.dumps(asked).encode(), headers) as response:
        assert response.status == 200
        response.read()
        request_id = response.headers["x-request-id"]
        assert request_id is not None
        return str(request_id)


async def test_a_key_is_captured_looked_at_replayed_and_wiped(tmp_path: Path) -> None:
    require_real("chromium", "dashboard")
    from .browser import browser, open_page, page_of, sign_in

    with strict_server() as upstream, cluster(tmp_path) as running:
        for name in ("box", "attic"):
            await asyncio.to_thread(running.add_node, name, upstream.url)
        key = running.create_key("my-app")
        before = await asyncio.to_thread(ask, running, key.secret, "not captured")
        async with browser() as chromium, page_of(chromium, running) as page:
            await sign_in(page, running)
            await open_page(page, "Keys")
            await page.get_by_role("button", name="Capture my-app").click()
            await page.get_by_text("in the relay’s memory only").wait_for()
            await page.get_by_role("button", name="Capture", exact=True).click()
            notice = page.get_by_role("status").filter(has_text="are captured until")
            await notice.wait_for()

            said = f"{HOSTILE} {key.secret}"
            request_id = await asyncio.to_thread(ask, running, key.secret, said)
            await open_page(page, "Requests")
            await notice.filter(has_text="1 request,").wait_for()
            await page.get_by_role("button", name="Over").click()
            await page.get_by_role("button", name=f"Details of {before}").click()
            await page.get_by_role("definition").first.wait_for()
            assert await page.get_by_label("Captured", exact=True).count() == 0
            await page.get_by_role("button", name="Close").click()

            await page.goto(f"/dashboard/requests?over=&id={request_id}")
            await page.get_by_role("button", name="Look at them").click()
            shown = await page.get_by_label("Prompt", exact=True).inner_text()
            assert HOSTILE in json.loads(shown)["messages"][0]["content"]
            assert key.secret not in await page.content()
            assert await page.get_by_label("Answer", exact=True).inner_text() == "hi"
            assert await page.title() == "Requests · wai"
            assert await page.locator("dialog img").count() == 0

            await page.get_by_label("Node", exact=True).select_option("attic")
            await page.get_by_role("button", name="Send again").click()
            again = page.get_by_label("Replayed")
            await again.get_by_role("heading", name="on attic").wait_for()
            assert await again.get_by_label("Answer", exact=True).inner_text() == "hi"
            await page.get_by_role("button", name="Close").click()

            await page.get_by_role("button", name="Stop and wipe").click()
            await notice.wait_for(state="detached")
            await page.goto(f"/dashboard/requests?id={request_id}")
            await page.get_by_role("definition").first.wait_for()
            assert await page.get_by_label("Captured", exact=True).count() == 0
            await page.get_by_role("button", name="Close").click()
            await open_page(page, "Settings")
            for action in ("key.capture", "request.look", "request.replay", "key.capture_off"):
                await page.get_by_role("cell", name=action, exact=True).wait_for()
        usage = running.usage("key")
        assert [(row["group"], row["requests"]) for row in usage] == [(key.id, 2)]


def test_the_same_by_commands_and_nothing_of_it_is_on_the_disk(tmp_path: Path) -> None:
    with strict_server() as upstream, cluster(tmp_path) as running:
        running.add_node("box", upstream.url)
        key = running.create_key("my-app")
        data = ("--data", running.data)
        assert "in the relay's memory" in wai("key", "capture", "my-app", "--for", "10m", *data)
        assert "are captured until" in wai("key", "list", *data)
        request_id = ask(running, key.secret, HOSTILE)
        assert "--captured" in wai("requests", "show", request_id, *data)
        shown = wai("requests", "show", request_id, "--captured", *data)
        assert "onerror" in shown
        assert "\u001b" not in shown
        assert "status 200" in wai("requests", "replay", request_id, "--node", "box", *data)
        with pytest.raises(CommandError, match="did you mean 'box'"):
            wai("requests", "replay", request_id, "--node", "bax", *data)
        assert "wiped" in wai("key", "capture", "my-app", "--off", *data)
        with pytest.raises(CommandError, match="is captured"):
            wai("requests", "show", request_id, "--captured", *data)
        running.relay.stop()
        for file in [*running.data.iterdir(), running.relay.log]:
            assert b"onerror" not in file.read_bytes(), file
