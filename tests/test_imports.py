"""The imports between our own files: no circles, and none hidden from the interpreter.

`lint-imports` holds the order of packages and rooms (`pyproject.toml`); this holds the files within
a room. Imports in functions and in `TYPE_CHECKING` blocks count as any other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = [
    ROOT / path
    for path in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]["wheel"]["packages"]
]


def modules_of(packages: list[Path]) -> dict[str, Path]:
    """The files of `packages` by the name that they are imported by."""
    found = {}
    for package in packages:
        for file in package.rglob("*.py"):
            parts = file.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(node: ast.AST, importer: str, *, is_package: bool) -> Iterator[str]:
    """The absolute names that an import statement asks for: modules, or what is in them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = importer.split(".")
            parents = parents[: len(parents) - node.level + is_package]
            base = ".".join((*parents, *([node.module] if node.module else [])))
        yield from (f"{base}.{alias.name}" for alias in node.names)


def module_of(name: str, modules: Mapping[str, Path]) -> str:
    """Our module that `name` is, or is in; "" if it is not ours."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def imports_of(within: ast.AST, importer: str, modules: Mapping[str, Path]) -> set[str]:
    """Our modules that are imported anywhere in `within`, which belongs to `importer`."""
    is_package = modules[importer].name == "__init__.py"
    found = {
        module_of(name, modules)
        for node in ast.walk(within)
        for name in imported(node, importer, is_package=is_package)
    }
    return found - {"", importer}


def circle_in(packages: list[Path]) -> list[str]:
    """Files that import each other in a circle, in order; none if there is no such circle."""
    modules = modules_of(packages)
    graph = {
        name: imports_of(ast.parse(file.read_text()), name, modules)
        for name, file in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def test_no_file_imports_itself_through_others() -> None:
    assert circle_in(PACKAGES) == []


def test_no_import_of_our_own_is_hidden_in_a_type_checking_block() -> None:
    modules = modules_of(PACKAGES)
    hidden = {
        (name, other)
        for name, file in modules.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for other in imports_of(node, name, modules)
    }
    assert hidden == set()


@pytest.mark.parametrize(
    "text",
    [
        "from .b import B",
        "from . import b",
        "from pkg import b",
        "import pkg.b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import B",
        "def late():\n    from pkg.b import B",
    ],
)
def test_a_circle_is_found_however_it_is_written(tmp_path: Path, text: str) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text(text)
    (package / "b.py").write_text("from .room import C")
    (package / "room").mkdir()
    (package / "room" / "__init__.py").write_text("from .c import C")
    (package / "room" / "c.py").write_text("from ..a import A")
    assert set(circle_in([package])) == {"pkg.a", "pkg.b", "pkg.room", "pkg.room.c"}


@pytest.mark.parametrize("program", ["wai_relay.main", "wai_node.main"])
def test_a_program_does_not_load_at_its_start_what_few_need(program: str) -> None:
    """Each of these takes 10 to 60 ms of CPU time, in every process that we start."""
    loaded_when_needed = ("starlette", "h2", "h11", "smtplib", "http.client", "importlib.metadata")
    code = f"import sys, {program}\nprint(*sys.modules.keys() & {set(loaded_when_needed)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_relay_that_has_run_for_a_while_has_all_its_modules() -> None:
    """Whoever installs another version puts its files in the place of those that are not loaded."""
    code = (
        "import sys\n"
        "from wai_relay.running import life\n"
        "life.load_rest()\n"
        "loaded = set(sys.modules)\n"
        "import wai_relay.admin.app, wai_relay.dashboard.app, wai_relay.http.h2\n"
        "print(*set(sys.modules) - loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("program", ["wai_relay.main", "wai_node.main", "wai_cli.main"])
def test_a_program_can_not_be_loaded_without_the_extras(program: str) -> None:
    extras = ("asyncpg", "opentelemetry", "xllamacpp")
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({extras!r}))\n"  # None: an import of it fails
        f"import {program}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
