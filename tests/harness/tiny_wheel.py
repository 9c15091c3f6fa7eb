"""Wheels of a few lines, for tests in which the real pip installs from a folder."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def tiny_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    *,
    requires: Sequence[str] = (),
    command: str = "",
) -> Path:
    """A wheel in `folder`; `command` is MODULE:FUNCTION of a command with the wheel's name."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in requires)
    whole = {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": _WHEEL}
    if command:
        whole[f"{info}/entry_points.txt"] = f"[console_scripts]\n{name} = {command}\n"
    whole[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*whole, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in whole.items():
            archive.writestr(file, text)
    return path


def locked(*wheels: Path) -> str:
    """A list of requirements with the hashes of these wheels, as `make lock` writes it."""
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest}\n")
    return "".join(lines)
