"""The wheel and the sdist hold all that a relay, a node and a builder need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.contents import check_sdist, check_wheel

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


def test_the_built_wheel_and_sdist_are_whole(tmp_path: Path) -> None:
    # Both from the tree, without an environment of their own: `make dist` does it thoroughly.
    for kind in ("--wheel", "--sdist"):
        command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [wrong for file in tmp_path.glob("*.whl") for wrong in check_wheel(file)] == []
    assert [wrong for file in tmp_path.glob("*.tar.gz") for wrong in check_sdist(file)] == []
    assert len(list(tmp_path.iterdir())) == 2


def test_a_second_build_has_other_bytes(tmp_path: Path) -> None:
    built = []
    for zone in ("UTC", "Asia/Kathmandu"):
        into = tmp_path / zone
        command = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(into),
        ]
        env = {**os.environ, "SOURCE_DATE_EPOCH": "1764403200", "TZ": zone}
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
        [wheel] = into.glob("*.whl")
        built.append(wheel.read_bytes())
    assert built[0] == built[1]
