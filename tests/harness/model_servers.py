"""Model servers that can't be had here, as they answer: vLLM, Ollama, LM Studio, and a strict one.

Each has the routes, errors and oddities of the real one: which methods and fields it takes, whether
it needs a length, what it says of itself. What they write is always the same words; the tests are
about the way there and back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar, Final

from .threaded_server import Quiet, QuietServer, serving

WORDS: Final = ("All", " is", " well.")
TEXT: Final = "".join(WORDS)
KEY: Final = "key-of-the-strict-server"
PROMPT_TOKENS: Final = 7
Json = dict[str, Any]


@dataclass(slots=True)
class Seen:
    """One request that a server got."""

    method: str
    path: str
    body: Json


@dataclass(slots=True)
class ModelServer:
    """A running one: its address, its model, and what it was asked."""

    url: str
    model: str
    key: str = ""
    seen: list[Seen] = field(default_factory=list)


@contextmanager
def model_server(kind: str) -> Iterator[ModelServer]:
    """Serve as `vllm`, `ollama`, `lm-studio` or `strict` until the block ends."""
    handler = _KINDS[kind]
    server = ModelHttpServer(("127.0.0.1", 0), handler)
    url = server.url
    server.told = ModelServer(url, handler.model, handler.key)
    with serving(server):
        yield server.told


class ModelHttpServer(QuietServer):
    """One of these servers; `told` is what tests read."""

    told: ModelServer


class Refused(Exception):
    """The answer to a request that a server does not take."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class _Handler(Quiet, BaseHTTPRequestHandler):
    """What they have in common: OpenAI's chat completions, in HTTP/1.1."""

    protocol_version = "HTTP/1.1"
    server: ModelHttpServer
    model: ClassVar[str] = ""
    key: ClassVar[str] = ""
    posts: ClassVar[tuple[str, ...]] = ("/v1/chat/completions", "/v1/embeddings")
    needs_length: ClassVar[bool] = False

    def do_GET(self) -> None:
        self._answer(self.get)

    def do_HEAD(self) -> None:
        self._json(405, {"detail": "Method Not Allowed"})

    def do_POST(self) -> None:
        self._answer(self._post)

    # -- what a kind changes

    def get(self) -> None:
        if self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
            return
        self.unknown()

    def unknown(self) -> None:
        """A path that is not there."""
        status = 405 if self.path.partition("?")[0] in self.posts else 404
        self._json(status, {"detail": "Not Found" if status == 404 else "Method Not Allowed"})

    def check(self, body: Json) -> None:
        """Raise `Refused` for a body that this kind does not take."""
        if body.get("model") != self.model:
            message = f"The model `{body.get('model')}` does not exist."
            raise Refused(404, {"error": {"message": message, "type": "NotFoundError"}})

    # -- the frame

    def _answer(self, act: Any) -> None:
        if self.key and self.headers.get("authorization") != f"Bearer {self.key}":
            self._json(401, {"error": {"message": "Invalid API key.", "type": "auth"}})
            return
        try:
            act()
        except Refused as refusal:
            self._json(refusal.status, refusal.body)

    def _post(self) -> None:
        path = self.path.partition("?")[0]
        data = self._body()
        if path not in self.posts:
            self.unknown()
            return
        try:
            body = json.loads(data)
        except ValueError:
            raise Refused(400, {"error": {"message": "invalid json", "type": "bad"}}) from None
        self.server.told.seen.append(Seen("POST", path, body))
        self.check(body)
        getattr(self, self.action(path))(body)

    def action(self, path: str) -> str:
        """The method that answers a POST to `path`."""
        return _ACTIONS[path]

    def _body(self) -> bytes:
        length = self.headers.get("content-length")
        if length is not None:
            return self.rfile.read(int(length))
        if self.needs_length:
            self.close_connection = True
            raise Refused(411, {"error": {"message": "Length Required", "type": "length"}})
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _json(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _stream(self, pieces: Iterable[bytes], content_type: str = "text/event-stream") -> None:
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    # -- OpenAI

    def chat(self, body: Json) -> None:
        head = {"id": "chatcmpl-1", "created": 1, "model": self.model}
        calls = _calls(body)
        finish = "tool_calls" if calls else "stop"
        usage = _usage("prompt_tokens", "completion_tokens")
        if not body.get("stream"):
            message: Json = {"role": "assistant", "content": None if calls else TEXT}
            if calls:
                message["tool_calls"] = [
                    {k: v for k, v in c.items() if k != "index"} for c in calls
                ]
            choice = {"index": 0, "message": message, "finish_reason": finish}
            document = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            self._json(200, document)
            return

        def chunk(delta: Json, reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return _event({**head, "object": "chat.completion.chunk", "choices": [choice]})

        pieces = [chunk({"role": "assistant", "content": ""})]
        pieces += [chunk({"tool_calls": [call]}) for call in calls]
        pieces += [] if calls else [chunk({"content": word}) for word in WORDS]
        pieces.append(chunk({}, finish))
        if (body.get("stream_options") or {}).get("include_usage"):
            told = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            pieces.append(_event(told))
        self._stream([*pieces, b"data: [DONE]\n\n"])

    def text(self, body: Json) -> None:
        head = {"id": "cmpl-1", "created": 1, "model": self.model, "object": "text_completion"}
        usage = _usage("prompt_tokens", "completion_tokens")

        def choice(text: str, reason: str | None) -> list[Json]:
            return [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None}]

        if not body.get("stream"):
            self._json(200, {**head, "choices": choice(TEXT, "stop"), "usage": usage})
            return
        pieces = [_event({**head, "choices": choice(word, None)}) for word in WORDS]
        pieces.append(_event({**head, "choices": choice("", "stop")}))
        if (body.get("stream_options") or {}).get("include_usage"):
            pieces.append(_event({**head, "choices": [], "usage": usage}))
        self._stream([*pieces, b"data: [DONE]\n\n"])

    def embed(self, body: Json) -> None:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [
            {"object": "embedding", "index": n, "embedding": [0.5, float(n)]}
            for n in range(len(texts))
        ]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        self._json(200, {"object": "list", "model": self.model, "data": data, "usage": usage})

    # -- OpenAI's Responses

    def respond(self, body: Json) -> None:
        item: Json = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
        part = {"type": "output_text", "text": TEXT, "annotations": []}
        usage = _usage("input_tokens", "output_tokens")
        usage |= {
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        whole: Json = {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": self.model,
            "output": [{**item, "content": [part]}],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "usage": usage,
        }
        if not body.get("stream"):
            self._json(200, whole)
            return
        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        empty = {**part, "text": ""}
        events: list[Json] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {**item, "content": []},
            },
            {"type": "response.content_part.added", **place, "part": empty},
            *({"type": "response.output_text.delta", **place, "delta": w} for w in WORDS),
            {"type": "response.output_text.done", **place, "text": TEXT},
            {"type": "response.content_part.done", **place, "part": part},
            {"type": "response.output_item.done", "output_index": 0, "item": whole["output"][0]},
            {"type": "response.completed", "response": whole},
        ]
        self._stream(
            _event({**event, "sequence_number": n}, event["type"]) for n, event in enumerate(events)
        )

    # -- Anthropic's Messages

    def message(self, body: Json) -> None:
        usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": len(WORDS)}
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": self.model}
        if not body.get("stream"):
            content = [{"type": "text", "text": TEXT}]
            stop = {"stop_reason": "end_turn", "stop_sequence": None}
            self._json(200, {**head, "content": content, **stop, "usage": usage})
            return
        begun: Json = {
            **head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        block = {"type": "text", "text": ""}
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        events: list[Json] = [
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": block},
            *(
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": word},
                }
                for word in WORDS
            ),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": end, "usage": {"output_tokens": len(WORDS)}},
            {"type": "message_stop"},
        ]
        self._stream(_event(event, event["type"]) for event in events)

    def count_tokens(self, body: Json) -> None:
        del body
        self._json(200, {"input_tokens": PROMPT_TOKENS})

    # -- Ollama

    def ollama_chat(self, body: Json) -> None:
        self._lines(body, lambda word: {"message": {"role": "assistant", "content": word}})

    def ollama_generate(self, body: Json) -> None:
        self._lines(body, lambda word: {"response": word})

    def ollama_embed(self, body: Json) -> None:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        told = {"model": body["model"], "embeddings": [[0.5, 1.0] for _ in texts]}
        self._json(200, {**told, "prompt_eval_count": 3})

    def ollama_embeddings(self, body: Json) -> None:
        del body
        self._json(200, {"embedding": [0.5, 1.0]})

    def ollama_show(self, body: Json) -> None:
        del body
        details: Json = {"format": "gguf", "family": "llama", "parameter_size": "1B"}
        told = {"details": details, "model_info": {"llama.context_length": 131072}}
        self._json(200, {**told, "capabilities": ["completion", "tools"]})

    def _lines(self, body: Json, said: Any) -> None:
        head = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z"}
        figures = {"prompt_eval_count": PROMPT_TOKENS, "eval_count": len(WORDS)}
        figures |= {"total_duration": 9, "eval_duration": 8}
        if body.get("stream") is False:
            end = {"done": True, "done_reason": "stop", **figures}
            self._json(200, {**head, **said(TEXT), **end})
            return
        lines = [{**head, **said(word), "done": False} for word in WORDS]
        lines.append({**head, **said(""), "done": True, "done_reason": "stop", **figures})
        pieces = [json.dumps(line).encode() + b"\n" for line in lines]
        self._stream(pieces, "application/x-ndjson")


