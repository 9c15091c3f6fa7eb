"""`wai settings`: what it prints is a settings file, holds every key, and says what each means."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from wai_cli.commands.settings import PROGRAMS, settings_of
from wai_cli.main import main
from wai_cli.options.reference import tables_of
from wai_cli.options.settings import ONLY_FLAGS, load


def loaded(program: str, text: str, folder: Path) -> Any:
    file = folder / "settings.toml"
    file.write_text(text, encoding="utf-8")
    return load(
        settings_of(program), file=file, environment={}, prefix="WAI_", flags={"data": folder}
    )


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def printed(program: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["settings", program]) == 0
    return capsys.readouterr().out


def test_the_file_as_printed_changes_anything(program: str, printed: str, tmp_path: Path) -> None:
    assert loaded(program, printed, tmp_path) == settings_of(program)(data=tmp_path)


def test_a_default_that_is_shown_is_another_one(program: str, printed: str, tmp_path: Path) -> None:
    shown = re.sub(r"^#(\w+ = [^…\n]*)$", r"\1", printed, flags=re.MULTILINE)
    # Tables of which there may be several need what has no default.
    shown = re.split(r"^#\[\[", shown, maxsplit=1, flags=re.MULTILINE)[0]
    assert shown != printed
    assert loaded(program, shown, tmp_path) == settings_of(program)(data=tmp_path)


def test_a_key_has_no_meaning_or_is_left_out(program: str) -> None:
    tables = tables_of(settings_of(program))
    assert [f"{t.name}.{s.name}" for t in tables for s in t.settings if not s.meaning] == []
    top = {setting.name for setting in tables[0].settings} | {table.name for table in tables}
    fields = {field.name for field in dataclasses.fields(settings_of(program))}
    assert fields - top == set(ONLY_FLAGS)


def test_what_must_be_given_looks_as_if_it_had_a_default() -> None:
    (providers,) = (t for t in tables_of(settings_of("relay")) if t.name == "providers")
    assert {s.name for s in providers.settings if s.required} == {"name", "base_url"}
    assert providers.several


def test_types_are_shown_in_the_words_of_python() -> None:
    kinds = {s.kind for name in PROGRAMS for t in tables_of(settings_of(name)) for s in t.settings}
    assert {"text", "whole number", "true or false", "path"} <= kinds
    assert not any(re.search(r"str|int\b|None|tuple|class", kind) for kind in kinds)
