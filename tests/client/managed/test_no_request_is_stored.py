"""Nothing of a request stays on the node's disk or in its output, however the server complains."""

from __future__ import annotations

import logging
import urllib.error
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real, script
from tests.harness.supervised import ALIAS, REPO, node
from tests.harness.tiny_gguf import tiny_gguf
from tests.harness.unix_http import ask
from wai_node.managed.deployment import State
from wai_node.managed.policy import ManagedSettings
from wai_node.managed.server.log_file import LogFile
from wai_node.managed.server.served_lines import LEFT_OUT, ServedLines

CANARY: Final = "CANARYq7"
MESSAGES: Final = [{"role": "user", "content": f"sesame {CANARY}"}]
CHAT: Final = {"messages": MESSAGES, "max_tokens": 2}


def schema(value: Any) -> dict[str, Any]:
    return {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


def tool(name: str, parameters: Any) -> dict[str, Any]:
    function = {"name": name, "description": CANARY, "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    return {**CHAT, "tools": tools, "tool_choice": "required"}


def rules(pattern: str) -> Any:
    return {"type": "object", "properties": {CANARY: {"type": "string", "pattern": pattern}}}


REQUESTS: Final[list[tuple[str, dict[str, Any]]]] = [
    ("/v1/chat/completions", body)
    for body in (
        CHAT,
        schema({"type": CANARY}),
        schema({"type": "object", "properties": {CANARY: {"$ref": f"#/{CANARY}"}}}),
        schema({"type": "string", "pattern": f"^{CANARY}(?=x)$"}),
        schema({"type": "string", "format": CANARY}),
        {**CHAT, "response_format": {"type": CANARY}},
        {**CHAT, "grammar": f"root ::= {CANARY} | ("},
        {**CHAT, "grammar": f'root ::= "{CANARY}" missing'},
        {**CHAT, "grammar": f"0.0 I slot print_timing: id 0 | task 0 | {CANARY}\n{CANARY}"},
        {**CHAT, "stop": [CANARY]},
        tool(CANARY, {"type": CANARY}),
        tool("x", rules(f"{CANARY}(")),
        {**CHAT, "chat_template_kwargs": {CANARY: CANARY}},
        {**CHAT, "chat_template_kwargs": CANARY},
        {**CHAT, "messages": [{"role": CANARY, "content": CANARY}]},
        {**CHAT, "messages": [{"role": "user", "content": [{"type": CANARY, "text": CANARY}]}]},
        {**CHAT, "temperature": CANARY},
        {**CHAT, "lora": CANARY, "samplers": [CANARY], "logit_bias": [[CANARY, 1]]},
        {**CHAT, "messages": MESSAGES * 900},
    )
] + [
    ("/v1/completions", {"prompt": CANARY, "max_tokens": 2, "json_schema": {"type": CANARY}}),
    ("/v1/completions", {"prompt": CANARY, "max_tokens": 2, "grammar": CANARY}),
    ("/v1/messages", {"max_tokens": 2, "messages": MESSAGES, "system": CANARY}),
    ("/v1/responses", {"input": CANARY, "max_output_tokens": 2}),
    ("/v1/embeddings", {"input": CANARY}),
    ("/v1/rerank", {"query": CANARY, "documents": [CANARY]}),
    (f"/v1/{CANARY}", {"a": CANARY}),
]


@pytest.mark.anyio
@pytest.mark.timeout(300)
@pytest.mark.parametrize("flags", [(), ("--verbose",)], ids=["our flags", "the owner's --verbose"])
async def test_no_part_of_a_request_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: tuple[str, ...]
) -> None:
    require_real("llama-server")
    caplog.set_level(logging.DEBUG, "wai")
    content = tiny_gguf(tmp_path / "gguf").read_bytes()
    settings = ManagedSettings(
        folder=tmp_path / "node",
        models_folder=tmp_path / "models",
        server=script("llama-server-vulkan"),
        extra_flags=flags,
        threads=1,
        kept_free_bytes=0,
    )
    with FakeHub({REPO: FakeRepo({"tiny-F16.gguf": content})}) as hub:
        async with node(hub, settings) as n:
            await n.supervisor.deploy(REPO, 512, 1)
            await n.until_state(State.READY)
            [endpoint] = n.supervisor.serving().values()
            for path, body in REQUESTS:
                try:
                    await anyio.to_thread.run_sync(ask, endpoint.url, path, endpoint.key, body)
                except urllib.error.HTTPError as refused:
                    refused.close()
            log = "\n".join(await n.supervisor.logs(ALIAS, 1000))
            shown = "\n".join(n.status().log_tail)
    assert "prompt eval time" in log, "figures are of use"
    assert LEFT_OUT in log
    kept = [p.read_bytes() for p in settings.folder.rglob("*") if p.is_file()]
    for text in (log, shown, caplog.text, *(content.decode(errors="replace") for content in kept)):
        assert CANARY not in text
        assert "sesame" not in text


def test_a_line_without_an_end_is_held_back_too(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log")
    log.write(b"loaded\n")
    log.serving()
    log.write(f"0.00.000.001 E root ::= {CANARY}".encode())
    assert log.tail() == ("loaded",)
    log.close()
    assert log.tail() == ("loaded", LEFT_OUT)
    assert CANARY not in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("ggml_vulkan: Device memory allocation failed: ErrorOutOfDeviceMemory", "out of memory"),
        (f"x.cpp:1: GGML_ASSERT({CANARY}) failed", "GGML_ASSERT() failed"),
        (f"0.01.002 I slot release: id 0 | task 0 | {CANARY}", LEFT_OUT),
        (f"0.01.002 I slot {CANARY}: id 0 | task 0 | processing task, is_child = 0", LEFT_OUT),
    ],
)
def test_of_a_crash_the_kind_is_kept(line: str, kept: str) -> None:
    assert ServedLines().kept(line) == kept
