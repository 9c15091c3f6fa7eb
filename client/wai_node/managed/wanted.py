"""Store on the disk which models this node is to serve, so that they come back after a restart.

The file is replaced by a rename, so that a crash leaves the old or the new one. A broken file is
moved aside and logged: a node without models is better than one that does not start.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from wai_node.models.placement import Placement, Share
from wai_protocol.errors import StoreError, WaiError
from wai_protocol.foreign_json import read_json

from .load_policy import ON_DEMAND, LoadPolicy
from .options import DEFAULT, ServeOptions

log = logging.getLogger("wai.node.managed")

FORMAT: Final = 1
MAX_MODELS: Final = 64  # each is a process; a box serves a handful
FILE_NAME: Final = "wanted.json"


class AddedFile(msgspec.Struct, frozen=True):
    """A file that is served with a model: a LoRA adapter or a draft model. `local`: the folder of
    the owner that it lies in, None: it is the hub's."""

    repo: str
    commit: str
    path: str
    size_bytes: int
    sha256: str
    local: str | None = None


class WantedModel(msgspec.Struct, frozen=True):
    """One deployed model.

    `alias` is its id for callers. `files` are file names in `folder`, which is relative to the
    models' folder; `sizes` and `sha256` are the hub's, in the order of `files`. `proven` holds the
    context per slot and the number of slots with which it was last served, `engine` the program
    and `proven_options` and `proven_placement` how. `placement`: where its layers are, None: the
    node has no GPU. `purpose`: chat, embedding or rerank.
    `mmproj`: path, size and SHA-256 of its projector. `local`: the folder of the owner that its
    files lie in, None: they are the hub's, and this node's to delete. `load`, `idle_unload_s` and
    `priority` say when it is in memory, `load_s` how long its last load took. `server`: "vllm", or
    "" for llama-server; `gpu_share`: what vLLM takes of its GPU's memory.
    """

    alias: str
    repo: str
    commit: str
    quant: str
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    sha256: tuple[str, ...]
    context_tokens: int
    slots: int
    idle_unload_s: float | None = None
    placement: Placement | None = None
    proven: tuple[int, int] | None = None
    correction: tuple[float, float, float] = (1.0, 1.0, 1.0)
    engine: tuple[str, ...] = ()
    purpose: str = "chat"
    options: ServeOptions = DEFAULT
    proven_options: ServeOptions = DEFAULT
    proven_placement: Placement | None = None
    mmproj: tuple[str, int, str] | None = None
    local: str | None = None
    server: str = ""
    gpu_share: float | None = None
    lora: AddedFile | None = None
    draft: AddedFile | None = None
    load: str = "keep_loaded"
    priority: int = 0
    load_s: float | None = None

    @property
    def policy(self) -> LoadPolicy:
        """When it is in memory."""
        return LoadPolicy(self.load, self.idle_unload_s, self.priority)

    @property
    def weights_bytes(self) -> int:
        """The size of the model's own files, and of what is added to its weights."""
        return sum(self.sizes) + (self.lora.size_bytes if self.lora else 0)

    @property
    def size_bytes(self) -> int:
        """The size of all its files together."""
        beside = (self.mmproj[1] if self.mmproj else 0) + (
            self.draft.size_bytes if self.draft else 0
        )
        return self.weights_bytes + beside


