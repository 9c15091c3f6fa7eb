"""What a JSON request body asks for, read and changed without building it. Pure.

Only the top level is decoded; messages, tools and all else stay the bytes that the caller sent, and
so does every value that we don't have to change. Bodies too long to be read in one go are
`long_bodies`'s.

All of it runs in one turn of the event loop, so no body may make it long: what costs time for each
element (keys, messages) is bounded in number before it is built, and a field that is decoded is
short. tests/relay/gateway/test_hostile_bodies.py measures that.
"""

from __future__ import annotations

import functools
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.status import MAX_NAME_CHARS
from wai_protocol.surface import Route, Task
from wai_relay.policy.fingerprints import Fingerprint, fingerprint

from .answer_limits import answers_asked, output_limit
from .blobs import LEAST_BLOB_BYTES, blobs_in
from .dialects.dialect import Dialect
from .pictures import MAX_HEAD_CHARS
from .prompt_parts import FRAMING_BYTES
from .prompt_size import NO_PROMPT, PromptMeter, PromptSize
from .raw_json import in_words, named_in_any_case, scalar_of, value_of

# A top-level key costs 0.15 µs to build and 0.2 µs to write again: these are some 7 ms.
MAX_FIELDS: Final = 20_000
LEAST_FIELD_BYTES: Final = len(b'"":1,')
# A list's element costs 0.05 µs to build. In prose and code fewer than 5 % of the bytes are commas.
MAX_LISTED_COMMAS: Final = 50_000
MAX_PARTS: Final = 2048  # messages that are measured one by one, at 0.3 µs each; then all together
MAX_OPTIONS_BYTES: Final = 4096  # of `stream_options`; its two known fields have 50
MAX_MODEL_BYTES: Final = 6 * MAX_NAME_CHARS + 2  # a name with every character escaped as \uXXXX

Fields = dict[str, msgspec.Raw]

_FIELDS: Final = msgspec.json.Decoder(Fields)
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
# What may be long and structured in a body that somebody means, beside its prompt.
_LONG_FIELDS: Final = (
    *("functions", "response_format", "text", "format", "logit_bias", "metadata"),
    *("documents", "json_schema", "guided_json", "grammar", "images", "options"),
)
_ENCODER: Final = msgspec.json.Encoder()


class BodyFacts(msgspec.Struct, frozen=True):
    """What routing needs to know of a request. `prompt` is how long it is, `prefix` the marks of
    its beginning. `wants_usage`: the caller asked for the usage chunk itself, or may have.
    `answers`: how many it asks for at once. `context_tokens`: the context that it asks for, if it
    does. `size_bytes`: the body's, as far as it is known; `whole`: it was read to its end, so that
    the other figures are right."""

    model: str
    stream: bool = False
    wants_usage: bool = False
    max_output_tokens: int | None = None
    has_tools: bool = False
    prompt: PromptSize = NO_PROMPT
    prefix: Fingerprint = ()
    answers: int = 1
    context_tokens: int | None = None
    size_bytes: int = 0
    whole: bool = False


class Change(msgspec.Struct, frozen=True):
    """How a body goes out: for which `model`; with `ask_usage`, `stream_options.include_usage` is
    set, with `ask_timings`, llama.cpp's `timings_per_token`. `fields`: further fields, with their
    values in JSON; `message` is one more at the messages' end."""

    model: str
    ask_usage: bool = False
    ask_timings: bool = False
    fields: Mapping[str, bytes] = {}
    message: bytes = b""


class Piece(NamedTuple):
    """A part of a body that goes out as it came, in bytes from its first."""

    start: int
    end: int


class Outgoing(msgspec.Struct, frozen=True):
    """A body as it goes out: what is said anew, and pieces of what came."""

    parts: tuple[bytes | Piece, ...]

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return sum(
            len(part) if isinstance(part, bytes) else part.end - part.start for part in self.parts
        )


