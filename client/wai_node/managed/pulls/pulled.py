"""Which models an inference server beside the node was told to fetch, kept on the disk.

The file is replaced by a rename. A broken one is moved aside and logged: what it named goes on
being served by its server, and is only no deployment any more.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

import msgspec

from wai_protocol.errors import StoreError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.folder import DataFolder

log = logging.getLogger("wai.node.managed")

FILE_NAME: Final = "pulled.json"
MAX_PULLED: Final = 64  # as many as a node has deployments of its own
SEPARATOR: Final = ":"


class PulledModel(msgspec.Struct, frozen=True):
    """One deployment on a server of the kind that is named by `word`.

    `name` is what was asked for, `model` the id that callers use, "" until it is there.
    `was_there`: the server had it before, so its files are not the deployment's to delete.
    """

    word: str
    name: str
    model: str = ""
    size_bytes: int = 0
    was_there: bool = False
    context_tokens: int | None = None
    idle_unload_s: float | None = None

    @property
    def alias(self) -> str:
        """Its name among the deployments."""
        return f"{self.word}{SEPARATOR}{self.name}"


class _File(msgspec.Struct):
    models: list[PulledModel]


class PulledModels:
    """The stored list. Methods block for some KB of disk I/O, and raise `StoreError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.models: dict[str, PulledModel] = {}

    def load(self) -> None:
        """Read the file, if there is one."""
        text = DataFolder(self._folder).read(FILE_NAME)
        if text is None:
            return
        try:
            found = read_json(text, _File, FILE_NAME).models[:MAX_PULLED]
        except ForeignJsonError as error:
            aside = self._folder / f"{FILE_NAME}.broken-{int(time.time())}"
            (self._folder / FILE_NAME).replace(aside)
            log.error("%s; it was moved to %s", error, aside.name)
            return
        self.models = {model.alias: model for model in found}

    def put(self, model: PulledModel) -> None:
        """Add or replace one."""
        if model.alias not in self.models and len(self.models) >= MAX_PULLED:
            raise StoreError(f"a node keeps at most {MAX_PULLED} of these; remove one first")
        self._save({**self.models, model.alias: model})

    def drop(self, alias: str) -> None:
        """Forget one."""
        self._save({name: model for name, model in self.models.items() if name != alias})

    def _save(self, models: dict[str, PulledModel]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._folder} can't be made: {error.strerror}") from error
        content = msgspec.json.encode(_File([*models.values()]))
        DataFolder(self._folder).write(FILE_NAME, content)
        self.models = models
