"""Which version this is: the installed distribution's."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _installed() -> str:
    try:
        return version("wai")
    except PackageNotFoundError:
        return "0"


VERSION: Final = _installed()
