"""The paths of a deployed model's files and log on this node, and their deletion. Blocking."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from wai_node.managed.policy import ManagedSettings
from wai_node.managed.wanted import AddedFile, WantedModel

from .log_file import delete_log


class ModelFiles(msgspec.Struct, frozen=True):
    """The files that a server loads: the model's parts, of which the first names the others, its
    projector, its LoRA adapter and its draft model."""

    parts: tuple[Path, ...]
    projector: Path | None = None
    adapter: Path | None = None
    draft: Path | None = None

    @property
    def model(self) -> Path:
        """The file to load."""
        return self.parts[0]


class ModelPaths:
    """Computes a model's paths below the two folders of `settings`."""

    def __init__(self, settings: ManagedSettings) -> None:
        self._models, self._logs = settings.models_folder, settings.folder / "logs"

    def folder(self, model: WantedModel) -> Path:
        """Return the folder of its files, which holds nothing else, unless they are local."""
        if model.local is not None:
            return Path(model.local)
        publisher, name = model.repo.split("/", 1)
        return self._models / publisher / name / model.quant

    def files(self, model: WantedModel) -> ModelFiles:
        """Return the files that its server loads."""
        folder = self.folder(model)
        return ModelFiles(
            tuple(folder / Path(path).name for path in model.paths),
            None if model.mmproj is None else folder / Path(model.mmproj[0]).name,
            self._added(model, model.lora, "lora"),
            self._added(model, model.draft, "draft"),
        )

    def added_folder(self, model: WantedModel, added: AddedFile, kind: str) -> Path:
        """Where a file lies that is served with the model: the hub's in a folder of its own below
        the model's, so that names can't clash."""
        return self.folder(model) / kind if added.local is None else Path(added.local)

    def _added(self, model: WantedModel, added: AddedFile | None, kind: str) -> Path | None:
        if added is None:
            return None
        return self.added_folder(model, added, kind) / Path(added.path).name

    def log(self, model: WantedModel) -> Path:
        """Return the log of its servers, distinct because no repository's name contains `--`."""
        return self._logs / f"{model.alias.replace('/', '--').replace(':', '--')}.log"

    def delete(self, model: WantedModel) -> None:
        """Delete its files, its log, and folders that are then empty. Raises `OSError`.

        Local files are the owner's, and stay.
        """
        if model.local is not None:
            delete_log(self.log(model))
            return
        folder = self.folder(model)
        if folder.exists():
            shutil.rmtree(folder)
        for above in folder.parents:
            if not above.is_relative_to(self._models) or above == self._models:
                break
            try:
                above.rmdir()
            except OSError:
                break  # it holds another model, or was never made
        delete_log(self.log(model))