class _Vllm(_Handler):
    """vLLM: FastAPI, describes itself, and has Messages and Responses of its own."""

    model = "vllm-model"
    posts = (
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/messages/count_tokens", "/v1/embeddings"),
    )

    def get(self) -> None:
        match self.path:
            case "/v1/models":
                entry = {"id": self.model, "object": "model", "created": 1, "owned_by": "vllm"}
                entry |= {"max_model_len": 32768}
                self._json(200, {"object": "list", "data": [entry]})
            case "/openapi.json":
                paths: Json = {path: {"post": {}} for path in self.posts}
                self._json(200, {"openapi": "3.1.0", "paths": paths})
            case "/metrics":
                data = b'vllm:num_requests_running{model_name="m"} 0.0\n'
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            case "/health":
                self._json(200, None)
            case _:
                self.unknown()


class OllamaHandler(_Handler):
    """Ollama 0.14: gin, which answers 405 to another method; names without `:latest`."""

    model = "ollama-model:latest"
    posts: ClassVar[tuple[str, ...]] = (
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/embeddings", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"),
        "/api/show",
    )

    def get(self) -> None:
        entry = {"name": self.model, "model": self.model, "size": 9, "digest": "d" * 64}
        match self.path:
            case "/api/version":
                self._json(200, {"version": "0.14.2"})
            case "/api/tags":
                self._json(200, {"models": [entry]})
            case "/api/ps":
                self._json(200, {"models": [{**entry, "context_length": 4096}]})
            case "/v1/models":
                data = [{"id": self.model, "object": "model", "owned_by": "library"}]
                self._json(200, {"object": "list", "data": data})
            case _:
                self.unknown()

    def check(self, body: Json) -> None:
        name = str(body.get("model", "")).lower()
        if self.model not in (name, f"{name}:latest"):
            raise Refused(404, {"error": f"model '{name}' not found"})