class RequestBody(Protocol):
    """A JSON body that was read: its top-level fields, undecoded, and what they mean."""

    @property
    def facts(self) -> BodyFacts:
        """What it asks for."""

    @property
    def fields(self) -> Fields:
        """Its fields; the long ones of a long body are cut."""

    @property
    def model_field(self) -> str:
        """The field that names the model."""

    @property
    def last_role(self) -> str | None:
        """The role of the last message; None where there is none, or it has none."""

    def outgoing(self, change: Change) -> Outgoing:
        """The body with a change. Values that need not change keep their bytes."""


class JsonBody(msgspec.Struct, frozen=True):
    """A body that was read whole: its bytes, its top-level fields, and what they mean.
    `model_field` is the one that names the model."""

    data: bytes
    fields: Fields
    facts: BodyFacts
    model_field: str = "model"

    @property
    def messages(self) -> bytes:
        """The list of messages, b"" where there is none."""
        found = bytes(self.fields.get("messages", b""))
        return found if found[:1] == b"[" else b""

    @property
    def last_role(self) -> str | None:
        """The role of the last message; None where there is none, or it has none."""
        items = list_items(self.messages) if self.messages else None
        return _role(bytes(items[-1])) if items else None

    def outgoing(self, change: Change) -> Outgoing:
        """See `RequestBody`."""
        return Outgoing((self.changed(change),))

    def changed(self, change: Change) -> bytes:
        """The body with a change. Values that need not change keep their bytes; a repeated key
        keeps its last value only."""
        changes = changes_in(self, change)
        if change.message:
            messages = self.messages
            changes["messages"] = messages[: messages.rindex(b"]")] + b"," + change.message + b"]"
        if not changes:
            return self.data
        if changes.keys().isdisjoint(self.fields):  # so the fields are put before the others
            opening = self.data.index(b"{") + 1
            added = b"".join(b'"%s":%s,' % (k.encode(), value) for k, value in changes.items())
            return self.data[:opening] + added + self.data[opening:]
        merged = {name: changes.get(name) or bytes(raw) for name, raw in self.fields.items()}
        merged |= changes
        pairs = (_ENCODER.encode(name) + b":" + value for name, value in merged.items())
        return b"{" + b",".join(pairs) + b"}"


def read_json(
    data: bytes,
    dialect: Dialect,
    route: Route,
    default_model: Callable[[], str | None] = lambda: None,
) -> JsonBody:
    """Read a whole request body for `route` of `dialect`. `default_model` tells the model where the
    body names none and need not. Raises `RequestError` with a sentence for the caller."""
    if not data.strip():
        raise RequestError("The request has no body; send a JSON object.")
    if data.startswith(BOM_UTF8):
        data = data[len(BOM_UTF8) :]
    fields = _top_level(data, dialect)
    model_field, model = model_of(fields, dialect, route, default_model)
    prompt, prefix = _measure(fields, dialect) if has_prompt(route) else (NO_PROMPT, ())
    facts = read_facts(fields, dialect, route, model, prompt, prefix, len(data))
    return JsonBody(data, fields, facts, model_field)


def has_prompt(route: Route) -> bool:
    """Whether the body holds a prompt, of which it matters how long it is."""
    return route.generates or route.task is Task.COUNT


def model_of(
    fields: Fields, dialect: Dialect, route: Route, default_model: Callable[[], str | None]
) -> tuple[str, str]:
    """The field that names the model, and the name; see `read_json`."""
    default = None
    if not route.names_model and not any(name in fields for name in dialect.model_fields):
        default = default_model()
    if default is None:
        return read_model(fields, dialect)
    return dialect.model_fields[0], default


