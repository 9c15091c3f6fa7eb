"""What other packages add by entry points: real metadata on the path, and what is wrong with it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from wai_transport.plugins import load_plugins

GROUP = "wai.tests"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def package(path: Path, name: str, entries: str, code: str = "VALUE = 1\n") -> None:
    """A package as pip leaves it: a module and its metadata."""
    module = name.replace("-", "_")
    (path / f"{module}.py").write_text(code)
    info = path / f"{module}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(entries)


def loaded() -> list[object]:
    found: list[object] = []

    def accept(plugin: object) -> None:
        if plugin == "odd":
            raise ValueError("It is odd.")
        found.append(plugin)

    load_plugins(GROUP, accept)
    return found


def test_objects_come_in_the_order_of_their_names(path: Path) -> None:
    entries = f"[{GROUP}]\nb = plug_order:B\na = plug_order:A\n[other]\nc = plug_order:C\n"
    package(path, "plug-order", entries, "A, B = 'first', 'second'\n")
    assert loaded() == ["first", "second"]


@pytest.mark.parametrize(
    ("target", "code", "says"),
    [
        ("plug_bad:VALUE", "raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("plug_bad:VALUE", "import sys; sys.exit('gone')", "SystemExit: gone"),
        ("plug_bad:VALUE", "def f(:", "SyntaxError"),
        ("plug_bad:VALUE", "VALUE = 'odd'", "ValueError: It is odd."),
        ("plug_bad:MISSING", "", "AttributeError"),
        ("plug_none:VALUE", "", "ModuleNotFoundError"),
        ("not a reference", "", "Error"),
    ],
)
def test_a_broken_one_is_named_in_the_log_and_the_others_are_loaded(
    path: Path, caplog: pytest.LogCaptureFixture, target: str, code: str, says: str
) -> None:
    package(path, "plug-bad", f"[{GROUP}]\nbad = {target}\n", code)
    package(path, "plug-good", f"[{GROUP}]\ngood = plug_good:VALUE\n", "VALUE = 'good'\n")
    with caplog.at_level(logging.ERROR, "wai.plugins"):
        assert loaded() == ["good"]
    [line] = caplog.messages
    assert "`bad`" in line
    assert "`plug-bad`" in line
    assert says in line


@pytest.mark.parametrize("entries", [f"[{GROUP}]\nno equals sign\n", "no group = here\n"])
def test_metadata_that_can_not_be_read_costs_its_own_package_only(path: Path, entries: str) -> None:
    package(path, "plug-unreadable", entries)
    package(path, "plug-fine", f"[{GROUP}]\nfine = plug_fine:VALUE\n", "VALUE = 'fine'\n")
    assert loaded() == ["fine"]


def test_a_package_that_is_there_twice_is_loaded_once(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = f"[{GROUP}]\ntwice = plug_twice:VALUE\n"
    package(path, "plug-twice", entries, "VALUE = 'old'\n")
    first = tmp_path_factory.mktemp("first")
    package(first, "plug-twice", entries, "VALUE = 'new'\n")
    monkeypatch.syspath_prepend(str(first))
    assert loaded() == ["new"]
