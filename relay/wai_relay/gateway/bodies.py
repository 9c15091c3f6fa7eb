"""What a JSON request body asks for, read and changed without building it. Pure.

Only the top level is decoded; messages, tools and all else stay the bytes that the caller sent, and
so does every value that we don't have to change. Bodies too long to read whole are `body_scan`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.status import MAX_NAME_CHARS
from wai_protocol.surface import Dialect, Route
from wai_relay.policy.fingerprints import Fingerprint, fingerprint

# Where prompts are found, in the order in which chat templates put them in front of the model.
PROMPT_FIELDS: Final = ("tools", "system", "instructions", "messages", "prompt", "input")
# What bounds an answer's length, by whatever name.
OUTPUT_LIMIT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
# Only these two know `stream_options`; /v1/responses always says its usage.
USAGE_OPTION_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
FRAMING_BYTES: Final = len(b'{"role":"user","content":""},')  # of a message that is no prompt text
MAX_OUTPUT_TOKENS: Final = 1 << 31

Fields = dict[str, msgspec.Raw]

_FIELDS: Final = msgspec.json.Decoder(Fields)
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ANY: Final = msgspec.json.Decoder()
_ENCODER: Final = msgspec.json.Encoder()
# The first half of a pair of \u escapes for one character, without the second.
_HALF_PAIR: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
# A picture or a recording is one long base64 string, whichever dialect it stands in. Shorter ones
# cost no more tokens as text than as a picture, so short messages need not be searched.
LEAST_BLOB_BYTES: Final = 3072
_BLOB: Final = re.compile(
    rb'(?:"(?:url|image_url|data|file_data|images)"\s*:\s*\[?|,)\s*'
    rb'"(?:data:[^"]{0,80};base64,)?[A-Za-z0-9+/=\\_-]{3000,}"'
)


@dataclass(frozen=True, slots=True)
class BodyFacts:
    """What routing needs to know of a request. `text_bytes` and `images` measure the prompt;
    `prefix` is empty where the body was not read whole. `wants_usage`: the caller asked for the
    usage chunk itself, or may have."""

    model: str
    stream: bool = False
    wants_usage: bool = False
    max_output_tokens: int | None = None
    has_tools: bool = False
    text_bytes: int = 0
    images: int = 0
    prefix: Fingerprint = ()


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A body that was read whole: its bytes, its top-level fields, and what they mean."""

    data: bytes
    fields: Fields
    facts: BodyFacts

    def rewritten(self, model: str, *, ask_usage: bool, ask_timings: bool = False) -> bytes:
        """The bytes to send for `model`; with `ask_usage`, `stream_options.include_usage` is set,
        with `ask_timings`, llama.cpp's `timings_per_token`.

        Values that need not change keep their bytes; a repeated key keeps its last value only.
        """
        changes: dict[str, bytes] = {}
        if model != self.facts.model:
            changes["model" if "model" in self.fields else "name"] = _ENCODER.encode(model)
        if ask_usage:
            changes["stream_options"] = _with_include_usage(self.fields)
        if ask_timings:
            changes["timings_per_token"] = b"true"
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


def read_json(data: bytes, route: Route) -> JsonBody:
    """Read a whole request body. Raises `RequestError` with a sentence for the caller."""
    if not data.strip():
        raise RequestError("The request has no body; send a JSON object.")
    fields = _top_level(data)
    model = read_model(fields)
    parts = tuple(_prompt_parts(fields)) if route.generates else ()
    text_bytes, images = _measure(parts)
    return JsonBody(
        data,
        fields,
        BodyFacts(
            model=model,
            # Ollama's API streams unless it is told not to.
            stream=_flag(fields, "stream", route.dialect is Dialect.OLLAMA and route.generates),
            wants_usage=_include_usage(fields),
            max_output_tokens=_output_limit(fields),
            has_tools=bytes(fields.get("tools", b"null")) not in (b"null", b"[]"),
            text_bytes=text_bytes,
            images=images,
            prefix=fingerprint(parts),
        ),
    )


def asks_usage(route: Route, facts: BodyFacts) -> bool:
    """Whether `include_usage` must be set for a caller who did not ask for it."""
    return facts.stream and not facts.wants_usage and route.path in USAGE_OPTION_PATHS


