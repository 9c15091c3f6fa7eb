"""install.sh with the real pip: what is installed has a SHA-256 that the wheel of wai lists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.harness.hostile import HostileFolder
from tests.harness.processes import free_port
from tests.harness.tiny_wheel import locked, tiny_wheel
from wai_relay.installer.pages import SCRIPT_FILE

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("locked"),
]  # one environment

ROOT = Path(__file__).parents[3]
LOCK = SCRIPT_FILE.parent / "requirements.lock"
_CODE = "import dependency\ndef main():\n    print('wai with', dependency.VALUE)\n"


@dataclass(frozen=True, slots=True)
class Box:
    """An empty home, the wheel of a tiny wai, and the folder that its dependency comes from."""

    home: Path
    wheel: Path
    index: Path

    @classmethod
    def make(cls, folder: Path, *, lists_hashes: bool = True) -> Box:
        index = folder / "index"
        index.mkdir()
        dependency = tiny_wheel(index, "dependency", "1.0", {"dependency.py": "VALUE = 'good'\n"})
        files = {"wai_tiny.py": _CODE}
        if lists_hashes:
            files["wai_relay/installer/requirements.lock"] = locked(dependency)
        requires = ["dependency>=1"]
        wheel = tiny_wheel(folder, "wai", "1.0", files, requires=requires, command="wai_tiny:main")
        (folder / "home").mkdir()
        return cls(folder / "home", wheel, index)

    def install(
        self, *more: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """`install.sh relay` as a user, which starts nothing."""
        arguments = ["--user", "--no-service", "--listen", f"127.0.0.1:{free_port()}"]
        done = subprocess.run(
            ["sh", str(SCRIPT_FILE), "relay", *arguments, "--wheel", str(self.wheel), *more],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={
                "HOME": str(self.home),
                "PATH": "/usr/bin:/bin",
                "PYTHON": os.path.realpath(sys.executable),
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.index),
                **(env or {}),
            },
        )
        return done.returncode, done.stdout + done.stderr

    def wai(self) -> str:
        """What the installed command prints; empty where there is none."""
        command = self.home / ".local/share/wai/venv/bin/wai"
        if not command.exists():
            return ""
        return subprocess.run([command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip, made once."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=True)
    return folder


@pytest.fixture
def box(tmp_path: Path, environment: Path) -> Box:
    made = Box.make(tmp_path)
    shutil.copytree(environment, made.home / ".local/share/wai/venv", symlinks=True)
    return made


def test_a_real_installation_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    made = Box.make(tmp_path)
    folder = HostileFolder.plant(tmp_path / "hostile", tmp_path / "imported")
    status, said = made.install(cwd=folder.path)
    assert (status, folder.imported) == (0, ""), said
    assert made.wai() == "wai with good\n"


def test_no_variable_of_pip_has_another_program_run_or_another_folder_written(
    box: Box, tmp_path: Path
) -> None:
    program, elsewhere, ran = tmp_path / "python", tmp_path / "elsewhere", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    folders = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_LOG", "PIP_REPORT")
    hostile = {name: str(elsewhere) for name in folders} | {"PIP_PYTHON": str(program)}
    status, said = box.install(env=hostile)
    assert (status, ran.exists(), elsewhere.exists()) == (0, False, False), said
    assert box.wai() == "wai with good\n"


def test_a_dependency_with_another_content_is_refused(box: Box) -> None:
    tiny_wheel(box.index, "dependency", "1.0", {"dependency.py": "VALUE = 'bad'\n"})
    status, said = box.install()
    assert (status, box.wai()) == (1, ""), said
    assert "pip could not install what wai needs" in said
    assert not (box.home / ".local/share/wai/venv/.wheel").exists()


def test_a_newer_dependency_is_left_alone(box: Box) -> None:
    tiny_wheel(box.index, "dependency", "1.1", {"dependency.py": "VALUE = 'newer'\n"})
    status, said = box.install()
    assert (status, box.wai()) == (0, "wai with good\n"), said


def test_another_version_is_taken_only_with_no_hashes(box: Box) -> None:
    (box.index / "dependency-1.0-py3-none-any.whl").unlink()
    tiny_wheel(box.index, "dependency", "1.1", {"dependency.py": "VALUE = 'newer'\n"})
    status, said = box.install()
    assert (status, "--no-hashes installs what the package index has" in said) == (1, True)
    status, said = box.install("--no-hashes")
    assert (status, box.wai()) == (0, "wai with newer\n"), said


def test_what_an_installation_without_hashes_left_is_replaced(box: Box) -> None:
    good = (box.index / "dependency-1.0-py3-none-any.whl").read_bytes()
    bad = tiny_wheel(box.index, "dependency", "1.0", {"dependency.py": "VALUE = 'bad'\n"})
    assert box.install("--no-hashes")[0] == 0
    assert box.wai() == "wai with bad\n"
    bad.write_bytes(good)
    (box.home / ".local/share/wai/venv/.wheel").write_text("another build")
    status, said = box.install()
    assert (status, box.wai()) == (0, "wai with good\n"), said


def test_an_sdist_where_a_wheel_is_missing_is_not_run(box: Box, tmp_path: Path) -> None:
    """Building one runs its code: `--only-binary :all:`."""
    source, ran = tmp_path / "dependency-1.0", tmp_path / "ran"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (box.index / "dependency-1.0-py3-none-any.whl").unlink()
    shutil.make_archive(str(box.index / "dependency-1.0"), "gztar", tmp_path, source.name)
    status, said = box.install()
    assert (status, ran.exists()) == (1, False), said


def test_a_wheel_without_hashes_says_what_to_do(tmp_path: Path, environment: Path) -> None:
    made = Box.make(tmp_path, lists_hashes=False)
    shutil.copytree(environment, made.home / ".local/share/wai/venv", symlinks=True)
    status, said = made.install()
    assert (status, "add --no-hashes, or take a newer one" in said) == (1, True)
    status, said = made.install("--no-hashes")
    assert (status, made.wai()) == (0, "wai with good\n"), said


def _pins(file: Path) -> dict[str, str]:
    """The versions that a list has, each with at least one hash."""
    entries = re.split(r"\n(?=\S)", file.read_text())
    pins = {}
    for entry in entries:
        if not entry.startswith("#"):
            pin = re.match(r"([a-z0-9_.-]+)==([^ ;\\]+)", entry)
            assert pin is not None, entry
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
            pins[pin[1].replace("_", "-")] = pin[2]
    return pins


def _check(requirement: str, pins: dict[str, str]) -> None:
    wanted = Requirement(requirement)
    pinned = pins.get(wanted.name.replace("_", "-").lower())
    assert pinned is not None, f"{requirement}: run `make lock`"
    assert Version(pinned) in wanted.specifier, f"{requirement}: run `make lock`"


def test_the_lists_are_up_to_date() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = _pins(LOCK)
    for requirement in project["project"]["dependencies"]:
        _check(requirement, pins)
    for requirement in project["build-system"]["requires"]:
        _check(requirement, _pins(ROOT / "relay/build.lock"))
    hook = (ROOT / "relay/web/hatch_build.py").read_text()
    node = re.search(r'^NODE_WHEEL: Final = "(.+)"', hook, re.MULTILINE)
    assert node is not None
    _check(node[1], _pins(ROOT / "relay/build-node.lock"))


def test_the_lists_have_no_address() -> None:
    for file in (LOCK, ROOT / "relay/build.lock", ROOT / "relay/build-node.lock"):
        assert not re.search(r"://|--(extra-)?index-url|--find-links", file.read_text()), file
