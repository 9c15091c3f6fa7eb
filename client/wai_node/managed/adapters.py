"""LoRA adapters of deployments: found on the hub or on this machine, checked by their model."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from wai_node.models.adapter import MAX_ADAPTER_BYTES, check_adapter
from wai_node.models.catalogue import Quantisation, RemoteFile, Repository, parse_reference
from wai_node.models.gguf_file import read_header
from wai_node.models.hub import Hub
from wai_node.models.local_files import find_local, is_file_reference
from wai_node.models.shape import ModelShape
from wai_protocol.errors import RequestError

from .policy import ManagedSettings
from .wanted import LoraAdapter


class Adapters:
    """Finds adapters by what people write. Raises `WaiError` for one that can't be used."""

    def __init__(self, hub: Hub, settings: ManagedSettings) -> None:
        self._hub, self._settings = hub, settings

    async def find(self, reference: str, shape: ModelShape) -> LoraAdapter:
        """Return the adapter that `reference` names, as publisher/name[:QUANT] or ./FILE.gguf, for
        a model of this shape."""
        if is_file_reference(reference):
            folders = self._settings.file_folders
            repository = await anyio.to_thread.run_sync(find_local, folders, reference)
            quant = repository.choose(None)
        else:
            repo, wanted = parse_reference(reference)
            self._settings.check_publisher(repo)
            repository = await self._hub.repository(repo)
            quant = repository.choose(wanted)
        file = _one_file(repository, quant)
        if repository.folder is not None:
            header = await anyio.to_thread.run_sync(read_header, repository.folder / file.path)
        else:
            header = await self._hub.header(repository, file)
        check_adapter(f"{repository.name}:{quant.name}", header, shape)
        local = None if repository.folder is None else str(repository.folder)
        size = file.size_bytes
        return LoraAdapter(repository.name, repository.commit, file.path, size, file.sha256, local)


def remote_file(adapter: LoraAdapter) -> RemoteFile:
    """The adapter's file, as the hub listed it."""
    return RemoteFile(adapter.path, adapter.size_bytes, adapter.sha256)


def repository_of(adapter: LoraAdapter) -> Repository:
    """The repository that it comes from."""
    return Repository(adapter.repo, adapter.commit, gated=False, quantisations=())


def folder_of(adapter: LoraAdapter, model_folder: Path) -> Path:
    """Where it lies: a hub's in a folder of its own below the model's: names can't clash."""
    return model_folder / "lora" if adapter.local is None else Path(adapter.local)


def _one_file(repository: Repository, quant: Quantisation) -> RemoteFile:
    if len(quant.files) != 1 or quant.size_bytes > MAX_ADAPTER_BYTES:
        raise RequestError(f"{repository.name}:{quant.name} is no LoRA adapter, but a whole model")
    return quant.files[0]
