"""Objects that other installed packages add to ours, through Python entry points.

A package that can't be loaded, or whose object is not accepted, is logged with its name and left
out: it must never keep a relay or a node from starting. It runs with all of our rights, as any
package does that is installed beside us; nothing is loaded that is not (docs/extending.md).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_log = logging.getLogger("wai.plugins")

MAX_REASON_CHARS: Final = 500  # of a plug-in's own error, in our log


def load_plugins(group: str, accept: Callable[[object], None]) -> None:
    """Load every object of the entry-point `group` and give it to `accept`, sorted by name.

    Reads the disk and runs the packages' code. `accept` raises on an object that is unfit.
    """
    if not _may_have(group):
        return
    for entry, package in sorted(_entry_points(group), key=lambda found: found[0].name):
        try:
            accept(entry.load())
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]
            _log.error(
                "the plug-in `%s` (%s) of the package `%s` is left out: %s",
                *(entry.name, group, package, reason),
            )
        else:
            _log.info("the plug-in `%s` (%s) of the package `%s`", entry.name, group, package)


def _entry_points(group: str) -> Iterator[tuple[EntryPoint, str]]:
    """The entry points of `group` with their packages' names. The first of two packages with the
    same name counts, as it does for `import`."""
    from importlib.metadata import distributions

    seen: set[str] = set()
    for distribution in distributions():
        try:
            found = [entry for entry in distribution.entry_points if entry.group == group]
            package = str(distribution.metadata["Name"]) if found else ""
        except Exception as error:
            # Somebody's broken metadata; importlib's own `entry_points` would fail as a whole.
            _log.warning("a package's entry points can't be read: %s", error)
            continue
        if found and package not in seen:
            seen.add(package)
            yield from ((entry, package) for entry in found)


def _may_have(group: str) -> bool:
    """Whether a package names the group. Few machines have a plug-in, and `importlib.metadata`,
    which reads every package's files, takes as long to load as all of a node's protocol."""
    name = group.encode()
    for folder in map(Path, sys.path):
        if folder.is_file():  # a zip archive: only importlib looks into it
            return True
        for file in folder.glob("*-info/entry_points.txt"):
            try:
                if name in file.read_bytes():
                    return True
            except OSError:
                return True  # importlib says what is wrong with it
    return False
