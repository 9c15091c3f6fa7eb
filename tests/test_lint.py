"""The code's own rules, as tests: formatting, lint, types, the layers of imports."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.real import SCRIPTS, script

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check", "--quiet", "."),
        ("ruff", "check", "--quiet", "."),
        pytest.param(("mypy",), marks=pytest.mark.timeout(500)),
        ("lint-imports", "--no-logo", "--no-cache"),
    ],
    ids=" ".join,
)
def test_the_code_is_clean(command: tuple[str, ...]) -> None:
    program, *arguments = command
    done = subprocess.run(
        [script(program), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_images_and_units_are_clean() -> None:
    path = os.pathsep.join((str(SCRIPTS), os.environ["PATH"]))
    done = subprocess.run(
        [ROOT / ".ci" / "lint-files"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
