"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.harness.tiny_gguf import tiny_gguf

# No deadline: on two busy cores a single example may take any time. `make fuzz` looks for longer.
settings.register_profile("default-without-deadline", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default-without-deadline"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Figures that tests measured, by `record_property("figure", …)`: a worker's stdout is lost."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(str(value))


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Async tests run as the product does: asyncio on uvloop."""
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this run keeps the GGUF files that it makes: one folder for all its workers."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "models"


@pytest.fixture(scope="session")
def tiny_model(model_folder: Path) -> Path:
    """The tiny GGUF with its default parameters."""
    return tiny_gguf(model_folder)
