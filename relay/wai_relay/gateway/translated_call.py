"""A routed request that becomes another one, in a dialect which the model's server has."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from .bodies import JsonBody
from .cut_out import CutBody
from .dialects.registry import Dialects
from .intake import Body
from .routed_request import RoutedRequest
from .translation.translated_reply import TranslatedReply
from .translation.translation import ENCODER, Translation


def translate(call: RoutedRequest, translation: Translation, dialects: Dialects) -> None:
    """Have `call` forwarded as its translation. Its caller is answered in the caller's dialect."""
    route = translation.upstream
    upstream = dialects.of(route.path)
    facts = call.body.facts
    streams = facts.stream and route.generates
    fields = {"model": facts.model, **translation.request}
    if streams:
        fields["stream"] = True  # its usage is asked for as of any stream
    else:
        fields.pop("stream", None)
    encoded = {name: ENCODER.encode(value) for name, value in fields.items()}
    pairs = (ENCODER.encode(name) + b":" + value for name, value in encoded.items())
    data = b"{" + b",".join(pairs) + b"}"
    cut, held = call.body.cut, call.body.held
    call.body.forget()  # the prompt is held once
    translation.forget_prompt()
    # The prompt was measured, and the node that has its beginning is found, by the caller's words.
    facts = replace(facts, stream=streams, wants_usage=False)
    json = JsonBody(data, {name: msgspec.Raw(value) for name, value in encoded.items()}, facts)
    if cut is None:
        call.body = Body(facts, data, json=json)
    else:
        call.body = Body(facts, b"", json=CutBody(json, cut), held=held)
    call.reply = TranslatedReply(call.reply, upstream, translation, streams=streams)
    call.route = route
    call.target = route.path
    call.record.translated = route.path
