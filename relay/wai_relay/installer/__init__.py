"""What a new machine gets from a relay: the installer, and the software that the relay runs."""

from .one_line import one_line
from .pages import InstallerPages

__all__ = ["InstallerPages", "one_line"]
