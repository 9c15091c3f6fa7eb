"""Serve the installer script and the relay's own software to machines that become nodes."""

from .one_line import one_line
from .pages import InstallerPages

__all__ = ["InstallerPages", "one_line"]
