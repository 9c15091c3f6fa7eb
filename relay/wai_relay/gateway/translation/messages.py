"""Anthropic's Messages over chat completions. Pure."""

from __future__ import annotations

from typing import Final

from wai_protocol.errors import RequestError
from wai_relay.gateway.dialects.anthropic import ANTHROPIC
from wai_relay.gateway.dialects.usage import decode

from .chat import (
    assistant,
    content_of,
    function_tool,
    image_part,
    json_schema_format,
    read_answer,
    text_part,
    tool_call,
)
from .chat_stream import ENCODER, Call, ChatStream, Part, Usage, encode_text
from .translation import Body, Translation, dicts, kept, refusal, text_of

_KEPT: Final = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop_sequences": "stop",
    "stream": "stream",
}
_REFUSED: Final = ("mcp_servers", "container")
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_DROPPED_BLOCKS: Final = frozenset({"thinking", "redacted_thinking"})
"""Of earlier turns: a chat template leaves them out, too."""


class MessagesTranslation(Translation):
    """`/v1/messages`. See `Translation`."""

    def _request(self) -> Body:
        body = self.body
        for name in _REFUSED:
            if body.get(name):
                raise refusal(name)
        messages: list[Body] = []
        if system := _system(body.get("system")):
            messages.append({"role": "system", "content": system})
        for i, message in enumerate(dicts(body.get("messages"), "messages")):
            messages += _messages(message, f"messages.{i}")
        if not messages:
            raise refusal("messages", "must have at least one message")
        request = {"messages": messages, **kept(body, _KEPT)}
        if tools := dicts(body.get("tools"), "tools"):
            request["tools"] = [_tool(tool, f"tools.{i}") for i, tool in enumerate(tools)]
            _choose_tool(body.get("tool_choice"), request)
        if (schema := _schema(body)) is not None:
            request["response_format"] = json_schema_format(schema)
        return request

    @property
    def shows_thinking(self) -> bool:
        """Whether the caller has not turned thinking off."""
        thinking = self.body.get("thinking")
        return not isinstance(thinking, dict) or thinking.get("type") != "disabled"

    def answer(self, document: Body) -> bytes:
        """See `Translation`."""
        answer = read_answer(document)
        content: list[Body] = []
        if answer.reasoning and self.shows_thinking:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        for call in answer.calls:
            arguments = decode(call.arguments.encode()) if call.arguments else {}
            content.append(
                {
                    "type": "tool_use",
                    "id": call.id or self.new_call_id(),
                    "name": call.name,
                    "input": arguments if isinstance(arguments, dict) else {},
                }
            )
        message = self.message()
        message["content"] = content
        message["stop_reason"] = stop_reason(answer.finish_reason, called=bool(answer.calls))
        usage = answer.usage if answer.usage.told else Usage(self.asked.prompt_tokens)
        message["usage"] = message["usage"] | final_usage(usage)
        return ENCODER.encode(message)

    def stream(self) -> ChatStream:
        """See `Translation`."""
        return MessagesStream(self)

    def message(self) -> Body:
        """The answer before it says anything, with an estimate of the prompt's tokens."""
        return {
            "id": "msg_" + self.asked.new_id(),
            "type": "message",
            "role": "assistant",
            "model": self.asked.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": max(self.asked.prompt_tokens, 1),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        }

    def new_call_id(self) -> str:
        """An identifier for a tool call that came without one."""
        return "toolu_" + self.asked.new_id()


class MessagesStream(ChatStream):
    """See `ChatStream`."""

    def __init__(self, translation: MessagesTranslation) -> None:
        super().__init__(ANTHROPIC)
        self._translation = translation
        self._shows_thinking = translation.shows_thinking
        self._index = -1

    def _begin(self) -> None:
        self._emit({"type": "message_start", "message": self._translation.message()})

    def _open(self, part: Part, call: Call | None) -> None:
        block: Body
        if call is not None and part is Part.CALL:
            call_id = call.id or self._translation.new_call_id()
            block = {"type": "tool_use", "id": call_id, "name": call.name, "input": {}}
        elif part is Part.REASONING:
            if not self._shows_thinking:
                return
            block = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            block = {"type": "text", "text": ""}
        self._index += 1
        self._emit({"type": "content_block_start", "index": self._index, "content_block": block})

    def _piece(self, part: Part, text: str) -> None:
        match part:
            case Part.TEXT:
                delta = {"type": "text_delta", "text": text}
            case Part.CALL:
                delta = {"type": "input_json_delta", "partial_json": text}
            case Part.REASONING:
                if not self._shows_thinking:
                    return
                delta = {"type": "thinking_delta", "thinking": text}
        self._emit({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self, part: Part, call: Call | None) -> None:
        if part is not Part.REASONING or self._shows_thinking:
            self._emit({"type": "content_block_stop", "index": self._index})

    def _end(self) -> None:
        reason = stop_reason(self.finish_reason, called=self.called)
        self._emit(
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": None},
                "usage": final_usage(self.usage),
            }
        )
        self._emit({"type": "message_stop"})

    def _emit(self, event: Body) -> None:
        kind = event["type"].encode()
        self._send(b"event: " + kind + b"\ndata: " + ENCODER.encode(event) + b"\n\n")


def stop_reason(finish_reason: str, *, called: bool) -> str:
    """Anthropic's word for why the answer ended."""
    reason = _STOP_REASONS.get(finish_reason, "end_turn")
    return "tool_use" if called and reason == "end_turn" else reason


def final_usage(usage: Usage) -> Body:
    """The usage at an answer's end. The prompt's tokens are only there where they are known: a 0
    would replace the estimate that the caller has."""
    told: Body = {"output_tokens": usage.completion}
    if usage.prompt:
        fresh = usage.prompt - usage.cached
        told["input_tokens"] = fresh or usage.prompt
        told["cache_read_input_tokens"] = usage.cached if fresh else 0
    return told


# -- the request


def _system(system: object) -> str:
    if isinstance(system, str):
        return system
    texts = []
    for i, block in enumerate(dicts(system, "system")):
        if block.get("type") != "text":
            raise refusal(f"system.{i}.type", "must be `text`")
        texts.append(text_of(block.get("text"), f"system.{i}.text"))
    return "\n\n".join(texts)


def _messages(message: Body, where: str) -> list[Body]:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise refusal(f"{where}.role", "must be `user` or `assistant`")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = dicts(content, f"{where}.content")
    named = [(block, f"{where}.content.{i}") for i, block in enumerate(blocks)]
    return [_assistant(named)] if role == "assistant" else _user(named, role)


def _assistant(blocks: list[tuple[Body, str]]) -> Body:
    texts: list[str] = []
    calls: list[Body] = []
    for block, where in blocks:
        kind = block.get("type")
        if kind == "text":
            texts.append(text_of(block.get("text"), f"{where}.text"))
        elif kind == "tool_use":
            name = text_of(block.get("name"), f"{where}.name")
            call_id = text_of(block.get("id"), f"{where}.id")
            calls.append(tool_call(call_id, name, encode_text(block.get("input") or {})))
        elif kind not in _DROPPED_BLOCKS:
            raise _unknown_block(kind, where)
    return assistant("\n".join(texts), calls)


def _user(blocks: list[tuple[Body, str]], role: str) -> list[Body]:
    """A user's turn. The results of tools come first, as a chat's order demands; pictures in them
    follow in the user's own message, since a tool's message has text only."""
    results: list[Body] = []
    pictures: list[Body] = []
    parts: list[Body] = []
    for block, where in blocks:
        if block.get("type") == "tool_result":
            result, shown = _tool_result(block, where)
            results.append(result)
            pictures += shown
        elif block.get("type") not in _DROPPED_BLOCKS:
            parts += _parts(block, where)
    own = pictures + parts
    if own or not results:
        results.append({"role": role, "content": content_of(own)})
    return results


def _tool_result(block: Body, where: str) -> tuple[Body, list[Body]]:
    content = block.get("content")
    if isinstance(content, str):
        parts = [text_part(content)]
    else:
        parts = []
        for i, inner in enumerate(dicts(content, f"{where}.content")):
            parts += _parts(inner, f"{where}.content.{i}")
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    pictures = [part for part in parts if part["type"] != "text"]
    if block.get("is_error"):
        text = f"Error: {text}" if text else "Error"
    elif pictures and not text:
        text = "The result is the picture in the next message."
    call_id = text_of(block.get("tool_use_id"), f"{where}.tool_use_id")
    return {"role": "tool", "tool_call_id": call_id, "content": text}, pictures


def _parts(block: Body, where: str) -> list[Body]:
    match block.get("type"):
        case "text":
            return [text_part(text_of(block.get("text"), f"{where}.text"))]
        case "image":
            return [image_part(_image_url(block.get("source"), f"{where}.source"))]
        case "document":
            return _document(block, where)
        case kind:
            raise _unknown_block(kind, where)


def _image_url(source: object, where: str) -> str:
    source = source if isinstance(source, dict) else {}
    url, data = source.get("url"), source.get("data")
    if source.get("type") == "url" and isinstance(url, str):
        return url
    if source.get("type") == "base64" and isinstance(data, str):
        return f"data:{source.get('media_type') or 'image/png'};base64,{data}"
    raise refusal(where, "must be an image as `base64` or `url`: the model's server has no files")


def _document(block: Body, where: str) -> list[Body]:
    citations = block.get("citations")
    if isinstance(citations, dict) and citations.get("enabled"):
        raise refusal(f"{where}.citations")
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    parts: list[Body]
    if source.get("type") == "text":
        parts = [text_part(text_of(source.get("data"), f"{where}.source.data"))]
    elif source.get("type") == "content":
        content = source.get("content")
        if isinstance(content, str):
            parts = [text_part(content)]
        else:
            parts = []
            for i, inner in enumerate(dicts(content, f"{where}.source.content")):
                parts += _parts(inner, f"{where}.source.content.{i}")
    else:
        raise refusal(
            f"{where}.source", "must be of type `text`: the model's server reads no other files"
        )
    title = block.get("title")
    return [text_part(title), *parts] if isinstance(title, str) and title else parts


def _unknown_block(kind: object, where: str) -> RequestError:
    return refusal(f"{where}.type", f"`{str(kind)[:64]}` is not available for this model")


def _tool(tool: Body, where: str) -> Body:
    if tool.get("type") not in (None, "custom"):
        why = f"`{str(tool['type'])[:64]}` is not available for this model; use tools of your own"
        raise refusal(f"{where}.type", why)
    name = text_of(tool.get("name"), f"{where}.name")
    return function_tool(name, tool.get("description"), tool.get("input_schema"))


def _choose_tool(choice: object, request: Body) -> None:
    if choice is None:
        return
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and kind == "tool":
        name = text_of(choice.get("name"), "tool_choice.name")
        request["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in _CHOICES:
        request["tool_choice"] = _CHOICES[kind]
    else:
        raise refusal("tool_choice.type", "must be `auto`, `any`, `tool` or `none`")
    if isinstance(choice, dict) and choice.get("disable_parallel_tool_use"):
        request["parallel_tool_calls"] = False


def _schema(body: Body) -> object:
    """The JSON schema that the answer is to fit, None where there is none."""
    config = body.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else body.get("output_format")
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") != "json_schema":
        raise refusal("output_format.type", "must be `json_schema`")
    return wanted.get("schema")
