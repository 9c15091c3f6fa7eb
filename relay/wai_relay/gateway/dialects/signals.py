"""What one event of a streamed answer means: preamble, content, its end, or an error. Pure.

One function for each kind of stream. They are asked only until the first content came, so they may
decode; the tokens after it are never looked at by them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final


class Signal(enum.Enum):
    """What one event of a stream means for its answer."""

    PREAMBLE = enum.auto()  # a role, an id, a usage figure: nothing that anybody would read
    CONTENT = enum.auto()  # text, reasoning, a tool call, audio
    END = enum.auto()  # the answer's proper end
    ERROR = enum.auto()


SignalOf = Callable[[str, dict[str, Any]], Signal]
"""Maps an event's name ("" for none) and its decoded data to what it means."""

# What a delta of a chat completion may carry beside its role, at all servers that we know.
_CHAT_CONTENT: Final = (
    *("content", "reasoning_content", "reasoning", "thinking", "tool_calls", "function_call"),
    *("audio", "refusal"),
)


def chat_signal(name: str, payload: dict[str, Any]) -> Signal:
    """A chunk of `/v1/chat/completions`."""
    if _is_error(name, payload):
        return Signal.ERROR
    signal = Signal.PREAMBLE
    for choice in _dicts(payload.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(delta.get(part) for part in _CHAT_CONTENT):
            return Signal.CONTENT
        if choice.get("finish_reason"):
            signal = Signal.END
    return signal


def text_signal(name: str, payload: dict[str, Any]) -> Signal:
    """A chunk of the older `/v1/completions`."""
    if _is_error(name, payload):
        return Signal.ERROR
    signal = Signal.PREAMBLE
    for choice in _dicts(payload.get("choices")):
        if choice.get("text"):
            return Signal.CONTENT
        if choice.get("finish_reason"):
            signal = Signal.END
    return signal


def responses_signal(name: str, payload: dict[str, Any]) -> Signal:
    """An event of `/v1/responses`, and of other streams whose content is in `….delta` events."""
    kind = str(payload.get("type") or name)
    if kind in ("error", "response.failed") or _is_error(name, payload):
        return Signal.ERROR
    if kind in ("response.completed", "response.incomplete"):
        return Signal.END
    return Signal.CONTENT if kind.endswith(".delta") and payload.get("delta") else Signal.PREAMBLE


def messages_signal(name: str, payload: dict[str, Any]) -> Signal:
    """An event of Anthropic's `/v1/messages`."""
    kind = str(payload.get("type") or name)
    if kind == "error" or _is_error(name, payload):
        return Signal.ERROR
    if kind == "message_stop":
        return Signal.END
    block = payload.get("content_block")
    if kind == "content_block_start" and isinstance(block, dict):
        # A tool call begins with its name; a text block begins empty.
        return Signal.CONTENT if block.get("name") or block.get("text") else Signal.PREAMBLE
    return Signal.CONTENT if kind == "content_block_delta" else Signal.PREAMBLE


def ollama_signal(name: str, payload: dict[str, Any]) -> Signal:
    """A line of Ollama's `/api/chat` or `/api/generate`."""
    del name
    if error_in(payload) is not None:
        return Signal.ERROR
    message = payload.get("message")
    said = message if isinstance(message, dict) else payload
    if any(said.get(part) for part in ("content", "thinking", "tool_calls", "response")):
        return Signal.CONTENT
    return Signal.END if payload.get("done") is True else Signal.PREAMBLE


def error_in(document: object) -> str | None:
    """The sentence of an error document of any dialect; "" if it has none; None: it is no error.

    OpenAI, LiteLLM: `{"error": {"message"}}`; Ollama: `{"error": "…"}`; vLLM: `{"object": "error",
    "message"}`; Anthropic: `{"type": "error", "error": {…}}`; Responses: `{"response": {"error"}}`.
    """
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    response = document.get("response")
    if error is None and isinstance(response, dict):
        error = response.get("error")
    if error is None and "error" in (document.get("object"), document.get("type")):
        error = document
    if not error:
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _is_error(name: str, payload: dict[str, Any]) -> bool:
    return name == "error" or error_in(payload) is not None


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
