"""Fixtures that every test may use."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Async tests run as the product does: asyncio on uvloop."""
    return ("asyncio", {"use_uvloop": True})
