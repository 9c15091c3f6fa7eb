"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.harness.stores import empty_database, own_server, postgres, relay_database, with_schema
from tests.harness.tiny_gguf import tiny_gguf

__all__ = ["empty_database", "own_server", "postgres", "relay_database", "with_schema"]

# No deadline: on two busy cores a single example may take any time. `make fuzz` looks for longer.
settings.register_profile("default-without-deadline", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default-without-deadline"))


# Images for containers often set it. Here hundreds of processes would each compile all modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that may take long, so that no worker has one left at the end."""
    items.sort(key=_may_take_s, reverse=True)


def _may_take_s(item: pytest.Item) -> float:
    """Return a test's limit of time, and then whether it starts real processes."""
    limit, usual_s = item.get_closest_marker("timeout"), float(item.config.getini("timeout"))
    limit_s = usual_s if limit is None else max(float(limit.args[0]), usual_s)
    return limit_s + (item.get_closest_marker("e2e") is not None)


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


@pytest.fixture(scope="session", autouse=True)
def nobodys_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the relay or the node that whoever runs the tests has at home."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        for kind in ("DATA", "CONFIG", "STATE"):
            patched.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
        yield


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is not freed by itself stays until the test is over."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@pytest.fixture(scope="session")
def model_folder(shared_folder: Path) -> Path:
    """Where this run keeps the GGUF files that it makes."""
    return shared_folder / "models"


@pytest.fixture(scope="session")
def tiny_model(model_folder: Path) -> Path:
    """The tiny GGUF with its default parameters."""
    return tiny_gguf(model_folder)
