"""Files that are served with a model: LoRA adapters and draft models, found on the hub or on this
machine, and checked by their model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import anyio.to_thread

from wai_node.models.adapter import MAX_ADAPTER_BYTES, check_adapter
from wai_node.models.catalogue import Quantisation, RemoteFile, Repository, parse_reference
from wai_node.models.draft import NO_DRAFT, Draft, check_draft
from wai_node.models.gguf_file import read_header, read_metadata
from wai_node.models.gguf_header import Value
from wai_node.models.hub import Hub
from wai_node.models.local_files import find_local, is_file_reference
from wai_node.models.shape import ModelShape, shape_from_metadata
from wai_protocol.errors import RequestError

from .policy import ManagedSettings
from .wanted import AddedFile

log = logging.getLogger("wai.node.managed")


class Adapters:
    """Finds such files by what people write. Raises `WaiError` for one that can't be used."""

    def __init__(self, hub: Hub, settings: ManagedSettings) -> None:
        self._hub, self._settings = hub, settings

    async def find(self, reference: str, shape: ModelShape) -> AddedFile:
        """Return the adapter that `reference` names, as publisher/name[:QUANT] or ./FILE.gguf, for
        a model of this shape."""
        repository, quant = await self._look(reference)
        if len(quant.files) != 1 or quant.size_bytes > MAX_ADAPTER_BYTES:
            raise RequestError(
                f"{repository.name}:{quant.name} is no LoRA adapter, but a whole model"
            )
        file = quant.files[0]
        if repository.folder is not None:
            header = await anyio.to_thread.run_sync(read_header, repository.folder / file.path)
        else:
            header = await self._hub.header(repository, file)
        check_adapter(f"{repository.name}:{quant.name}", header, shape)
        return _added(repository, file)

    async def find_draft(
        self, reference: str | None, repository: Repository, quant: Quantisation
    ) -> tuple[AddedFile, Draft] | None:
        """Return the draft model of a model: the one that `reference` names, None: the one that
        the model's repository offers, "none": none."""
        if reference is None:
            return await self._offered(repository, quant)
        if reference.lower() == NO_DRAFT:
            return None
        source, drafts = await self._look(reference)
        if len(drafts.files) != 1:
            raise RequestError(
                f"{source.name}:{drafts.name} has {len(drafts.files)} files; a draft model is a"
                " small one, of one file"
            )
        return await self._checked(source, drafts.files[0], repository, quant)

    async def draft_of(self, added: AddedFile | None) -> Draft | None:
        """Return what the draft model of a deployment takes, if it has one."""
        if added is None:
            return None
        metadata = await self._metadata(repository_of(added), remote_file(added))
        return Draft(shape_from_metadata(metadata), added.size_bytes)

    async def _offered(
        self, repository: Repository, quant: Quantisation
    ) -> tuple[AddedFile, Draft] | None:
        for file in repository.drafts[:1]:
            try:
                return await self._checked(repository, file, repository, quant)
            except RequestError as error:
                log.info("%s: its repository's draft model is not used: %s", quant.name, error)
        return None

    async def _checked(
        self, source: Repository, file: RemoteFile, repository: Repository, quant: Quantisation
    ) -> tuple[AddedFile, Draft]:
        draft = await self._metadata(source, file)
        shape = shape_from_metadata(draft)
        model = await self._metadata(repository, quant.files[0])
        check_draft(f"{source.name}/{Path(file.path).name}", draft, model, shape)
        return _added(source, file), Draft(shape, file.size_bytes)

    async def _look(self, reference: str) -> tuple[Repository, Quantisation]:
        if is_file_reference(reference):
            folders = self._settings.file_folders
            repository = await anyio.to_thread.run_sync(find_local, folders, reference)
            return repository, repository.choose(None)
        repo, wanted = parse_reference(reference)
        self._settings.check_publisher(repo)
        repository = await self._hub.repository(repo)
        return repository, repository.choose(wanted)

    async def _metadata(self, repository: Repository, file: RemoteFile) -> Mapping[str, Value]:
        if repository.folder is not None:
            return await anyio.to_thread.run_sync(read_metadata, repository.folder / file.path)
        return await self._hub.metadata(repository, file)


def _added(repository: Repository, file: RemoteFile) -> AddedFile:
    local = None if repository.folder is None else str(repository.folder)
    size = file.size_bytes
    return AddedFile(repository.name, repository.commit, file.path, size, file.sha256, local)


def remote_file(added: AddedFile) -> RemoteFile:
    """The file, as the hub listed it."""
    return RemoteFile(added.path, added.size_bytes, added.sha256)


def repository_of(added: AddedFile) -> Repository:
    """The repository that it comes from."""
    folder = None if added.local is None else Path(added.local)
    return Repository(added.repo, added.commit, gated=False, quantisations=(), folder=folder)
