"""A request of Ollama's API, as a chat completion. Pure."""

from __future__ import annotations

from typing import Final

from .chat import assistant, content_of, image_part, json_schema_format, text_part, tool_call
from .chat_stream import encode_text
from .translation import Body, dicts, kept, refusal, text_of

_OPTIONS: Final = {name: name for name in ("temperature", "top_p", "seed", "stop")} | {
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_REFUSED: Final = ("raw", "template", "context", "suffix")
"""They are about the prompt's text, which chat completions make themselves."""

# The first characters of a picture's base64, by its type. PNG is taken for what is none of these.
_PICTURES: Final = {"/9j/": "image/jpeg", "R0lG": "image/gif", "UklG": "image/webp"}


def chat_request(body: Body) -> Body:
    """The chat completion for `/api/chat`. Raises `RequestError`."""
    messages: list[Body] = []
    unanswered: dict[str, str] = {}
    for i, message in enumerate(dicts(body.get("messages"), "messages")):
        if message.get("tool_calls") and messages and messages[-1]["role"] != "assistant":
            unanswered.clear()  # nobody will tell the result of an earlier turn's call
        messages.append(_message(message, f"messages.{i}", unanswered))
    request = {"messages": messages, **_settings(body)}
    tools = dicts(body.get("tools"), "tools")
    if tools:
        request["tools"] = [{"type": "function", "function": _function(tool)} for tool in tools]
    return request


def generate_request(body: Body) -> Body:
    """The chat completion for `/api/generate`. Raises `RequestError`."""
    for name in _REFUSED:
        if body.get(name):
            raise refusal(name)
    messages: list[Body] = []
    if system := text_of(body.get("system"), "system"):
        messages.append({"role": "system", "content": system})
    parts = [text_part(text_of(body.get("prompt"), "prompt")), *_pictures(body, "images")]
    messages.append({"role": "user", "content": content_of(parts)})
    return {"messages": messages, **_settings(body)}


def embed_request(body: Body) -> Body:
    """The embeddings request for `/api/embed`. Raises `RequestError`."""
    given = body.get("input")
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise refusal("input", "must be a text or a list of texts")
    return {"input": texts, **kept(body, {"dimensions": "dimensions"})}


def _message(message: Body, where: str, unanswered: dict[str, str]) -> Body:
    """`unanswered`: the last calls whose results are still to come, the name of each by its id."""
    role = message.get("role")
    text = text_of(message.get("content"), f"{where}.content")
    if role == "assistant":
        calls: list[Body] = []
        for i, call in enumerate(dicts(message.get("tool_calls"), f"{where}.tool_calls")):
            call_id = call.get("id")
            if not isinstance(call_id, str) or not call_id:
                call_id = f"call_{where.rpartition('.')[2]}_{i}"
            function = _function(call)
            name = text_of(function.get("name"), f"{where}.tool_calls.{i}.function.name")
            unanswered[call_id] = name
            calls.append(tool_call(call_id, name, encode_text(function.get("arguments") or {})))
        return assistant(text, calls)
    if role == "tool":
        call_id = _answered(message, unanswered)
        unanswered.pop(call_id, None)
        return {"role": "tool", "tool_call_id": call_id, "content": text}
    if role not in ("user", "system"):
        raise refusal(f"{where}.role", "must be user, assistant, system or tool")
    parts = [text_part(text), *_pictures(message, f"{where}.images")]
    return {"role": role, "content": content_of(parts)}


def _answered(result: Body, unanswered: dict[str, str]) -> str:
    """The call that a result belongs to. Few clients tell its id, some its name: else it is the
    first."""
    told, name = result.get("tool_call_id"), result.get("tool_name")
    if isinstance(told, str) and told in unanswered:
        return told
    of_that_name = [call_id for call_id, called in unanswered.items() if called == name]
    return next(iter(of_that_name or unanswered), "call_0")


def _function(told: Body) -> Body:
    function = told.get("function")
    return function if isinstance(function, dict) else {}


def _pictures(holder: Body, where: str) -> list[Body]:
    images = holder.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise refusal(where, "must be a list of pictures in base64")
    return [
        image_part(f"data:{_PICTURES.get(image[:4], 'image/png')};base64,{image}")
        for image in images
    ]


def _limit(told: object) -> int:
    """A number of tokens as Ollama's decoder takes it: any number, cut to a whole one."""
    return int(told) if isinstance(told, int | float) and not isinstance(told, bool) else 0


def _settings(body: Body) -> Body:
    options = body.get("options")
    options = options if isinstance(options, dict) else {}
    settings = kept(options, _OPTIONS)
    if (limit := _limit(options.get("num_predict"))) > 0:  # else: no limit
        settings["max_tokens"] = limit
    if isinstance(body.get("think"), str):
        settings["reasoning_effort"] = body["think"]
    wanted = body.get("format")
    if wanted == "json":
        settings["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, dict):
        settings["response_format"] = json_schema_format(wanted)
    elif wanted:
        raise refusal("format", 'must be "json" or a JSON schema')
    return settings
