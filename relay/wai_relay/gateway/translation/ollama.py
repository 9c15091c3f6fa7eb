"""Ollama's `/api/chat`, `/api/generate` and `/api/embed` over OpenAI's routes. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, TypeGuard

from wai_relay.gateway.dialects.ollama import OLLAMA
from wai_relay.gateway.dialects.usage import decode

from .chat import read_answer
from .chat_stream import ENCODER, Call, ChatStream, Part, Usage, usage_of
from .ollama_request import chat_request, embed_request, generate_request
from .translation import EMBEDDINGS_ROUTE, Asked, Body, Translation, text_of

_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000


class OllamaChatTranslation(Translation):
    """`/api/chat`. See `Translation`."""

    def __init__(self, body: Body, asked: Asked) -> None:
        self.asked_at = asked.now()
        self.shows_thinking = body.get("think") is not False
        super().__init__(body, asked)

    def _request(self) -> Body:
        return chat_request(self.body)

    def answer(self, document: Body) -> bytes:
        """See `Translation`."""
        answer = read_answer(document)
        calls = [
            tool_call(i, Call(i, call.id, call.name), call.arguments)
            for i, call in enumerate(answer.calls)
        ]
        thinking = answer.reasoning if self.shows_thinking else ""
        said = self.said(answer.text, thinking, calls)
        timings = document.get("timings")
        figures = Figures(self.asked_at, self.asked_at, self.asked.now())
        ending = self.ending(
            answer.finish_reason,
            answer.usage,
            timings if isinstance(timings, dict) else {},
            figures,
        )
        return ENCODER.encode(self.line(said) | ending)

    def stream(self) -> ChatStream:
        """See `Translation`."""
        return OllamaStream(self)

    def said(self, text: str, thinking: str = "", calls: list[Body] | None = None) -> Body:
        """The fields of a line that tell a piece of the answer."""
        message: Body = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}

    def line(self, said: Body) -> Body:
        """A line of the answer."""
        return {
            "model": self.asked.model,
            "created_at": stamp(self.asked.now()),
            **said,
            "done": False,
        }

    def ending(
        self, finish_reason: str, usage: Usage, timings: dict[str, Any], figures: Figures
    ) -> Body:
        """The fields of the last line."""
        reading_ns, writing_ns = figures.durations_ns(timings)
        return {
            "done": True,
            "done_reason": "length" if finish_reason == "length" else "stop",
            "total_duration": max(int((figures.ended - figures.asked) * _NS_PER_S), 1),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt or self.asked.prompt_tokens,
            "prompt_eval_duration": reading_ns,
            "eval_count": usage.completion,
            "eval_duration": writing_ns,
        }


class OllamaGenerateTranslation(OllamaChatTranslation):
    """`/api/generate`. See `Translation`."""

    def _request(self) -> Body:
        return generate_request(self.body)

    def said(self, text: str, thinking: str = "", calls: list[Body] | None = None) -> Body:
        """See `OllamaChatTranslation`. There are no tools."""
        del calls
        return {"response": text, "thinking": thinking} if thinking else {"response": text}


class OllamaEmbedTranslation(Translation):
    """`/api/embed`. See `Translation`."""

    upstream = EMBEDDINGS_ROUTE

    def __init__(self, body: Body, asked: Asked) -> None:
        self._asked_at = asked.now()
        super().__init__(body, asked)

    def _request(self) -> Body:
        return embed_request(self.body)

    def answer(self, document: Body) -> bytes:
        """See `Translation`."""
        data = document.get("data")
        items = data if isinstance(data, list) else []
        vectors = [item.get("embedding") for item in items if isinstance(item, dict)]
        usage = usage_of(document) or Usage(self.asked.prompt_tokens)
        took_s = self.asked.now() - self._asked_at
        return ENCODER.encode(
            {
                "model": self.asked.model,
                "embeddings": vectors,
                "total_duration": max(int(took_s * _NS_PER_S), 1),
                "load_duration": 0,
                "prompt_eval_count": usage.prompt,
            }
        )

    def stream(self) -> ChatStream:
        """See `Translation`. Embeddings are never streamed."""
        raise NotImplementedError


class OllamaEmbeddingsTranslation(OllamaEmbedTranslation):
    """The older `/api/embeddings`: one text, one vector. See `Translation`."""

    def _request(self) -> Body:
        prompt = text_of(self.body.get("prompt"), "prompt")
        return embed_request({**self.body, "input": prompt})

    def answer(self, document: Body) -> bytes:
        """See `Translation`."""
        data = document.get("data")
        first = data[0] if isinstance(data, list) and data else None
        vector = first.get("embedding") if isinstance(first, dict) else None
        return ENCODER.encode({"embedding": vector or []})


class Figures:
    """When a request was `asked`, when its first content came, and when it `ended`; in seconds."""

    __slots__ = ("_first", "asked", "ended")

    def __init__(self, asked: float, first: float, ended: float) -> None:
        self.asked = asked
        self._first = first
        self.ended = ended

    def durations_ns(self, timings: dict[str, Any]) -> tuple[int, int]:
        """How long the prompt was read and the answer written: as llama.cpp tells it, else as it
        was seen from here."""
        read_ms, written_ms = timings.get("prompt_ms"), timings.get("predicted_ms")
        if is_time(read_ms) and is_time(written_ms):
            return int(read_ms * _NS_PER_MS), int(written_ms * _NS_PER_MS)
        reading_s, writing_s = self._first - self.asked, self.ended - self._first
        return max(int(reading_s * _NS_PER_S), 1), max(int(writing_s * _NS_PER_S), 1)


class OllamaStream(ChatStream):
    """See `ChatStream`. A tool call is one line, since its arguments are an object."""

    passes_comments = False

    def __init__(self, translation: OllamaChatTranslation) -> None:
        super().__init__(OLLAMA)
        self._translation = translation
        self._first_at: float | None = None
        self._arguments: list[str] = []
        self._written_calls = 0

    def _begin(self) -> None:
        pass  # a stream of lines has no head

    def _open(self, part: Part, call: Call | None) -> None:
        self._arguments = []
        if self._first_at is None:
            self._first_at = self._translation.asked.now()

    def _piece(self, part: Part, text: str) -> None:
        if part is Part.CALL:
            self._arguments.append(text)
        elif part is Part.TEXT:
            self._emit(self._translation.said(text))
        elif self._translation.shows_thinking:
            self._emit(self._translation.said("", text))

    def _close(self, part: Part, call: Call | None) -> None:
        if part is Part.CALL and call is not None:
            written = tool_call(self._written_calls, call, "".join(self._arguments))
            self._written_calls += 1
            self._emit(self._translation.said("", "", [written]))

    def _end(self) -> None:
        translation = self._translation
        ended = translation.asked.now()
        first = ended if self._first_at is None else self._first_at
        figures = Figures(translation.asked_at, first, ended)
        ending = translation.ending(self.finish_reason, self.usage, self.timings, figures)
        self._send(ENCODER.encode(translation.line(translation.said("")) | ending) + b"\n")

    def _emit(self, said: Body) -> None:
        self._send(ENCODER.encode(self._translation.line(said)) + b"\n")


def tool_call(index: int, call: Call, arguments: str) -> Body:
    """A tool call as Ollama tells it."""
    found = decode(arguments.encode()) if arguments else {}
    function = {
        "index": index,
        "name": call.name,
        "arguments": found if isinstance(found, dict) else {},
    }
    return {"id": call.id, "function": function} if call.id else {"function": function}


def is_time(value: object) -> TypeGuard[float]:
    """Whether an upstream's figure can be a duration."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def stamp(seconds: float) -> str:
    """A time as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
