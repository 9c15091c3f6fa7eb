"""A `vllm` command that serves as `vllm serve` does, at a unix socket, and fails as it does.

`write_vllm` puts it into a folder for PATH. It checks what a real one checks first: its arguments,
the config, and the share of the GPU that it may take. What it answers are always the same words.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

KNOWN: Final = {
    "--served-model-name": str,
    "--uds": str,
    "--max-model-len": int,
    "--max-num-seqs": int,
    "--gpu-memory-utilization": float,
    "--kv-cache-dtype": str,
    "--host": str,
    "--port": int,
    "--dtype": str,
}
SWITCHES: Final = ("--disable-uvicorn-access-log",)
_FAULTS: Final = {
    "kv": "ValueError: To serve at least one request with the models's max seq len (8192), (4.26"
    " GiB KV cache is needed, which is larger than the available KV cache memory (3.18 GiB).",
    "taken": "ValueError: Free memory on device (10.1/79.2 GiB) on startup is less than desired GPU"
    " memory utilization (0.9, 71.3 GiB).",
    "architecture": "ValueError: Model architectures ['NewForCausalLM'] are not supported for now.",
    "cuda": "RuntimeError: No CUDA GPUs are available",
}


def write_vllm(folder: Path, fault: str = "", unknown: str = "") -> Path:
    """Write the command into `folder`. `fault`: one of the above; `unknown`: an option that this
    version has not."""
    folder.mkdir(exist_ok=True)
    path = folder / "vllm"
    root = Path(__file__).parents[2]
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\n"
        f"from tests.harness.fake_vllm import main\nmain({fault!r}, {unknown!r})\n"
    )
    path.chmod(0o755)
    return path


def main(fault: str, unknown: str) -> None:
    """Run: argv as `vllm serve MODEL [OPTIONS]`."""
    verb, model, *rest = sys.argv[1:]
    assert verb == "serve"
    options, wrong = _parsed(rest, unknown)
    if wrong:
        print(f"vllm: error: unrecognized arguments: {wrong}", file=sys.stderr)
        sys.exit(2)
    config = json.loads(Path(model, "config.json").read_text())
    print(f"INFO [model.py:547] Resolved architecture: {config['architectures'][0]}", flush=True)
    if fault:
        print(f"(EngineCore_DP0 pid={os.getpid()}) {_FAULTS[fault]}", flush=True)
        sys.exit(1)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "HF_TOKEN" not in os.environ
    with _Server(options["--uds"], _Handler) as server:
        server.options = options
        server.key = os.environ["VLLM_API_KEY"]
        print("INFO:     Application startup complete.", flush=True)
        server.serve_forever()


def _parsed(words: list[str], unknown: str) -> tuple[dict[str, Any], str]:
    options: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == unknown or (word not in KNOWN and word not in SWITCHES):
            return options, " ".join([word, *rest])
        if word in KNOWN:
            options[word] = KNOWN[word](rest.pop(0))
    return options, ""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    options: dict[str, Any]
    key: str


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """vLLM's access log is turned off."""

    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        name = self.server.options["--served-model-name"]
        match self.path:
            case "/health":
                self._send(200, b"")
            case "/metrics":
                self._send(200, b'vllm:num_requests_running{model_name="m"} 0.0\n')
            case "/openapi.json":
                paths: dict[str, Any] = {
                    path: {"post": {}} for path in ("/v1/chat/completions", "/v1/completions")
                }
                self._json(200, {"openapi": "3.1.0", "paths": paths})
            case "/v1/models" if self._allowed():
                longest = self.server.options["--max-model-len"]
                entry = {"id": name, "owned_by": "vllm", "max_model_len": longest}
                self._json(200, {"object": "list", "data": [entry]})
            case path:
                self._json(401 if path.startswith("/v1") else 404, {"error": "Unauthorized"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._allowed():
            self._json(401, {"error": "Unauthorized"})
            return
        message = {"role": "assistant", "content": "All is well."}
        told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._json(200, {**told, "model": body.get("model"), "choices": [choice], "usage": usage})

    def _allowed(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {self.server.key}"

    def _json(self, status: int, body: Any) -> None:
        self._send(status, json.dumps(body).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def repository(tensors: bytes = b"tensors" * 100, **config: Any) -> dict[str, bytes]:
    """The files of a repository that vLLM can serve, and some that nobody should load."""
    told = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 32768,
        **config,
    }
    return {
        "model.safetensors": tensors,
        "config.json": json.dumps(told).encode(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"chat_template": "x"}',
        "modeling_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "README.md": b"# model",
        "onnx/model.safetensors": b"else",
    }
