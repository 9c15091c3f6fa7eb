"""llama.cpp's timings reach a caller through the relay where they come straight from the server."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import cluster
from tests.harness.llama_server import llama_server
from tests.harness.tiny_gguf import tiny_gguf

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"


def shape(stream: Iterable[str]) -> list[tuple[list[str], list[str]]]:
    """Of each event its fields, and those of its timings."""
    found: list[dict[str, Any]] = [json.loads(data) for data in stream if data != "[DONE]"]
    return [(sorted(chunk), sorted(chunk.get("timings", {}))) for chunk in found]


@pytest.mark.parametrize("asked", [{}, {"timings_per_token": True}])
def test_the_end_of_a_stream_has_its_timings(tmp_path: Path, asked: dict[str, Any]) -> None:
    with (
        llama_server(tiny_gguf(tmp_path), tmp_path, key="of-this-test") as server,
        cluster(tmp_path) as running,
    ):
        running.add_node("a", server.url, upstream_key="of-this-test")
        body = chat("tiny", stream=True, max_tokens=8, temperature=0, **asked)
        straight = urllib.request.Request(
            server.url + CHAT, body, {"Authorization": "Bearer of-this-test"}
        )
        with urllib.request.urlopen(straight, timeout=30) as answer:
            lines = [line.decode().strip() for line in answer]
        wanted = shape(line[6:] for line in lines if line.startswith("data: "))
        assert "predicted_per_second" in wanted[-1][1]
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        with request(running, CHAT, body, headers) as through:
            assert shape(events(through)) == wanted