class LmStudioHandler(_Handler):
    """LM Studio: reads the body first, and answers 200 to a path that it does not know."""

    model = "studio-model"
    posts: ClassVar[tuple[str, ...]] = (
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        "/v1/embeddings",
    )

    def get(self) -> None:
        match self.path:
            case "/api/v1/models":
                config = {"context_length": 8192, "parallel": 4}
                instance: Json = {"id": self.model, "config": config}
                entry: Json = {"type": "llm", "key": self.model, "loaded_instances": [instance]}
                entry |= {"max_context_length": 131072, "size_bytes": 9}
                self._json(200, {"models": [entry]})
            case "/v1/models":
                super().get()
            case _:
                self.unknown()

    def unknown(self) -> None:
        message = f"Unexpected endpoint or method. ({self.command} {self.path})"
        self._json(200, {"error": f"{message}. Returning 200 anyway"})

    def _body(self) -> bytes:
        data = super()._body()
        try:
            json.loads(data)
        except ValueError:
            raise Refused(400, {"error": "Invalid JSON"}) from None
        return data

    def check(self, body: Json) -> None:
        if not any(name in body for name in ("messages", "prompt", "input")):
            raise Refused(400, {"error": "'messages' field is required"})


class _Strict(_Handler):
    """A server of an unknown make on Python's http.server: needs a length, refuses fields that it
    does not know, wants a key, and has nothing but chat completions and embeddings."""

    model = "strict-model"
    key = KEY
    needs_length = True
    _FIELDS: ClassVar = frozenset(
        {
            *("model", "messages", "stream", "max_tokens", "max_completion_tokens", "temperature"),
            *("top_p", "stop", "n", "seed", "tools", "tool_choice", "user", "input"),
            *("presence_penalty", "frequency_penalty", "response_format", "encoding_format"),
            *("parallel_tool_calls", "metadata"),
        }
    )

    def check(self, body: Json) -> None:
        super().check(body)
        for name in body:
            if name not in self._FIELDS:
                error = {"loc": ["body", name], "msg": "Extra inputs are not permitted"}
                raise Refused(422, {"detail": [error]})


_KINDS: Final[dict[str, type[_Handler]]] = {
    "vllm": _Vllm,
    "ollama": OllamaHandler,
    "lm-studio": LmStudioHandler,
    "strict": _Strict,
}
_ACTIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text",
    "/v1/embeddings": "embed",
    "/v1/responses": "respond",
    "/v1/messages": "message",
    "/v1/messages/count_tokens": "count_tokens",
    "/api/chat": "ollama_chat",
    "/api/generate": "ollama_generate",
    "/api/embed": "ollama_embed",
    "/api/embeddings": "ollama_embeddings",
    "/api/show": "ollama_show",
}


def _event(payload: Json, name: str = "") -> bytes:
    head = b"event: %b\n" % name.encode() if name else b""
    return head + b"data: " + json.dumps(payload).encode() + b"\n\n"


def _usage(prompt: str, answer: str) -> Json:
    told = {prompt: PROMPT_TOKENS, answer: len(WORDS)}
    return {**told, "total_tokens": sum(told.values())}


def _calls(body: Json) -> list[Json]:
    """A call of the first tool, where one is to be called."""
    tools = body.get("tools") or []
    wanted = body.get("tool_choice")
    if not tools or wanted in (None, "auto", "none"):
        return []
    function = {"name": tools[0]["function"]["name"], "arguments": _arguments(tools[0])}
    return [{"index": 0, "id": "call_1", "type": "function", "function": function}]


def _arguments(tool: Json) -> str:
    """Something that fits the tool's schema, as far as tests need it."""
    properties = tool["function"].get("parameters", {}).get("properties", {})
    values = {"string": "x", "integer": 1, "number": 1.5, "boolean": True}
    return json.dumps({name: values.get(p.get("type")) for name, p in properties.items()})