class Wanted:
    """The stored list, in a file in `folder`. Methods block for a few KB of disk I/O."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self.models: dict[str, WantedModel] = {}
        self.removing: dict[str, WantedModel] = {}
        """Removed models whose files may still exist; kept so that a crash does not leave them."""

    def load(self) -> None:
        """Read the file. One that can't be understood is kept under another name."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{self._path} can't be read: {error.strerror}") from error
        try:
            content = read_json(text, dict[str, Any], FILE_NAME)
            models = _parse(content, "models")
            removing = _parse(content, "removing") if "removing" in content else []
        except (WaiError, ValueError, KeyError, TypeError, AttributeError) as error:
            aside = self._path.with_name(f"{FILE_NAME}.broken-{int(time.time())}")
            self._path.replace(aside)
            log.error("%s can't be understood (%s); moved to %s", self._path, error, aside.name)
            return
        self.models = {model.alias: model for model in models}
        self.removing = {model.alias: model for model in removing}

    def put(self, model: WantedModel) -> None:
        """Add or replace a model, durably. Raises `StoreError`."""
        if model.alias not in self.models and len(self.models) >= MAX_MODELS:
            raise StoreError(f"a node serves at most {MAX_MODELS} models; remove one first")
        removing = {name: left for name, left in self.removing.items() if name != model.alias}
        self._save({**self.models, model.alias: model}, removing)

    def drop(self, alias: str) -> None:
        """Mark a model as removed, durably; its files are to be deleted. Raises `StoreError`."""
        models = dict(self.models)
        self._save(models, {**self.removing, alias: models.pop(alias)})

    def deleted(self, alias: str) -> None:
        """Forget a removed model whose files are deleted, durably. Raises `StoreError`."""
        self._save(self.models, {n: left for n, left in self.removing.items() if n != alias})

    def _save(self, models: dict[str, WantedModel], removing: dict[str, WantedModel]) -> None:
        content = {
            "format": FORMAT,
            "models": [msgspec.to_builtins(model) for model in models.values()],
            "removing": [msgspec.to_builtins(model) for model in removing.values()],
        }
        fresh = self._path.with_name(FILE_NAME + ".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("w") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the rename itself must survive a power cut
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreError(f"{self._path} can't be written: {error.strerror}") from error
        self.models, self.removing = models, removing


def _options(stored: dict[str, Any]) -> ServeOptions:
    lists: dict[str, Any] = {
        name: tuple(map(str, stored.pop(name, ()))) for name in ("engine_flags", "environment")
    }
    gpus = tuple(map(int, stored.pop("gpus", ())))
    return ServeOptions(**stored, gpus=gpus, **lists)


def _placement(stored: dict[str, Any] | None) -> Placement | None:
    if stored is None:
        return None
    shares = []
    for share in stored.get("shares", ()):
        number, device, layers = share.values() if isinstance(share, dict) else share
        shares.append(Share(int(number), str(device), int(layers)))
    return Placement(
        tuple(share for share in shares if share.layers), int(stored.get("cpu_moe", 0))
    )


def _parse(content: Any, part: str) -> list[WantedModel]:
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}")
    found = []
    for entry in content[part][:MAX_MODELS]:
        for name in ("paths", "sizes", "sha256", "correction"):
            entry[name] = tuple(entry[name])
        if entry.get("proven") is not None:
            entry["proven"] = (int(entry["proven"][0]), int(entry["proven"][1]))
        for name in ("options", "proven_options"):
            entry[name] = _options(entry.get(name, {}))
        layers = entry.pop("gpu_layers", None)  # stored before there was `placement`
        if layers is not None:
            entry["placement"] = entry["proven_placement"] = {"shares": [(0, "", layers)]}
        for name in ("placement", "proven_placement"):
            entry[name] = _placement(entry.get(name))
        if entry.get("mmproj") is not None:
            path, size, sha256 = entry["mmproj"]
            entry["mmproj"] = str(path), int(size), str(sha256)
        if entry.get("idle_unload_s") is not None:  # stored before there was `load`
            entry["load"] = ON_DEMAND
        for name in ("lora", "draft"):
            if entry.get(name) is not None:
                entry[name] = AddedFile(**entry[name])
        entry["engine"] = tuple(map(str, entry.get("engine", ())))
        model = WantedModel(**entry)
        _ = model.policy  # raises if it makes no sense
        if not len(model.paths) == len(model.sizes) == len(model.sha256) > 0:
            raise ValueError(f"{model.alias!r} has no files")
        found.append(model)
    return found