def read_facts(
    fields: Fields,
    dialect: Dialect,
    route: Route,
    model: str,
    prompt: PromptSize,
    prefix: Fingerprint,
    size_bytes: int,
) -> BodyFacts:
    """What a whole body with these top-level fields asks for. Raises `RequestError`."""
    return BodyFacts(
        model=model,
        stream=_flag(fields, "stream", dialect.streams_unasked and route.generates),
        wants_usage=_include_usage(fields),
        max_output_tokens=output_limit(fields, dialect),
        has_tools=bytes(fields.get("tools", b"null")) not in (b"null", b"[]"),
        prompt=prompt,
        prefix=prefix,
        answers=answers_asked(fields, dialect, route),
        context_tokens=dialect.context_asked(fields),
        size_bytes=size_bytes,
        whole=True,
    )


def changes_in(body: RequestBody, change: Change) -> dict[str, bytes]:
    """The top-level fields that `change` sets, the messages aside."""
    changes: dict[str, bytes] = {**change.fields}
    if change.model != body.facts.model:
        changes[body.model_field] = _ENCODER.encode(change.model)
    if change.ask_usage:
        changes["stream_options"] = _with_include_usage(body.fields)
    if change.ask_timings:
        changes["timings_per_token"] = b"true"
    return changes


def asks_usage(dialect: Dialect, route: Route, facts: BodyFacts) -> bool:
    """Whether `include_usage` must be set for a caller who did not ask for it."""
    return facts.stream and not facts.wants_usage and dialect.takes_stream_options(route)


def asks_timings(dialect: Dialect, route: Route, body: RequestBody | None) -> bool:
    """Whether a llama.cpp can be asked to count tokens in every chunk: then an answer that is cut
    has its exact counts too, as far as it came. A caller that has its own opinion is left alone."""
    return (
        body is not None
        and body.facts.stream
        and dialect.takes_stream_options(route)
        and "timings_per_token" not in body.fields
    )


def check_model(model: object, field: str = "model") -> str:
    """`model`, the value of `field`, as a usable name, else `RequestError`."""
    if not isinstance(model, str):
        raise RequestError(f"`{field}` must be a string.")
    if not model or len(model) > MAX_NAME_CHARS:
        raise RequestError(f"`{field}` must have between 1 and {MAX_NAME_CHARS} characters.")
    return model


def read_model(fields: Fields, dialect: Dialect) -> tuple[str, str]:
    """The field of a body's top level that names the model, and the name."""
    first = dialect.model_fields[0]
    field = next((name for name in dialect.model_fields if name in fields), first)
    # Go's decoder, Ollama's, takes any case, so `Model` would get past a key's list of models.
    for name in named_in_any_case(fields, (first.lower(), field.lower())):
        if name not in (first, field):
            raise RequestError(f"Unknown field `{name}`; the model's name goes into `{first}`.")
    raw = fields.get(field)
    if raw is None:
        no_model(first)
    data = bytes(raw)
    if data[:1] != b'"':
        raise RequestError(f"`{field}` must be a string.")
    if len(data) > MAX_MODEL_BYTES:
        raise RequestError(f"`{field}` must have between 1 and {MAX_NAME_CHARS} characters.")
    return field, check_model(value_of(raw), field)


def no_model(field: str = "model") -> NoReturn:
    """Raise the `RequestError` for a request that names no model."""
    raise RequestError(f"The request names no model; set `{field}`.")


def _top_level(data: bytes, dialect: Dialect) -> Fields:
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise RequestError(
                f"The request body is not UTF-8 (byte {error.start} breaks it)."
            ) from None
    try:
        _check_number_of_fields(data, dialect)
        return _FIELDS.decode(data)
    except msgspec.ValidationError:
        raise RequestError("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(
            f"The request body is not valid JSON: {in_words(error, data)}."
        ) from None


def _check_number_of_fields(data: bytes, dialect: Dialect) -> None:
    """Raise `RequestError` if the top level may have more than `MAX_FIELDS` keys.

    Each key has a colon; those in the long fields that we know are taken off, at the speed at which
    msgspec skips what it does not build.
    """
    if len(data) <= LEAST_FIELD_BYTES * MAX_FIELDS:
        return
    colons = data.count(b":")
    if colons <= MAX_FIELDS:
        return
    known = _decoder_of((*dialect.prompt_fields, *_LONG_FIELDS)).decode(data)
    for name in known.__struct_fields__:
        colons -= bytes(getattr(known, name)).count(b":")
    if colons > MAX_FIELDS:
        raise RequestError("The request body has too many fields.")


