"""The engines that were installed in a node's data folder, and which one is used. Blocking.

Each lies in a folder of its own, `engines/NAME`, and stays until it is removed. The choice is a
file that is replaced by a rename; a running node looks at it (`stamp`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from wai_protocol.errors import RequestError, StoreError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.folder import DataFolder, FolderLock

from .manifest import version_key

FOLDER: Final = "engines"
CHOICE_FILE: Final = "choice.json"
ABOUT_FILE: Final = "engine.json"  # in an engine's folder, written last: without it there is none
PROGRAM: Final = "llama-server"
_LOCK: Final = "install"
_FRESH: Final = ".new-"  # folders that an install works in
_DOWNLOADS: Final = ".downloads"


class Choice(msgspec.Struct, frozen=True):
    """`used`: the engine's name, None for the first that is found. `before`: the one to go back to
    until the used one has served. `wanted`: the node is to install one as soon as it needs it.
    `refused`: engines that did not come up, with the reasons."""

    used: str | None = None
    before: str | None = None
    on_trial: bool = False
    wanted: bool = False
    refused: dict[str, str] = {}


class About(msgspec.Struct, frozen=True):
    """What an installed engine is: `version` in its own words, `program` relative to its folder,
    `sources` the SHA-256 of the archives that it came from."""

    version: str
    program: str
    sources: tuple[str, ...]


class EngineStore:
    """The engines of the node with the data folder `data`."""

    def __init__(self, data: Path) -> None:
        self.folder = data / FOLDER

    # -- what is there

    def names(self) -> list[str]:
        """Return the installed engines, newest first."""
        try:
            found = [path.parent.name for path in self.folder.glob(f"*/{ABOUT_FILE}")]
        except OSError:
            return []
        return sorted(
            (name for name in found if not name.startswith(".")), key=version_key, reverse=True
        )

    def about(self, name: str) -> About | None:
        """Return what an installed engine is; None if there is no such engine, or it is damaged."""
        if name != Path(name).name or name.startswith("."):
            return None
        try:
            text = (self.folder / name / ABOUT_FILE).read_bytes()
            found = read_json(text, About, ABOUT_FILE)
        except (OSError, ForeignJsonError):
            return None
        return found if os.access(self._program(name, found), os.X_OK) else None

    def program(self, name: str) -> Path | None:
        """Return the llama-server of an installed engine."""
        about = self.about(name)
        return None if about is None else self._program(name, about)

    def _program(self, name: str, about: About) -> Path:
        return self.folder / name / about.program

    # -- which one is used

    def choice(self) -> Choice:
        """Return the choice; the default if there is none, or the file is damaged."""
        try:
            return read_json((self.folder / CHOICE_FILE).read_bytes(), Choice, CHOICE_FILE)
        except (OSError, ForeignJsonError):
            return Choice()

    def stamp(self) -> tuple[int, ...]:
        """Return what differs once the choice was written anew."""
        try:
            found = (self.folder / CHOICE_FILE).stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ino

    def use(self, name: str | None) -> None:
        """Use `name` from now on, on trial until it has served; None: the first that is found.

        Raises `StoreError`.
        """
        kept = self.choice()
        refused = {n: why for n, why in kept.refused.items() if n != name}
        if name == kept.used:
            self._write(msgspec.structs.replace(kept, refused=refused, wanted=False))
            return
        self._write(Choice(name, before=kept.used, on_trial=True, refused=refused))

    def proven(self, name: str) -> None:
        """The engine `name` has served: if it is used, it is no longer on trial.

        Raises `StoreError`.
        """
        kept = self.choice()
        if kept.on_trial and kept.used == name:
            self._write(msgspec.structs.replace(kept, on_trial=False, before=None))

    def go_back(self, name: str, reason: str) -> str | None:
        """Use the engine of before `name` again, if that is used on trial; return what is used.

        Raises `StoreError`.
        """
        kept = self.choice()
        if not kept.on_trial or kept.used != name:
            return kept.used
        self._write(Choice(kept.before, refused={**kept.refused, name: reason[:500]}))
        return kept.before

    def want(self) -> None:
        """Note that the node is to install an engine. Raises `StoreError`."""
        self._write(msgspec.structs.replace(self.choice(), wanted=True))

    def _write(self, choice: Choice) -> None:
        self._open().write(CHOICE_FILE, msgspec.json.encode(choice) + b"\n")

    def _open(self) -> DataFolder:
        DataFolder.open(self.folder.parent)
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.folder} can't be made: {error.strerror}") from error
        return DataFolder(self.folder)

    # -- changes

    @contextmanager
    def installing(self) -> Iterator[None]:
        """Hold the lock of installs and removals. Raises `StoreError` if another holds it."""
        lock = FolderLock.acquire(
            self._open(),
            _LOCK,
            "another installation of an engine runs in this node's data folder; wait until it is"
            " done",
        )
        try:
            for left in self.folder.glob(f"{_FRESH}*"):  # of an install that was killed
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.release()

    def fresh(self) -> Path:
        """Make a folder to work in. Hold `installing`. Raises `StoreError`."""
        path = self.folder / f"{_FRESH}{os.urandom(4).hex()}"
        try:
            path.mkdir()
        except OSError as error:
            raise StoreError(f"{path} can't be made: {error.strerror}") from error
        return path

    def downloads(self, name: str) -> Path:
        """Return the folder for an engine's archives while they are downloaded."""
        return self.folder / _DOWNLOADS / name

    def put(self, name: str, fresh: Path, about: About) -> None:
        """Make what is in `fresh` the engine `name`, in place of one of that name.

        Hold `installing`. Processes of an engine that is replaced go on. Raises `StoreError`.
        """
        final, aside = self.folder / name, self.folder / f"{_FRESH}old-{name}"
        try:
            (fresh / ABOUT_FILE).write_bytes(msgspec.json.encode(about) + b"\n")
            if final.exists():
                final.rename(aside)
            fresh.rename(final)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(self.downloads(name), ignore_errors=True)
        except OSError as error:
            raise StoreError(
                f"the engine can't be put into {final} ({error.strerror}); free some space there"
            ) from error

    def remove(self, name: str) -> None:
        """Delete an installed engine. Raises `RequestError` for one that is not there or is used,
        `StoreError`."""
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise RequestError(f"no engine {name[:64]!r} is installed here; installed: {known}")
        choice = self.choice()
        if name == choice.used:
            raise RequestError(f"{name} is used; choose another one with `wai node engine use`")
        if choice.on_trial and name == choice.before:
            raise RequestError(
                f"{name} is what the node goes back to if {choice.used or 'the other'} does not"
                " come up; remove it once that has served a model"
            )
        with self.installing():
            aside = self.folder / f"{_FRESH}removed"
            try:
                (self.folder / name).rename(aside)
                shutil.rmtree(aside)
            except OSError as error:
                raise StoreError(f"{name} can't be deleted: {error.strerror}") from error
