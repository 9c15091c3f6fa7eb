"""What a prompt is made of counts, not its bytes alone: code, escapes, Chinese, pictures."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from typing import Any

import pytest

from wai_protocol.errors import RequestError
from wai_relay.gateway.bodies import read_json
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.gateway.pictures import MAX_HEAD_CHARS, pixels_of
from wai_relay.gateway.prompt_size import (
    IMAGE_TOKENS,
    MOST_IMAGE_TOKENS,
    PromptMeter,
    PromptSize,
    TextKind,
    tokens_of_image,
)
from wai_relay.gateway.tokens import LONGEST_TOKEN_BYTES, TokenEstimator, least_tokens

CODE = "".join(
    f"        for index, value in enumerate(values[{n}]):\n"
    f"            if value is None and index > {n}:\n"
    f"                totals[index] += self._weight(value, {n})\n"
    for n in range(250)
)
CHINESE = "人工智能模型在家里的显卡上运行，并通过中继服务器访问。" * 200
PROSE = "The quick brown fox jumps over the lazy dog, and nobody minds at all. " * 200


def measured(content: Any, *, ascii_only: bool = False) -> PromptSize:
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    route = DIALECTS.find_route("POST", "/v1/chat/completions")
    assert route is not None
    data = json.dumps(body, ensure_ascii=ascii_only).encode()
    return read_json(data, DIALECTS.of(route.path), route).facts.prompt


def estimate(prompt: PromptSize) -> int:
    return TokenEstimator().estimate("m", prompt)


def test_indentation_costs_fewer_tokens_than_words() -> None:
    prompt = measured(CODE)
    assert prompt.kind is TextKind.INDENTED
    spaces = len(CODE) - len(CODE.replace("  ", ""))
    assert prompt.spaces == pytest.approx(spaces, rel=0.15)
    assert estimate(prompt) < 0.85 * len(CODE) / 4


def test_escaped_characters_count_as_those_that_are_not() -> None:
    plain, escaped = measured(CHINESE), measured(CHINESE, ascii_only=True)
    assert plain.kind is escaped.kind is TextKind.WIDE
    assert escaped.text_bytes > 1.9 * plain.text_bytes
    assert estimate(escaped) == pytest.approx(estimate(plain), rel=0.1)
    assert len(CHINESE) / 2 < estimate(plain) < len(CHINESE) * 1.5


def test_prose_counts_as_before() -> None:
    prompt = measured(PROSE)
    assert prompt.kind is TextKind.PROSE
    assert estimate(prompt) == pytest.approx(len(PROSE) / 4, rel=0.02)


def test_each_kind_of_text_is_learned_for_itself() -> None:
    estimator = TokenEstimator()
    code, prose = measured(CODE), measured(PROSE)
    before = estimator.estimate("m", prose)
    for _ in range(100):
        estimator.observe("m", code, 4350)
    assert estimator.estimate("m", code) == pytest.approx(4350, rel=0.01)
    assert estimator.estimate("m", prose) == before


def test_pictures_are_learned_by_their_size() -> None:
    estimator = TokenEstimator()
    small, large = png(320, 240), png(1600, 1200)
    prompts = [measured([text_part("What?"), picture_part(one)]) for one in (small, large)]
    first = [estimator.estimate("m", prompt) for prompt in prompts]
    assert 61 < first[0] < 120 < 1500 < first[1] < 1700
    for _ in range(100):
        estimator.observe("m", prompts[1], 3000)
    assert estimator.estimate("m", prompts[1]) == pytest.approx(3000, rel=0.01)
    assert estimator.estimate("m", prompts[0]) == pytest.approx(2 * 64 + 17, abs=5)
    for _ in range(100):
        estimator.observe("m", prompts[1], 1)  # absurd
    assert estimator.estimate("m", prompts[1]) > 16


@pytest.mark.parametrize("content", [CODE, CHINESE, PROSE, " " * 40_000, "\n" * 9000])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_what_is_certain_is_far_below_any_tokenizers_count(content: str, ascii_only: bool) -> None:
    prompt = measured(content, ascii_only=ascii_only)
    assert least_tokens(prompt) <= len(content.encode()) / LONGEST_TOKEN_BYTES
    assert least_tokens(prompt) <= estimate(prompt) / 2


def test_a_short_prompt_is_not_looked_at() -> None:
    meter = PromptMeter()
    meter.text = 900
    meter.sample(b"  " * 450, 0, 900)
    assert meter.size() == PromptSize(900)


def test_it_does_not_matter_where_a_prompt_is_cut() -> None:
    data = (CODE + CHINESE).encode()
    sizes = set()
    for step in (100, 4096, 5000, len(data)):
        meter = PromptMeter()
        meter.text = len(data)
        for at in range(0, len(data), step):
            meter.sample(data, at, min(at + step, len(data)))
        sizes.add(meter.size().kind)
        assert meter.size().saved == pytest.approx(len(data) * 0.14, rel=0.3)
    assert len(sizes) == 1


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def picture_part(picture: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + b64encode(picture).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def png(width: int, height: int) -> bytes:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return head + bytes(6000)


def jpeg(width: int, height: int, metadata: int) -> bytes:
    app1 = b"\xff\xe1" + struct.pack(">H", metadata + 2) + bytes(metadata)
    tables = b"\xff\xdb" + struct.pack(">H", 67) + bytes(65)
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + app1 + b"\xff" + tables + frame + bytes(9000)


def webp(kind: bytes, rest: bytes) -> bytes:
    return b"RIFF" + bytes(4) + b"WEBP" + kind + bytes(4) + rest + bytes(6000)


@pytest.mark.parametrize(
    ("picture", "pixels"),
    [
        (png(640, 480), 640 * 480),
        (b"GIF89a" + struct.pack("<HH", 320, 200) + bytes(5000), 320 * 200),
        (jpeg(4032, 3024, 100), 4032 * 3024),
        (jpeg(4032, 3024, 60_000), 4032 * 3024),
        (webp(b"VP8 ", bytes(6) + struct.pack("<HH", 800, 0x4000 | 600)), 800 * 600),
        (webp(b"VP8L", b"\x2f" + struct.pack("<I", 799 | 599 << 14)), 800 * 600),
        (webp(b"VP8X", bytes(4) + b"\x1f\x03\0" + b"\x57\x02\0"), 800 * 600),
        (png(0, 480), None),
        (png(1 << 31, 480), None),
        (b"\xff\xd8" + b"\xff" * 9000, None),
        (b"\xff\xd8\xff\xe0\0\0" * 2000, None),
        (b"ID3\x04" + bytes(9000), None),
        (b"\x89PNG", None),
        (b"", None),
    ],
)
@pytest.mark.parametrize("prefix", [b"", b"data:image/png;base64,"])
def test_pixels_are_read_from_the_first_bytes(
    picture: bytes, pixels: int | None, prefix: bytes
) -> None:
    base64 = prefix + b64encode(picture)
    assert pixels_of(base64) == pixels
    assert pixels_of(base64.replace(b"/", b"\\/")) == pixels
    assert pixels_of(base64[:MAX_HEAD_CHARS]) == pixels


def test_pixels_become_tokens_within_bounds() -> None:
    assert tokens_of_image(None) == IMAGE_TOKENS
    assert tokens_of_image(1_000_000) == IMAGE_TOKENS
    assert tokens_of_image(1) == 64
    assert tokens_of_image(1 << 32) == MOST_IMAGE_TOKENS


def test_garbage_is_no_picture() -> None:
    for head in (b"!" * 100, b"A", b"data:image/png;base64,", b"\xff\xfe", b"===="):
        assert pixels_of(head) is None
    with pytest.raises(RequestError):
        measured(float("nan"))
