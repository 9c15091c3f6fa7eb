"""OpenAI's Responses over chat completions. Pure."""

from __future__ import annotations

from typing import Any, Final

from wai_relay.gateway.dialects.openai import OPENAI

from .chat import read_answer
from .chat_stream import ENCODER, Call, ChatStream, Part, Usage
from .responses_request import chat_request, names_in_namespaces
from .translation import Body, Translation

_ECHOED: Final[dict[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "user": None,
}
"""Fields of a request that its response repeats, with their defaults."""

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesTranslation(Translation):
    """`/v1/responses`. See `Translation`."""

    def _request(self) -> Body:
        self._namespaces = names_in_namespaces(self.body)
        return chat_request(self.body)

    def response(self) -> Body:
        """The response before it says anything."""
        body = self.body
        echoed = {
            name: default if body.get(name) is None else body[name]
            for name, default in _ECHOED.items()
        }
        return {
            "id": "resp_" + self.asked.new_id(),
            "object": "response",
            "created_at": int(self.asked.now()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.asked.model,
            "output": [],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **echoed,
        }

    def answer(self, document: Body) -> bytes:
        """See `Translation`."""
        answer = read_answer(document)
        output: list[Body] = []
        if answer.reasoning:
            output.append(self.reasoning_item() | {"summary": [summary(answer.reasoning)]})
        if answer.text:
            item = self.message_item() | {"content": [output_text(answer.text)]}
            output.append(item | {"status": "completed"})
        for call in answer.calls:
            item = self.call_item(call.id, call.name) | {"arguments": call.arguments or "{}"}
            output.append(item | {"status": "completed"})
        response = self.response() | {"output": output}
        return ENCODER.encode(response | self.ending(answer.finish_reason, answer.usage))

    def stream(self) -> ChatStream:
        """See `Translation`."""
        return ResponsesStream(self)

    def ending(self, finish_reason: str, usage: Usage) -> Body:
        """The fields of a response that are known at its end."""
        reason = _INCOMPLETE.get(finish_reason)
        prompt = usage.prompt or self.asked.prompt_tokens
        return {
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + usage.completion,
            },
        }

    def reasoning_item(self) -> Body:
        """An item of the output that holds reasoning, empty."""
        return {"id": "rs_" + self.asked.new_id(), "type": "reasoning", "summary": []}

    def message_item(self) -> Body:
        """An item of the output that holds text, empty."""
        return {
            "id": "msg_" + self.asked.new_id(),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }

    def call_item(self, call_id: str, name: str) -> Body:
        """An item of the output that calls a function, without its arguments."""
        namespace, name = self._namespaces.get(name, ("", name))
        return {
            "id": "fc_" + self.asked.new_id(),
            "type": "function_call",
            "status": "in_progress",
            "call_id": call_id or "call_" + self.asked.new_id(),
            "name": name,
            **({"namespace": namespace} if namespace else {}),
            "arguments": "",
        }


def output_text(text: str) -> Body:
    """A message's part."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def summary(text: str) -> Body:
    """A reasoning item's part."""
    return {"type": "summary_text", "text": text}


class ResponsesStream(ChatStream):
    """See `ChatStream`. Each part of the answer is an item of the output."""

    def __init__(self, translation: ResponsesTranslation) -> None:
        super().__init__(OPENAI)
        self._translation = translation
        self._response: Body = {}
        self._output: list[Body] = []
        self._item: Body = {}
        self._said: list[str] = []
        self._number = 0

    def _begin(self) -> None:
        self._response = self._translation.response()
        self._emit("response.created", response=self._response)
        self._emit("response.in_progress", response=self._response)

    def _open(self, part: Part, call: Call | None) -> None:
        translation = self._translation
        self._said = []
        match part:
            case Part.REASONING:
                self._item = translation.reasoning_item()
            case Part.TEXT:
                self._item = translation.message_item()
            case Part.CALL:
                assert call is not None
                self._item = translation.call_item(call.id, call.name)
        self._emit("response.output_item.added", output_index=len(self._output), item=self._item)
        if part is Part.REASONING:
            self._emit_in_item("response.reasoning_summary_part.added", "summary", part=summary(""))
        elif part is Part.TEXT:
            self._emit_in_item("response.content_part.added", "content", part=output_text(""))

    def _piece(self, part: Part, text: str) -> None:
        self._said.append(text)
        match part:
            case Part.REASONING:
                self._emit_in_item("response.reasoning_summary_text.delta", "summary", delta=text)
            case Part.TEXT:
                kind = "response.output_text.delta"
                self._emit_in_item(kind, "content", delta=text, logprobs=[])
            case Part.CALL:
                self._emit_in_item("response.function_call_arguments.delta", "item", delta=text)

    def _close(self, part: Part, call: Call | None) -> None:
        text = "".join(self._said)
        match part:
            case Part.REASONING:
                done = summary(text)
                self._emit_in_item("response.reasoning_summary_text.done", "summary", text=text)
                self._emit_in_item("response.reasoning_summary_part.done", "summary", part=done)
                item = self._item | {"summary": [done]}
            case Part.TEXT:
                kind = "response.output_text.done"
                done = output_text(text)
                self._emit_in_item(kind, "content", text=text, logprobs=[])
                self._emit_in_item("response.content_part.done", "content", part=done)
                item = self._item | {"content": [done], "status": "completed"}
            case Part.CALL:
                arguments = text or "{}"
                kind = "response.function_call_arguments.done"
                name = self._item["name"]
                self._emit_in_item(kind, "item", arguments=arguments, name=name)
                item = self._item | {"arguments": arguments, "status": "completed"}
        self._emit("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)

    def _end(self) -> None:
        ending = self._translation.ending(self.finish_reason, self.usage)
        response = self._response | {"output": self._output} | ending
        self._emit("response." + response["status"], response=response)

    def _emit_in_item(self, kind: str, index: str, **fields: Any) -> None:
        place = {"item_id": self._item["id"], "output_index": len(self._output)}
        self._emit(kind, **place, **_INDICES[index], **fields)

    def _emit(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        self._send(b"event: " + kind.encode() + b"\ndata: " + ENCODER.encode(event) + b"\n\n")


_INDICES: Final[dict[str, Body]] = {
    "item": {},
    "content": {"content_index": 0},
    "summary": {"summary_index": 0},
}
"""Which part of its item an event is about; there is one only."""
