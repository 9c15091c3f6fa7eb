"""What the tests of managed models share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.supervised import settings_in
from wai_node.managed.policy import ManagedSettings


@pytest.fixture
def settings(tmp_path: Path) -> ManagedSettings:
    return settings_in(tmp_path)