def asks_timings(route: Route, body: JsonBody | None) -> bool:
    """Whether a llama.cpp can be asked to count tokens in every chunk: then an answer that is cut
    has its exact counts too, as far as it came. A caller that has its own opinion is left alone."""
    return (
        body is not None
        and body.facts.stream
        and route.path in USAGE_OPTION_PATHS
        and "timings_per_token" not in body.fields
    )


def check_model(model: object) -> str:
    """`model` as a usable name, else `RequestError`."""
    if not isinstance(model, str):
        raise RequestError("`model` must be a string.")
    if not model or len(model) > MAX_NAME_CHARS:
        raise RequestError(f"`model` must have between 1 and {MAX_NAME_CHARS} characters.")
    return model


def read_model(fields: Fields) -> str:
    """The model that a body's top level names; Ollama's older `name` counts too."""
    for name in fields:
        # Go's decoder, Ollama's, takes any case, so `Model` would get past a key's list of models.
        if name != "model" and name.lower() == "model":
            raise RequestError(f"Unknown field `{name}`; the model's name goes into `model`.")
    raw = fields.get("model", fields.get("name"))
    if raw is None:
        raise RequestError("The request names no model; set `model`.")
    return check_model(_value(raw))


def _top_level(data: bytes) -> Fields:
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise RequestError(
                f"The request body is not UTF-8 (byte {error.start} breaks it)."
            ) from None
    try:
        return _FIELDS.decode(data)
    except msgspec.ValidationError:
        raise RequestError("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"The request body is not valid JSON: {_said(error, data)}.") from None


def _said(error: Exception, data: bytes) -> str:
    """What is wrong with `data`. msgspec calls a string truncated that ends in half a pair."""
    text = str(error)
    if "truncated" in text and _HALF_PAIR.search(data):
        return "a \\u escape in it is one half of a surrogate pair"
    return text


def _value(raw: msgspec.Raw) -> Any:
    try:
        return _ANY.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        said = _said(error, bytes(raw))
        raise RequestError(f"The request body is not valid JSON: {said}.") from None


def _flag(fields: Fields, name: str, default: bool) -> bool:  # noqa: FBT001 - a field's default
    raw = fields.get(name)
    if raw is None:
        return default
    match _value(raw):
        case bool() as value:
            return value
        case None:
            return default
        case _:
            raise RequestError(f"`{name}` must be true or false.")


def _include_usage(fields: Fields) -> bool:
    raw = fields.get("stream_options")
    options = None if raw is None else _value(raw)
    if options is None:
        return False
    if not isinstance(options, dict):
        raise RequestError("`stream_options` must be an object.")
    return options.get("include_usage") is True


def _with_include_usage(fields: Fields) -> bytes:
    raw = fields.get("stream_options")
    options = None if raw is None else _value(raw)
    return _ENCODER.encode({**(options or {}), "include_usage": True})


def _output_limit(fields: Fields) -> int | None:
    for name in OUTPUT_LIMIT_FIELDS:
        raw = fields.get(name)
        if raw is None:
            continue
        match _value(raw):
            case None:
                continue
            case int() as limit if not isinstance(limit, bool):
                # llama-server takes -1 for "no limit".
                return min(limit, MAX_OUTPUT_TOKENS) if limit >= 0 else None
            case _:
                raise RequestError(f"`{name}` must be a whole number.")
    return None


def _prompt_parts(fields: Fields) -> Iterator[bytes]:
    """The prompt in its parts, as the caller wrote them: each message alone, all else whole."""
    for name in PROMPT_FIELDS:
        raw = fields.get(name)
        if raw is None:
            continue
        data = bytes(raw)
        if name == "messages" or (name == "input" and data[:1] == b"["):
            try:
                yield from map(bytes, _ITEMS.decode(raw))
            except msgspec.DecodeError:
                raise RequestError(f"`{name}` must be a list.") from None
        elif data != b"null":
            yield data


def _measure(parts: tuple[bytes, ...]) -> tuple[int, int]:
    """Bytes of text in `parts`, and how many pictures or recordings stand between them."""
    text_bytes = images = 0
    for part in parts:
        text_bytes += max(len(part) - FRAMING_BYTES, 1)
        if len(part) > LEAST_BLOB_BYTES:
            for blob in _BLOB.finditer(part):
                images += 1
                text_bytes -= blob.end() - blob.start()
    return max(text_bytes, 0), images
