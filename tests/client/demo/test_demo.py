"""The demo's model: a real child process with a real model."""

from __future__ import annotations

import contextlib
import sys
import urllib.error
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest

from tests.harness.processes import Daemon, wait_until
from tests.harness.real import require_real
from tests.harness.unix_http import ask
from wai_node.demo.demo import MODEL_ID, DemoModel, DemoUpstream
from wai_protocol.errors import TransportError

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


def answer(upstream: DemoUpstream, key: str) -> str:
    question = {
        "model": MODEL_ID,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    body = ask(upstream.url, "/v1/chat/completions", key, question)
    text: str = body["choices"][0]["message"]["content"]
    return text


def demo_children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # over meanwhile, and perhaps a zombie
            if "wai_node.demo.demo_server" in " ".join(child.cmdline()):
                found.append(child)
    return found


async def test_it_answers_to_its_key_alone_and_leaves_nothing(tmp_path: Path) -> None:
    require_real("smollm2")
    demo = DemoModel("only-for-this-test", tmp_path / "demo.log")
    upstream = await demo.start()
    try:
        assert await anyio.to_thread.run_sync(answer, upstream, upstream.key)
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            await anyio.to_thread.run_sync(answer, upstream, "wrong")
        refused.value.close()
        [child] = demo_children()
        assert "only-for-this-test" not in " ".join(child.cmdline())
    finally:
        await demo.stop()
    assert not child.is_running()
    assert "France" not in (tmp_path / "demo.log").read_text()


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    require_real("smollm2")
    demo = DemoModel("k", tmp_path / "demo.log")
    with anyio.move_on_after(0.05) as scope:
        await demo.start()
    assert scope.cancelled_caught
    assert not demo_children()


async def test_a_server_that_dies_while_loading_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_real("smollm2")
    monkeypatch.setattr("wai_node.demo.demo._MODEL_FILE", "no-such.gguf")
    demo = DemoModel("k", tmp_path / "demo.log")
    with pytest.raises(TransportError, match=r"ended with status(?s:.)*no-such\.gguf"):
        await demo.start()
    assert not demo_children()


_HOLDS_A_DEMO = """
import anyio, sys
from pathlib import Path
from wai_node.demo.demo import DemoModel
async def main():
    upstream = await DemoModel("k", Path(sys.argv[1])).start()
    print("serving", upstream.url, flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""


async def test_its_process_ends_when_the_node_is_killed(tmp_path: Path) -> None:
    require_real("smollm2")
    daemon = Daemon(
        [sys.executable, "-c", _HOLDS_A_DEMO, str(tmp_path / "demo.log")], log=tmp_path / "log"
    )
    with daemon:
        await anyio.to_thread.run_sync(daemon.wait_for_output, "^serving ")
        assert len(daemon.family()) == 2
        daemon.kill()
        await anyio.to_thread.run_sync(
            wait_until, lambda: not daemon.family(), "the model's server still runs"
        )
