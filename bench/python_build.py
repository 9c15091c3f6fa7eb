"""Which build of Python the figures are from: a build without PGO is a tenth slower."""

from __future__ import annotations

import platform
import sysconfig


def python_build() -> str:
    """Return the version, how it was optimised, and the compiler."""
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    profiled = "with PGO" if "--enable-optimizations" in arguments else "without PGO"
    return f"Python {platform.python_version()} {profiled}, {platform.python_compiler()}"
