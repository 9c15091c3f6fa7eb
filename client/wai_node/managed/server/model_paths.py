"""The paths of a deployed model's files and log on this node, and their deletion. Blocking."""

from __future__ import annotations

import shutil
from pathlib import Path

from wai_node.managed.policy import ManagedSettings
from wai_node.managed.wanted import WantedModel

from .log_file import delete_log


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

    def file(self, model: WantedModel) -> Path:
        """Return the file to load; the first part of a split model names the others."""
        return self.folder(model) / Path(model.paths[0]).name

    def projector(self, model: WantedModel) -> Path | None:
        """Return the projector to load, if the model has one."""
        return None if model.mmproj is None else self.folder(model) / Path(model.mmproj[0]).name

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
