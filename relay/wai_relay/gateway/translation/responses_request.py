"""A request of OpenAI's Responses, as a chat completion. Pure."""

from __future__ import annotations

from typing import Final

from .chat import content_of, function_tool, image_part, text_part, tool_call
from .chat_stream import encode_text
from .translation import Body, dicts, kept, refusal, text_of

MAX_FUNCTION_NAME_CHARS: Final = 64
# What clients offer to every model, and a model may do without. Nothing is offered in their place.
_LEFT_OUT: Final = frozenset({"web_search", "web_search_preview", "tool_search"})
_KEPT: Final = {
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "parallel_tool_calls": "parallel_tool_calls",
}
_REFUSED: Final = ("previous_response_id", "conversation", "background", "prompt", "top_logprobs")
_STATEFUL: Final = "needs a server that keeps responses, which this model's server does not"
_REASONS: Final = {"previous_response_id": _STATEFUL, "conversation": _STATEFUL}
_ROLES: Final = {"user": "user", "assistant": "assistant", "system": "system"} | {
    "developer": "system"
}
_TEXT_PARTS: Final = ("input_text", "output_text", "text", "summary_text")


def chat_request(body: Body) -> Body:
    """The chat completion that asks for the same. Raises `RequestError`."""
    for name in _REFUSED:
        if body.get(name):
            raise refusal(name, _REASONS.get(name, ""))
    messages: list[Body] = []
    if instructions := text_of(body.get("instructions"), "instructions"):
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        for i, item in enumerate(dicts(given, "input")):
            _add_item(item, f"input.{i}", messages)
    if not messages:
        raise refusal("input", "must not be empty")
    request = {"messages": messages, **kept(body, _KEPT)}
    if tools := dicts(body.get("tools"), "tools"):
        made = [one for i, tool in enumerate(tools) for one in _tools(tool, f"tools.{i}")]
        if made:
            request["tools"] = made
        if made and body.get("tool_choice") is not None:
            request["tool_choice"] = _tool_choice(body["tool_choice"])
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict) and isinstance(reasoning.get("effort"), str):
        request["reasoning_effort"] = reasoning["effort"]
    if (answer_format := _response_format(body.get("text"))) is not None:
        request["response_format"] = answer_format
    return request


def names_in_namespaces(body: Body) -> dict[str, tuple[str, str]]:
    """By the name that the chat completion has for it: the namespace and the name of each function
    that is in a namespace. Codex groups its tools so."""
    return {
        _joined(namespace, name): (namespace, name)
        for tool in dicts(body.get("tools"), "tools")
        if tool.get("type") == "namespace" and isinstance(namespace := tool.get("name"), str)
        for function in dicts(tool.get("tools"), "tools")
        if isinstance(name := function.get("name"), str)
    }


def _joined(namespace: str, name: str) -> str:
    """A function's name may have 64 characters; the last ones tell it from others."""
    return f"{namespace}__{name}"[-MAX_FUNCTION_NAME_CHARS:]


def _add_item(item: Body, where: str, messages: list[Body]) -> None:
    match item.get("type"):
        case None | "message":
            role = item.get("role")
            if not isinstance(role, str) or role not in _ROLES:
                raise refusal(f"{where}.role", "must be user, assistant, system or developer")
            content = item.get("content")
            if not isinstance(content, str):
                content = content_of(_parts(content, f"{where}.content"))
            _add_message(_ROLES[role], content, messages)
        case "function_call":
            _add_call(item, where, messages)
        case "function_call_output":
            messages += _output(item, where)
        case "reasoning":
            pass  # of an earlier turn: a chat template leaves it out, too
        case kind:
            why = f"`{str(kind)[:64]}` is not available for this model"
            raise refusal(f"{where}.type", why)


