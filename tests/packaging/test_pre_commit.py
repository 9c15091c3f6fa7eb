"""The pre-commit hooks and `make lint` run the same commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def commands_of_make_lint() -> list[str]:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    lines = [line.removeprefix("\t@") for line in recipe[1].splitlines()]
    return [re.sub(r'^PATH="[^"]+" ', "", line).replace("$(BIN)/", "") for line in lines]


def commands_of_the_hooks() -> list[str]:
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"^ +entry: (.*)$", config, re.MULTILINE)
    shelled = [re.sub(r"^sh -c 'PATH=\"[^\"]+\" (.*)'$", r"\1", entry) for entry in entries]
    return [entry.removeprefix(".venv/bin/") for entry in shelled]


def test_a_check_of_make_lint_is_missing_in_the_hooks() -> None:
    assert commands_of_the_hooks() == commands_of_make_lint()


def test_a_hook_would_be_fetched_from_elsewhere() -> None:
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"^ +- repo: (.*)$", config, re.MULTILINE) == ["local"]
