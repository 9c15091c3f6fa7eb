"""Models in files on this machine, from folders that the node's owner lists. Blocking.

What is asked for is resolved, links included, and must then lie in one of these folders. The files
are only read: what is deployed from them is never changed, nor deleted with the deployment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wai_protocol.errors import AuthError, Fault, RequestError

from .catalogue import MAX_SPLITS, Quantisation, RemoteFile, Repository

PUBLISHER: Final = "local"
MAX_PATH_CHARS: Final = 300
_SUFFIX: Final = ".gguf"
_SPLIT: Final = re.compile(r"(?P<stem>.+)-00001-of-(?P<all>\d{5})\.gguf")
_STRANGE: Final = re.compile(r"[^\w.-]+")


def is_file_reference(text: str) -> bool:
    """Return whether `text` names a file of the node: `./NAME.gguf`, or an absolute path."""
    return text.startswith(("./", "/"))


def find_local(folders: Sequence[Path], reference: str) -> Repository:
    """Return the model in a file, as a repository with one quantisation.

    A relative path is looked for below each of `folders`. Raises `AuthError` for one outside them,
    `RequestError` for a file that is not there or no model.
    """
    if not folders:
        raise AuthError(
            "this node serves no files of its own; its owner lists the folders that may be used by"
            " `folders` below [deploy] in the node's settings",
            Fault.FORBIDDEN,
        )
    if len(reference) > MAX_PATH_CHARS or not reference.isprintable():
        raise RequestError(f"{reference[:80]!r} is no path of a file")
    path = _resolved(folders, reference)
    if path.suffix != _SUFFIX:
        raise RequestError(f"{path.name} is no GGUF file: its name does not end in {_SUFFIX}")
    parts = _parts(path)
    stem = _STRANGE.sub("-", path.name.removesuffix(_SUFFIX)).strip("-.")[:90] or "model"
    return Repository(
        f"{PUBLISHER}/{stem}",
        "",
        gated=False,
        quantisations=(Quantisation(stem, parts),),
        folder=path.parent,
    )


def check_local(folders: Sequence[Path], folder: Path, files: Sequence[RemoteFile]) -> None:
    """Raise `WaiError` unless the files are still allowed, there, and as large as they were."""
    for file in files:
        path = _resolved(folders, str(folder / file.path))
        if path.stat().st_size != file.size_bytes:
            raise RequestError(f"{path} was replaced by another file: deploy it again")


def _resolved(folders: Sequence[Path], reference: str) -> Path:
    for folder in folders:
        top = folder.resolve()
        path = (top / reference).resolve()
        if path.is_relative_to(top) and path.is_file():
            return path
    listed = ", ".join(str(folder) for folder in folders)
    if Path(reference).is_absolute() and not any(
        Path(reference).resolve().is_relative_to(folder.resolve()) for folder in folders
    ):
        raise AuthError(
            f"{reference} is in no folder that this node's owner lists: {listed}", Fault.FORBIDDEN
        )
    raise RequestError(f"there is no file {reference} on this node, in {listed}", Fault.NOT_FOUND)


def _parts(path: Path) -> tuple[RemoteFile, ...]:
    """Return the file, or all parts of a split one. Raises `RequestError` if one is missing."""
    split = _SPLIT.fullmatch(path.name)
    paths = [path]
    if split is not None:
        count = min(int(split["all"]), MAX_SPLITS)
        names = (f"{split['stem']}-{n:05d}-of-{split['all']}{_SUFFIX}" for n in range(1, count + 1))
        paths = [path.with_name(name) for name in names]
    found = []
    for part in paths:
        if not part.is_file():
            raise RequestError(f"{part.name} is missing beside {path.name}: the model is split")
        found.append(RemoteFile(part.name, part.stat().st_size, ""))
    return tuple(found)
