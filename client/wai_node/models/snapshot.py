"""A repository of safetensors for vLLM: which of its files are needed, at one commit.

Only data is taken: no Python, no pickles. Large files have a SHA-256 on the hub; the small ones, of
which the hub tells git's own hash, are read, checked by that, and known by their SHA-256 then.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, Protocol

import msgspec
from msgspec import structs

from wai_protocol.errors import Fault, RequestError, TransportError
from wai_protocol.foreign_json import read_json

from .catalogue import MAX_FILE_BYTES, Quantisation, RemoteFile, Repository
from .model_config import read_config

NAME: Final = "safetensors"
CONFIG: Final = "config.json"
MAX_WEIGHTS: Final = 512  # files; the largest models have some 160
MAX_SMALL_FILES: Final = 32
MAX_SMALL_BYTES: Final = 12 << 20  # the hub takes larger ones as LFS files only
_WEIGHTS: Final = re.compile(r"[\w-][\w.-]{0,120}\.safetensors", re.A)
_SMALL: Final = re.compile(
    r"[\w-][\w.-]{0,120}\.(?:json|jinja)|(?:merges|vocab)\.txt|[\w-]{1,60}\.model|tokenizer[\w.-]{0,60}",
    re.A,
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class ListedFile(msgspec.Struct, frozen=True):
    """A file as the hub lists it: with a SHA-256 if it is a large one, else with git's hash."""

    path: str
    size_bytes: int
    sha256: str | None
    blob: str


class Listing(msgspec.Struct, frozen=True):
    """A repository's files at one commit."""

    name: str
    commit: str
    gated: bool
    files: tuple[ListedFile, ...]


class Reads(Protocol):
    """What is needed of a hub (`hub.Hub`)."""

    async def listing(self, name: str) -> Listing:
        """A repository's files. Raises `WaiError`."""

    async def read_small(self, repository: Repository, file: RemoteFile) -> bytes:
        """A small file's content. Raises `WaiError`."""


async def snapshot(hub: Reads, name: str) -> Repository:
    """Return a repository for vLLM, with one quantisation and what its config says.

    Raises `WaiError`: unknown, gated, unreachable, without safetensors, damaged.
    """
    listing = await hub.listing(name)
    weights, small = needed(listing)
    bare = Repository(listing.name, listing.commit, listing.gated, ())
    files, config = list(weights), b""
    for listed in small:
        size, sha256 = listed.size_bytes, listed.sha256
        if sha256 is None or listed.path == CONFIG:
            content = await hub.read_small(bare, RemoteFile(listed.path, size, ""))
            _check(listed, content)
            size, sha256 = len(content), hashlib.sha256(content).hexdigest()
            config = content if listed.path == CONFIG else config
        files.append(RemoteFile(listed.path, size, sha256))
    told = read_json(config, dict[str, Any], f"{CONFIG} of {name}")
    return structs.replace(
        bare, quantisations=(Quantisation(NAME, tuple(files)),), config=read_config(told)
    )


def needed(listing: Listing) -> tuple[tuple[RemoteFile, ...], tuple[ListedFile, ...]]:
    """Return the weights, and the small files beside them. Raises `RequestError`."""
    weights, small = [], []
    for file in listing.files:
        if not 0 < file.size_bytes <= MAX_FILE_BYTES:
            continue
        if _WEIGHTS.fullmatch(file.path) and _SHA256.fullmatch(file.sha256 or ""):
            weights.append(RemoteFile(file.path, file.size_bytes, file.sha256 or ""))
        elif _SMALL.fullmatch(file.path) and file.size_bytes <= MAX_SMALL_BYTES:
            small.append(file)
    # Mistral's repositories have the weights twice; the sharded ones are those of config.json.
    sharded = [file for file in weights if re.match(r"model-\d", file.path)]
    chosen = sharded or [f for f in weights if f.path == "model.safetensors"] or weights
    if not chosen or not any(file.path == CONFIG for file in small):
        raise RequestError(
            f"{listing.name} has no safetensors with a {CONFIG}; for a GGUF repository leave"
            " --engine vllm out",
            Fault.NOT_FOUND,
        )
    if len(chosen) > MAX_WEIGHTS or len(small) > MAX_SMALL_FILES:
        raise RequestError(f"{listing.name} has more files than a model has")
    return tuple(sorted(chosen, key=lambda f: f.path)), tuple(sorted(small, key=lambda f: f.path))


def weights_bytes(paths: tuple[str, ...], sizes: tuple[int, ...]) -> int:
    """Return the size of the weights among a model's files."""
    return sum(size for path, size in zip(paths, sizes, strict=True) if _WEIGHTS.fullmatch(path))


def _check(listed: ListedFile, content: bytes) -> None:
    if listed.sha256 is not None:
        good = hashlib.sha256(content).hexdigest() == listed.sha256
    else:
        head = b"blob %d\0" % len(content)
        good = hashlib.sha1(head + content, usedforsecurity=False).hexdigest() == listed.blob
    if not good:
        raise TransportError(
            f"{listed.path} arrived damaged: its hash is not the one that the hub states; try"
            " again",
            Fault.UPSTREAM_BROKE,
        )
