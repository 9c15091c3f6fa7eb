"""Strangers who prove nothing, against a real relay: nodes come in, and callers are served."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.harness.caller import request
from tests.harness.cluster import cluster
from tests.harness.counting_upstream import MODEL, counting_upstream
from tests.harness.loop_end import abort_connections

pytestmark = pytest.mark.e2e

STRANGERS = 2_100
AT_ONCE = 50


async def fill(port: int) -> list[asyncio.StreamWriter]:
    """Open connections that say they are nodes', and then nothing."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["wai/1"])
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> asyncio.StreamWriter:
        async with gate:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            return writer

    return await asyncio.gather(*(one() for _ in range(STRANGERS)))


def test_a_node_comes_in_while_strangers_hold_every_place(tmp_path: Path) -> None:
    with counting_upstream() as upstream, cluster(tmp_path) as running:
        running.join("box")
        secret = running.create_key().secret
        loop = asyncio.new_event_loop()
        try:
            strangers = loop.run_until_complete(fill(running.port))
            running.start_node("box", "--upstream", upstream.url)
            running.wait_for_state("box", "ready")
            headers = {"Authorization": f"Bearer {secret}"}
            with request(running, "/v1/models", headers=headers) as response:
                assert response.status == 200
                assert MODEL in response.read().decode()
            assert len(strangers) == STRANGERS
        finally:
            loop.run_until_complete(abort_connections())
            loop.close()
