"""What a dialect is: one API that callers speak, with everything that the gateway asks of it.

The gateway finds the dialect of a request once, in the registry, and asks it from then on; nothing
else in the relay distinguishes dialects. A dialect holds no state of requests: what a stream needs
to remember is in the `UsageReader` and the `Opening` that it gets. Pure.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import msgspec

from wai_protocol.errors import Fault
from wai_protocol.surface import Route
from wai_relay.gateway.catalog import Catalog

from .usage import UsageReader

EVENT_STREAM: Final = b"text/event-stream"
NDJSON: Final = b"application/x-ndjson"

MAX_DETAILS: Final = 5
"""Of what is wrong with a request; a server may list a hundred fields."""

REPORTED: Final = "The upstream reported an error."
"""What is said of an error that says nothing of itself."""

FAILED_REASONS: Final = ("error", "abort")
"""The finish reasons of a completion that the server itself broke off, at vLLM and SGLang."""

PROMPT_FIELDS: Final = ("tools", "system", "instructions", "messages", "prompt", "input")
"""Of our dialects, in the order in which chat templates put them in front of the model."""

Fields = Mapping[str, msgspec.Raw]
"""The top level of a JSON request body, with its values undecoded."""


class Signal(enum.Enum):
    """What one event of a stream means for its answer."""

    PREAMBLE = enum.auto()  # a role, an id, a usage figure: nothing that anybody would read
    CONTENT = enum.auto()  # text, reasoning, a tool call, audio
    END = enum.auto()  # the answer's proper end
    ERROR = enum.auto()


SignalOf = Callable[[str, dict[str, Any]], Signal]
"""Maps an event's name ("" for none) and its decoded data to what it means. It is asked only until
the first content came, so it may take its time; later tokens never reach it."""


class Dialect(abc.ABC):
    """One API. A subclass must say how errors look, who reads an answer, and what its events mean;
    the other attributes and methods have the answers of a dialect without peculiarities."""

    name: ClassVar[str]
    """As in `Route.api` and in the `apis` of STATUS; at most 32 characters."""
    routes: ClassVar[tuple[Route, ...]]
    """What is forwarded. Nodes need the same routes (`wai.routes`, docs/extending.md)."""
    error_prefixes: ClassVar[tuple[str, ...]] = ()
    """Beginnings of paths for which errors are said in this dialect, whether or not there is such a
    route. The longest that fits decides; of two dialects with the same, the first one."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other beginnings of paths, and what stands for each of them: `{"/api/v1/": "/v1/"}`. In one,
    `{id}` is any part. A name without a closing `/` stands for one path. Routes come first."""
    stream_type: ClassVar[bytes] = EVENT_STREAM
    """The content type of its streams: `EVENT_STREAM` or `NDJSON`."""
    heartbeat: ClassVar[bytes] = b": waiting\n\n"
    """An event that its clients skip, sent to a caller who waits for long; b"" if there is none, as
    in a stream of lines."""
    model_fields: ClassVar[tuple[str, ...]] = ("model", "name")
    """The body's fields that may name the model; the first that is there does. In a form it must be
    the first of these. `name` is of older Ollama clients."""
    prompt_fields: ClassVar[tuple[str, ...]] = PROMPT_FIELDS
    """The body's fields that hold the prompt, in the order in which the model reads them: by these
    a prompt is measured, and a node found that has its beginning in its cache."""
    too_long_words: ClassVar[bytes] = b""
    """What its clients look for in the refusal of a prompt that is too long, in lower case. An
    upstream's refusal without them is said again in our words."""
    streams_unasked: ClassVar[bool] = False
    """Whether an answer is streamed where the request does not say `stream`."""

    # -- errors

    @abc.abstractmethod
    def error_body(self, fault: Fault, message: str) -> bytes:
        """An error as a whole JSON body."""

    @abc.abstractmethod
    def error_event(self, fault: Fault, message: str) -> bytes:
        """An error as the last event of a stream that has begun."""

    # -- answers

    @abc.abstractmethod
    def reader(
        self,
        route: Route,
        content_type: bytes,
        *,
        strip_usage: bool = False,
        strip_timings: bool = False,
    ) -> UsageReader:
        """Who reads the tokens from an answer to `route` of `content_type` (lower case).

        `strip_usage`: the usage event was asked for by the relay and is not for the caller;
        `strip_timings`: nor are the figures in each chunk. Both are only said where
        `takes_stream_options`.
        """

    @abc.abstractmethod
    def signal_of(self, route: Route) -> SignalOf:
        """How to judge the events of a stream that answers `route`."""

    def answer_fields(self, route: Route) -> tuple[str, ...]:
        """Fields of a whole JSON answer to `route`, of which each real one has at least one; ()
        where its answers are of other kinds, or not known."""
        del route
        return ()

    def takes_stream_options(self, route: Route) -> bool:
        """Whether the request knows OpenAI's `stream_options`, without which no usage is told."""
        del route
        return False

    def continues(self, route: Route) -> bool:
        """Whether its streams have the format of OpenAI's chat completions, so that another node
        can continue them (`continuation`)."""
        del route
        return False

    # -- what a request asks for, where other dialects do not know the field

    def output_limits(self, fields: Fields) -> list[int]:
        """Further limits of an answer's length, in tokens; negative: no limit. Raises
        `RequestError`."""
        del fields
        return []

    def prompts_asked(self, route: Route, fields: Fields) -> int:
        """How many prompts the body holds; each is answered."""
        del route, fields
        return 1

    def context_asked(self, fields: Fields) -> int | None:
        """The context, in tokens, that the model is to be loaded with. Raises `RequestError`."""
        del fields
        return None

    # -- lists, which the relay answers

    def is_list(self, path: str) -> bool:
        """Whether `GET path` is a list of models, or an entry of one."""
        del path
        return False

    def list_answer(self, path: str, catalog: Catalog) -> object:
        """The answer to a path for which `is_list`, to be encoded as JSON. Raises `RequestError`
        where there is no such entry."""
        raise NotImplementedError  # only called where `is_list`


