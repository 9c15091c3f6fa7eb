"""Requests that the relay itself answers where the model's server has no counterpart. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from wai_protocol.status import COMPLETION, OLLAMA_WORDS, TOOLS

from .ollama import stamp
from .translation import ENCODER, Asked, Body


def count_tokens(body: Body, asked: Asked) -> bytes:
    """Anthropic's `/v1/messages/count_tokens`, by estimate."""
    del body
    return ENCODER.encode({"input_tokens": max(asked.prompt_tokens, 1)})


def input_tokens(body: Body, asked: Asked) -> bytes:
    """OpenAI's `/v1/responses/input_tokens` and llama.cpp's of chat completions, by estimate."""
    del body
    count = max(asked.prompt_tokens, 1)
    return ENCODER.encode({"object": "response.input_tokens", "input_tokens": count})


def show(body: Body, asked: Asked) -> bytes:
    """Ollama's `/api/show`: what the relay knows of a model. Its clients look for the fields."""
    del body
    info: Body = {"general.architecture": "wai"}
    if asked.context_tokens is not None:
        info["wai.context_length"] = asked.context_tokens
    words = OLLAMA_WORDS.intersection(asked.capabilities())
    details: Body = {"parent_model": "", "format": "", "family": "", "families": []}
    return ENCODER.encode(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": details | {"parameter_size": "", "quantization_level": ""},
            "model_info": info,
            "capabilities": sorted(words) or [COMPLETION, TOOLS],
            "modified_at": stamp(asked.now()),
        }
    )


def load_chat(body: Body, asked: Asked) -> bytes | None:
    """A chat without messages, by which Ollama loads or unloads a model: the node decides that."""
    if body.get("messages"):
        return None
    return _loaded(body, asked, {"message": {"role": "assistant", "content": ""}})


def load_generate(body: Body, asked: Asked) -> bytes | None:
    """The same with `/api/generate`: a request without a prompt."""
    if body.get("prompt") or body.get("images"):
        return None
    return _loaded(body, asked, {"response": ""})


def load_embed(body: Body, asked: Asked) -> bytes | None:
    """`/api/embed` without a text, which loads the model too: there is nothing to embed."""
    if body.get("input") not in (None, "", []):
        return None
    return ENCODER.encode({"model": asked.model, "embeddings": []})


def load_embeddings(body: Body, asked: Asked) -> bytes | None:
    """The same with the older `/api/embeddings`."""
    del asked
    return ENCODER.encode({"embedding": []}) if body.get("prompt") in (None, "") else None


def _loaded(body: Body, asked: Asked, said: Body) -> bytes:
    reason = "unload" if body.get("keep_alive") in (0, "0", "0s") else "load"
    line = {"model": asked.model, "created_at": stamp(asked.now()), **said}
    return ENCODER.encode(line | {"done": True, "done_reason": reason}) + b"\n"


LOCAL_ANSWERS: Final[dict[str, Callable[[Body, Asked], bytes | None]]] = {
    "/v1/messages/count_tokens": count_tokens,
    "/v1/responses/input_tokens": input_tokens,
    "/v1/chat/completions/input_tokens": input_tokens,
    "/api/show": show,
    "/api/chat": load_chat,
    "/api/generate": load_generate,
    "/api/embed": load_embed,
    "/api/embeddings": load_embeddings,
}
"""None: the request is one for a model."""
