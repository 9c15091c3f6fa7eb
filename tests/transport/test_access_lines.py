"""The access log's lines are written a few at a time, and none is lost or joined with another."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from wai_cli.output.logs import JsonFormatter, TextFormatter
from wai_transport import access_lines
from wai_transport.access_lines import MAX_WAITING, AccessLines, shown

pytestmark = pytest.mark.anyio


class Line:
    """A line that says what it is told."""

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self) -> str:
        return self._text

    def fields(self) -> dict[str, Any]:
        return {"said": self._text}


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the access log writes as text."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter("%(message)s"))
    level = access_lines.log.level
    access_lines.log.addHandler(handler)
    access_lines.log.setLevel(logging.INFO)
    yield stream
    access_lines.log.setLevel(level)
    access_lines.log.removeHandler(handler)


async def test_lines_wait_for_each_other_and_close_writes_the_rest(written: io.StringIO) -> None:
    lines = AccessLines()
    for number in range(3):
        lines.add(Line(f"number={number}"))
    assert written.getvalue() == ""
    lines.close()
    first, *_ = found = written.getvalue().splitlines()
    assert [line.rpartition(" ")[2] for line in found] == ["number=0", "number=1", "number=2"]
    assert " INFO    wai.access: number=0" in first
    lines.close()
    assert len(written.getvalue().splitlines()) == 3


async def test_many_lines_do_not_wait(written: io.StringIO) -> None:
    lines = AccessLines()
    for _ in range(MAX_WAITING):
        lines.add(Line("x"))
    assert len(written.getvalue().splitlines()) == MAX_WAITING
    lines.close()


def test_without_an_event_loop_a_line_is_written_at_once(written: io.StringIO) -> None:
    AccessLines().add(Line("x"))
    assert written.getvalue().endswith(" x\n")


def test_a_line_forges_no_other_in_either_format(written: io.StringIO) -> None:
    hostile = "a\nb\x1b[2J"
    record = access_lines.log.makeRecord(
        *("wai.access", logging.INFO, "", 0, "%s", ("",), None),
        extra={"entries": [(0.5, Line(hostile)), (1.5, Line("c"))]},
    )
    text = TextFormatter("%(message)s").format(record).split("\n")
    assert len(text) == 2
    assert all(line.isprintable() for line in text)
    assert text[0].endswith(r"a\nb\x1b[2J")
    first, second = (json.loads(line) for line in JsonFormatter().format(record).split("\n"))
    assert (first["said"], second["said"]) == (hostile, "c")
    assert (first["level"], first["logger"]) == ("info", "wai.access")


def test_a_callers_name_is_one_word() -> None:
    assert shown("x\nforged status=200") == r"x\nforged\x20status=200"
    assert len(shown("y" * 1000)) == 128