def _add_message(role: str, content: object, messages: list[Body]) -> None:
    """Text that follows calls joins them: nothing may stand between a call and its result."""
    last = messages[-1] if messages else {}
    before = last.get("content") or ""
    if (
        "tool_calls" in last
        and role == "assistant"
        and isinstance(content, str)
        and isinstance(before, str)
    ):
        last["content"] = f"{before}\n{content}" if before else content
    else:
        messages.append({"role": role, "content": content})


def _add_call(item: Body, where: str, messages: list[Body]) -> None:
    """Calls that were made at once are one message, together with the text before them."""
    name = text_of(item.get("name"), f"{where}.name")
    if namespace := text_of(item.get("namespace"), f"{where}.namespace"):
        name = _joined(namespace, name)
    call = tool_call(
        text_of(item.get("call_id"), f"{where}.call_id"),
        name,
        text_of(item.get("arguments"), f"{where}.arguments") or "{}",
    )
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _output(item: Body, where: str) -> list[Body]:
    output = item.get("output")
    parts = [text_part(output)] if isinstance(output, str) else _parts(output, f"{where}.output")
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    pictures = [part for part in parts if part["type"] != "text"]
    if pictures and not text:
        text = "The result is the picture in the next message."
    call_id = text_of(item.get("call_id"), f"{where}.call_id")
    messages: list[Body] = [{"role": "tool", "tool_call_id": call_id, "content": text}]
    if pictures:
        messages.append({"role": "user", "content": pictures})
    return messages


def _parts(content: object, where: str) -> list[Body]:
    parts: list[Body] = []
    for i, part in enumerate(dicts(content, where)):
        kind = part.get("type")
        if kind in _TEXT_PARTS:
            parts.append(text_part(text_of(part.get("text"), f"{where}.{i}.text")))
        elif kind == "refusal":
            parts.append(text_part(text_of(part.get("refusal"), f"{where}.{i}.refusal")))
        elif kind == "input_image":
            url = part.get("image_url")
            if not isinstance(url, str):
                raise refusal(f"{where}.{i}.image_url", "must be a URL: the server has no files")
            parts.append(image_part(url))
        else:
            why = f"`{str(kind)[:64]}` is not available for this model"
            raise refusal(f"{where}.{i}.type", why)
    return parts


def _tools(tool: Body, where: str) -> list[Body]:
    """The functions of a tool: a namespace has some, a search of its vendor's none."""
    if tool.get("type") in _LEFT_OUT:
        return []
    if tool.get("type") != "namespace":
        return [_tool(tool, where)]
    namespace = text_of(tool.get("name"), f"{where}.name")
    made = []
    for i, function in enumerate(dicts(tool.get("tools"), f"{where}.tools")):
        one = _tool(function, f"{where}.tools.{i}")
        one["function"]["name"] = _joined(namespace, one["function"]["name"])
        made.append(one)
    return made


def _tool(tool: Body, where: str) -> Body:
    if tool.get("type") != "function":
        why = f"`{str(tool.get('type'))[:64]}` is not available for this model; use functions"
        raise refusal(f"{where}.type", why)
    name = text_of(tool.get("name"), f"{where}.name")
    made = function_tool(name, tool.get("description"), tool.get("parameters"))
    if isinstance(tool.get("strict"), bool):
        made["function"]["strict"] = tool["strict"]
    return made


def _tool_choice(choice: object) -> object:
    if choice in ("auto", "none", "required"):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = text_of(choice.get("name"), "tool_choice.name")
        return {"type": "function", "function": {"name": name}}
    shown = encode_text(choice)[:64]
    raise refusal("tool_choice", f"{shown} is not available for this model")


def _response_format(text: object) -> Body | None:
    wanted = text.get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict) or wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        return {"type": "json_object"}
    if wanted.get("type") != "json_schema":
        raise refusal("text.format.type", "must be `text`, `json_object` or `json_schema`")
    names = {"name": "name", "schema": "schema", "strict": "strict", "description": "description"}
    return {"type": "json_schema", "json_schema": {"name": "answer", **kept(wanted, names)}}
