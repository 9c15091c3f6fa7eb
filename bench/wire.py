"""The messages between load generator and origin, through the measured path.

A request carries its wish in the prompt (`bench: rate=20 events=400`), so that the same bytes work
directly, through a tunnel and through a gateway that reads the JSON. An event is as long as a real
chunk of an OpenAI stream and carries the moment it was written, from CLOCK_MONOTONIC, which all
processes of one machine share.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

MODEL: Final = "bench"
STREAM_PATH: Final = "/v1/chat/completions"
UPLOAD_PATH: Final = "/v1/audio/transcriptions"  # the one route whose bodies are large in real life
DOWNLOAD_PATH: Final = "/v1/audio/speech"  # and the one whose answers are

_STAMP_DIGITS: Final = 18  # nanoseconds since boot, for 31 years
_MARK: Final = b'"content":"t'
_EVENT: Final = (
    b'data: {"id":"chatcmpl-5f2a81c0d9","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"bench","system_fingerprint":"b10434-bench","choices":[{"index":0,'
    b'"finish_reason":null,"delta":{"content":"t%018d"}}]}\n\n'
)
EVENT_BYTES: Final = len(_EVENT % 0)
EVENT_END: Final = b"\n\n"
DONE: Final = b"data: [DONE]\n\n"
_EVENT_CHUNK: Final = b"%x\r\n%b\r\n" % (EVENT_BYTES, _EVENT)
LAST_CHUNK: Final = b"0\r\n\r\n"

_WISH: Final = re.compile(rb"bench:((?: [a-z]+=[0-9]+)*)")


@dataclass(frozen=True, slots=True)
class Wish:
    """The answer that a request asks the origin for.

    `rate`: events per second, 0 for as fast as they are taken. `events`: how many before the end,
    0 for endless. `hold`: 1 to leave the stream open and silent after the first event. `bytes`: the
    length of a bulk answer.
    """

    rate: int = 0
    events: int = 0
    hold: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return f"bench: rate={self.rate} events={self.events} hold={self.hold} bytes={self.bytes}"


def wish_from_body(body: bytes | bytearray) -> Wish:
    """Parse the wish in a request's body; the default if there is none or it has unknown words."""
    found = _WISH.search(body)
    if found is None:
        return Wish()
    pairs = (word.split("=") for word in found[1].decode().split())
    return Wish(**{name: int(value) for name, value in pairs if name in Wish.__slots__})


def chat_body(wish: Wish, *, stream: bool, model: str = MODEL) -> bytes:
    """A chat completion request as an SDK would send it."""
    return json.dumps(
        {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": str(wish)},
            ],
            "stream": stream,
            "max_tokens": 1024,
        },
        separators=(",", ":"),
    ).encode()


def speech_body(wish: Wish, model: str = MODEL) -> bytes:
    """A speech request, whose answer is bulk."""
    fields = {"model": model, "input": str(wish), "voice": "alloy"}
    return json.dumps(fields, separators=(",", ":")).encode()


_BOUNDARY: Final = b"----bench7d1f3a"
UPLOAD_CONTENT_TYPE: Final = b"multipart/form-data; boundary=" + _BOUNDARY
UPLOAD_TAIL: Final = b"\r\n--" + _BOUNDARY + b"--\r\n"


def upload_lead(model: str = MODEL) -> bytes:
    """Return the bytes before the file in a transcription upload; `UPLOAD_TAIL` follows it."""
    return (
        b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n" % (_BOUNDARY, model.encode(), _BOUNDARY)
    )


def event_chunk(now_ns: int) -> bytes:
    """One event as one HTTP/1.1 chunk."""
    return _EVENT_CHUNK % now_ns


def stamps_ns(text: bytes) -> list[int]:
    """The moments at which the events in `text` were written; a cut one is left out."""
    stamps = []
    at = text.find(_MARK)
    while at >= 0:
        start = at + len(_MARK)
        digits = text[start : start + _STAMP_DIGITS]
        if len(digits) == _STAMP_DIGITS:
            stamps.append(int(digits))
        at = text.find(_MARK, start)
    return stamps


class ChunkDecoder:
    """Decodes a chunked HTTP/1.1 body. It trusts its peer, so it is for benchmarks only."""

    __slots__ = ("_left", "_rest", "ended")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0  # bytes of the current chunk still to come, its CRLF included
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The body bytes in `data`. After `ended`, `take_rest` gives what follows the body."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        pieces: list[bytes] = []
        at = 0
        size = len(data)
        left = self._left
        while at < size:
            if left:
                end = at + left
                if end > size:
                    # a CRLF that is cut in two stays out of the body
                    body_end = min(size, end - 2)
                    if body_end > at:
                        pieces.append(data[at:body_end])
                    left = end - size
                    at = size
                    break
                pieces.append(data[at : max(at, end - 2)])
                at = end
                left = 0
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            length = int(data[at:line_end].partition(b";")[0], 16)
            if length == 0:
                close = data.find(b"\r\n", line_end + 2)
                if close < 0:
                    break
                self.ended = True
                at = close + 2
                break
            at = line_end + 2
            left = length + 2
        self._left = left
        self._rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def take_rest(self) -> bytes:
        """What came after the body's end."""
        rest, self._rest = self._rest, b""
        return rest