def is_stream(content_type: bytes) -> bool:
    """Whether an answer of this (lower-case) content type is a stream of events or lines."""
    return content_type.startswith((EVENT_STREAM, NDJSON))


def error_in(document: object) -> str | None:
    """The sentence of an error document of any dialect; "" if it has none; None: it is no error.

    OpenAI, LiteLLM: `{"error": {"message"}}`; Ollama: `{"error": "…"}`; vLLM: `{"object": "error",
    "message"}`; Anthropic: `{"type": "error", "error": {…}}`; Responses: `{"response": {"error"}}`
    or `{"status": "failed"}`; OpenRouter, vLLM: `{"choices": [{"finish_reason": "error"}]}`.
    """
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    response = document.get("response")
    if error is None and isinstance(response, dict):
        error = response.get("error")
    if error is None and "error" in (document.get("object"), document.get("type")):
        error = document
    if error is None and document.get("status") == "failed":
        error = document
    if not error:
        error = _choice_error(document.get("choices"))
    if not error:
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _choice_error(choices: object) -> object:
    """The error that the first choice of a completion ended with, None if it did not."""
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return None
    return choice.get("error") or (
        choice if choice.get("finish_reason") in FAILED_REASONS else None
    )


def sentence_in(document: object) -> str:
    """What a refusal says, "" if nothing is found. As `error_in`, and as FastAPI's servers say it:
    `{"detail": "…"}` or `{"detail": [{"loc", "msg"}]}`."""
    found = error_in(document)
    detail = document.get("detail") if isinstance(document, dict) else None
    if found or not detail:
        return found or ""
    if isinstance(detail, str):
        return detail
    items = detail if isinstance(detail, list) else [detail]
    said = []
    for item in items[:MAX_DETAILS]:
        if isinstance(item, dict) and isinstance(item.get("msg"), str):
            place = item.get("loc")
            where = ".".join(map(str, place)) if isinstance(place, list) else ""
            said.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "; ".join(said)


def is_error(name: str, payload: dict[str, Any]) -> bool:
    """Whether an event of a stream reports an error, whichever dialect it is in."""
    return name == "error" or error_in(payload) is not None
