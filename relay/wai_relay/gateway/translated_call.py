"""A routed request that becomes another one, in a dialect which the model's server has."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from .bodies import JsonBody
from .dialects.registry import Dialects
from .forwarding import RoutedRequest
from .intake import Body
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
    data = b"{" + b",".join(b'"%s":%s' % (k.encode(), v) for k, v in encoded.items()) + b"}"
    call.body.forget()  # the prompt is held once
    translation.forget_prompt()
    # The prompt was measured, and the node that has its beginning is found, by the caller's words.
    facts = replace(facts, stream=streams, wants_usage=False)
    json = JsonBody(data, {name: msgspec.Raw(value) for name, value in encoded.items()}, facts)
    call.body = Body(facts, data, json=json)
    call.reply = TranslatedReply(call.reply, upstream, translation, streams=streams)
    call.route = route
    call.target = route.path
    call.record.translated = route.path