@functools.cache
def _decoder_of(names: tuple[str, ...]) -> msgspec.json.Decoder[msgspec.Struct]:
    """A decoder that keeps these fields' bytes and skips all others."""
    fields = [(name, msgspec.Raw, msgspec.Raw()) for name in dict.fromkeys(names)]
    return msgspec.json.Decoder(msgspec.defstruct("LongFields", fields))


def _flag(fields: Fields, name: str, default: bool) -> bool:  # noqa: FBT001 - a field's default
    raw = fields.get(name)
    if raw is None:
        return default
    match scalar_of(raw):
        case bool() as value:
            return value
        case None:
            return default
        case _:
            raise RequestError(f"`{name}` must be true or false.")


def _stream_options(fields: Fields) -> dict[str, Any]:
    raw = fields.get("stream_options")
    if raw is None:
        return {}
    if len(bytes(raw)) > MAX_OPTIONS_BYTES:
        raise RequestError(f"`stream_options` is longer than {MAX_OPTIONS_BYTES} bytes.")
    options = value_of(raw)
    if options is not None and not isinstance(options, dict):
        raise RequestError("`stream_options` must be an object.")
    return options or {}


def _include_usage(fields: Fields) -> bool:
    return _stream_options(fields).get("include_usage") is True


def _with_include_usage(fields: Fields) -> bytes:
    return _ENCODER.encode({**_stream_options(fields), "include_usage": True})


def _measure(fields: Fields, dialect: Dialect) -> tuple[PromptSize, Fingerprint]:
    """How long the prompt is, and the marks of its beginning. Its parts are as the caller wrote
    them: each message alone, all else whole."""
    meter = PromptMeter()
    parts: list[bytes] = []
    for name in [name for name in dialect.prompt_fields if name in fields]:
        data = bytes(fields[name])
        if name == "messages" or (name == "input" and data[:1] == b"["):
            if data[:1] != b"[":
                raise RequestError(f"`{name}` must be a list.")
            parts += _messages(data)
        elif data != b"null":
            parts.append(data)
        else:
            continue
        meter.sample(data, 0, len(data))
    for part in parts:
        size = len(part)
        meter.text += size - FRAMING_BYTES if size > FRAMING_BYTES else 1
        if size > LEAST_BLOB_BYTES:
            for start, end in blobs_in(part):
                meter.add_image(part[start + 1 : min(end - 1, start + 1 + MAX_HEAD_CHARS)])
                meter.text -= end - start
    return meter.size(), fingerprint(parts)


def _messages(data: bytes) -> list[bytes]:
    """The elements of a list, which is valid JSON; where they are too many, more in one piece."""
    items = list_items(data)
    if items is None:
        return [data]
    parts = list(map(bytes, items[:MAX_PARTS]))
    if len(items) > MAX_PARTS:
        parts.append(b",".join(items[MAX_PARTS:]))
    return parts


def list_items(data: bytes) -> list[msgspec.Raw] | None:
    """The elements of the JSON list `data`, None where there may be too many to take it apart."""
    if len(data) > MAX_LISTED_COMMAS and data.count(b",") > MAX_LISTED_COMMAS:
        return None
    return _ITEMS.decode(data)


class _Message(msgspec.Struct):
    role: str = ""


_MESSAGE: Final = msgspec.json.Decoder(_Message)


def _role(message: bytes) -> str | None:
    """Who says a message; None where that is no text."""
    if message[:1] != b"{":
        return None
    try:
        return _MESSAGE.decode(message).role or None
    except msgspec.DecodeError:
        return None
