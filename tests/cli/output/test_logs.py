"""What others say stays one line in a log and steers no terminal."""

from __future__ import annotations

import io
import json
import logging

import pytest

from wai_cli.output.logs import JsonFormatter, TextFormatter
from wai_cli.output.tables import plain, print_json, say
from wai_transport.plain_text import one_line

HOSTILE = (
    "a\n2026-01-01 00:00:00,000 INFO    wai.node: forged",
    "a\r\x1b[2Jb",
    "a\x9b2Jb",
    "a\u202egpj.exe",
    "a\u2028b\x85c\x0bd",
    "a\udc80b",
    "\x1b]0;title\x07",
)


def logged(formatter: logging.Formatter, text: str, *, trace: bool = False) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("wai.test")
    logger.addHandler(handler)
    if trace:
        try:
            raise ValueError(text)
        except ValueError:
            logger.exception("it failed")
    else:
        logger.warning("serving: %s", text)
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "formatter", [TextFormatter("%(asctime)s %(levelname)s %(message)s"), JsonFormatter()]
)
def test_a_model_id_forges_no_line(formatter: logging.Formatter, text: str) -> None:
    written = logged(formatter, text)
    assert written.endswith("\n")
    assert written[:-1].isprintable()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_traceback_holds_no_line_that_looks_like_a_message(text: str) -> None:
    first, *trace = logged(TextFormatter("%(levelname)s %(message)s"), text, trace=True).split("\n")
    assert first == "ERROR it failed"
    assert trace.pop() == ""
    assert all(line.startswith("    ") and line.isprintable() for line in trace)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_commands_print_steers_no_terminal(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(f"{text} is ready")
    said = capsys.readouterr().out
    assert said[:-1].isprintable()
    print_json({"name": text})
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == {"name": text}
    assert plain(text).replace("\n", "").isprintable()


def test_plain_text_is_left_as_it_is() -> None:
    text = "unsloth/Qwen3-4B:Q4_K_M — für alle 模型"
    assert one_line(text) is text
    assert logged(TextFormatter("%(message)s"), text) == f"serving: {text}\n"
