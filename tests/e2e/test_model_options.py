"""Each option of a deployment is edited while callers stream: no request fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.model_fleet import (
    MODEL,
    REPO,
    ask,
    cluster_with_box,
    llama_servers,
    model,
)
from tests.harness.processes import wait_until
from tests.harness.real import require_real, script
from tests.harness.tiny_gguf import TinyModel, tiny_gguf

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(400)]

WAIT_S: Final = 60.0
VARIABLE: Final = "GGML_SCHED_DEBUG"
# What is typed, the answer's field and its value, and what the server's command line has then.
EDITS: Final[tuple[tuple[tuple[str, ...], str, object, str], ...]] = (
    (("--context", "1024"), "context_served", 1024, "--ctx-size 2048"),
    (("--slots", "1"), "slots", 1, "--parallel 1"),
    (("--slots", "2"), "slots", 2, "--parallel 2"),
    (("--flash-attention", "on"), "flash_attention", "on", "--flash-attn on"),
    (("--cache-type", "q8_0"), "cache_type", "q8_0", "--cache-type-k q8_0"),
    (("--cache-type", "f16"), "cache_type", "f16", ""),
    (
        ("--reasoning-format", "none"),
        *("reasoning_format", "none", "--reasoning-format none"),
    ),
    (("--draft-max", "4"), "draft_max", 4, ""),
    (("--engine-flag=--no-warmup",), "engine_flags", ["--no-warmup"], "--no-warmup"),
    (("--env", f"{VARIABLE}=0"), "environment", [f"{VARIABLE}=0"], ""),
    (("--alias", "house-model"), "alias", "house-model", ""),
    (("--cpu-moe", "0"), "cpu_moe", 0, ""),
    (("--priority", "3"), "priority", 3, ""),
    (("--load", "on-demand"), "load", "on_demand", ""),
    (("--ttl", "1h"), "idle_unload_s", 3600.0, ""),
    (("--ttl", "none"), "idle_unload_s", None, ""),
)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Cluster]:
    require_real("llama-server")
    gguf = tiny_gguf(tmp_path, TinyModel(width=128)).read_bytes()  # q8_0 needs heads of 32
    server = script("llama-server-vulkan")
    (tmp_path / "node.toml").write_text(
        f'[deploy]\nthreads = 1\nserver = "{server}"\nallow_engine_flags = true\n'
        f'allow_environment = ["{VARIABLE}"]\n'
    )
    with (
        FakeHub({REPO: FakeRepo({"tiny-F16.gguf": gguf})}) as hub,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("WAI_NODE_UPSTREAMS", '[{url = "http://127.0.0.1:9"}]')
        with cluster_with_box(tmp_path, ()) as running:
            yield running


@contextmanager
def callers(running: Cluster, secret: str) -> Iterator[list[str]]:
    """Three callers who stream all the time; what they got: "" if it was good."""
    stop, got = threading.Event(), list[str]()
    headers = {"Authorization": f"Bearer {secret}"}
    body = chat(MODEL, stream=True, max_tokens=8)

    def keep_asking() -> None:
        while not stop.is_set():
            with request(running, "/v1/chat/completions", body, headers) as answer:
                text = answer.read().decode()
                got.append("" if answer.status == 200 else f"{answer.status} {text}")

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def command_line(running: Cluster) -> str:
    [server] = llama_servers(running)
    try:
        return " ".join(server.cmdline())
    except psutil.Error:
        return ""


def wait_for_more(statuses: list[str]) -> None:
    """Wait until callers got four more answers."""
    seen = len(statuses)
    wait_until(lambda: len(statuses) > seen + 3, "nobody is answered", WAIT_S)


def test_each_option_is_edited_under_load_without_a_failed_request(box: Cluster) -> None:
    secret = box.create_key().secret
    assert model(box, "deploy", MODEL, "--node", "box", "--context", "512")["state"] == "ready"
    wait_until(lambda: ask(box, secret) == 200, "the relay does not hear of it")
    with callers(box, secret) as statuses:
        for typed, field, value, flag in EDITS:
            view = model(box, "edit", MODEL, "--node", "box", *typed)
            assert (view[field], view["swap_error"]) == (value, ""), typed
            wait_until(lambda: len(llama_servers(box)) == 1, "the old server stays", WAIT_S)
            assert flag in command_line(box), typed
            wait_for_more(statuses)
    assert set(statuses) == {""}
    assert ask(box, secret, "house-model") == 200
    model(box, "edit", MODEL, "--node", "box", "--alias", "none")
    wait_until(lambda: ask(box, secret, "house-model") == 404, "the alias stays", WAIT_S)
    print(f"{len(EDITS)} edits, {len(statuses)} answers, 0 failed")
