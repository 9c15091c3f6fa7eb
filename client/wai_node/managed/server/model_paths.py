"""Where a deployed model's files and its log lie on this node; how they are deleted. Blocking."""

from __future__ import annotations

import shutil
from pathlib import Path

from wai_node.managed.policy import ManagedSettings
from wai_node.managed.wanted import WantedModel

from .log_file import delete_log


class ModelPaths:
    """Paths by model, below the two folders of `settings`."""

    def __init__(self, settings: ManagedSettings) -> None:
        self._models, self._logs = settings.models_folder, settings.folder / "logs"

    def folder(self, model: WantedModel) -> Path:
        """Where its files are; nothing else is there."""
        publisher, name = model.repo.split("/", 1)
        return self._models / publisher / name / model.quant

    def file(self, model: WantedModel) -> Path:
        """What a server is given: the first part of a split model names the others."""
        return self.folder(model) / Path(model.paths[0]).name

    def log(self, model: WantedModel) -> Path:
        """What its servers print. No repository has two dashes in its name: none share a log."""
        return self._logs / f"{model.alias.replace('/', '--').replace(':', '--')}.log"

    def delete(self, model: WantedModel) -> None:
        """Leave nothing of it. Raises `OSError` where something can't be deleted."""
        folder = self.folder(model)
        if folder.exists():
            shutil.rmtree(folder)
        for above in folder.parents:
            if not above.is_relative_to(self._models) or above == self._models:
                break
            try:
                above.rmdir()
            except OSError:
                break  # another model is there, or it was never made
        delete_log(self.log(model))
