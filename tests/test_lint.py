"""The code's own rules, as tests: formatting, lint (which holds the import lines), types."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness.real import script

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check", "--quiet", "."),
        ("ruff", "check", "--quiet", "."),
        ("mypy",),
    ],
    ids=" ".join,
)
def test_the_code_is_clean(command: tuple[str, ...]) -> None:
    program, *arguments = command
    done = subprocess.run(
        [script(program), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
