"""The parts of a chat completion that every translation writes and reads. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from .chat_stream import Part, Usage, calls_in, encode_text, said_in, usage_of


def text_part(text: str) -> dict[str, Any]:
    """A piece of text in a message."""
    return {"type": "text", "text": text}


def image_part(url: str) -> dict[str, Any]:
    """A picture in a message, by its URL or as a `data:` URL."""
    return {"type": "image_url", "image_url": {"url": url}}


def content_of(parts: list[dict[str, Any]]) -> Any:
    """A message's content: a plain string where all of it is text, which every server takes."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def tool_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A tool call in an assistant's message."""
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def function_tool(name: str, description: object, parameters: object) -> dict[str, Any]:
    """A tool's description."""
    function: dict[str, Any] = {"name": name}
    if isinstance(description, str):
        function["description"] = description
    function["parameters"] = parameters if isinstance(parameters, dict) else {"type": "object"}
    return {"type": "function", "function": function}


def json_schema_format(schema: object, name: str = "answer") -> dict[str, Any]:
    """`response_format` for an answer that fits `schema`."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def assistant(text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """An assistant's message."""
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    return message


class ToolCall(msgspec.Struct):
    """A tool call of an answer; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class ChatAnswer(msgspec.Struct):
    """A whole chat completion, as far as it could be read."""

    reasoning: str = ""
    text: str = ""
    calls: list[ToolCall] = msgspec.field(default_factory=list)
    finish_reason: str = ""
    usage: Usage = msgspec.field(default_factory=Usage)


def read_answer(document: dict[str, Any]) -> ChatAnswer:
    """What a whole completion says; what is malformed in it is left out."""
    answer = ChatAnswer(usage=usage_of(document) or Usage())
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return answer
    for name in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(text := message.get(name), str) and text:
            answer.reasoning = text
            break
    for part, text in said_in(message.get("content") or message.get("refusal")):
        if part is Part.TEXT:
            answer.text += text
        else:
            answer.reasoning += text
    for call in calls_in(message):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = encode_text(arguments if isinstance(arguments, dict) else {})
        call_id = call.get("id")
        answer.calls.append(
            ToolCall(call_id if isinstance(call_id, str) else "", function["name"], arguments)
        )
    reason = choice.get("finish_reason")
    answer.finish_reason = reason if isinstance(reason, str) else ""
    return answer
