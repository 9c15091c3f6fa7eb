"""Group a repository's files into quantisations, and choose one.

Pure. File names are untrusted: those that would leave the models' folder are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from wai_protocol.errors import Fault, RequestError

from .model_config import ModelConfig

MAX_FILES: Final = 10_000  # of one repository; the largest have a few hundred
MAX_SPLITS: Final = 512
MAX_FILE_BYTES: Final = 1 << 50  # a petabyte: a larger size is false, and sums stay below 64 bits
# publisher/name, as the hub allows it; a leading dot or dash could become a path or an option
_REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SPLIT: Final = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<all>\d{5})$")
_QUANT: Final = re.compile(
    r"(?:^|[-._])(?P<quant>(?:UD-)?(?:IQ\d\w*|Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4|BF16|F16|FP16|F32|FP32))$",
    re.IGNORECASE,
)
_PROJECTOR: Final = "mmproj"
_NO_MODEL: Final = (_PROJECTOR, "imatrix")  # projectors and calibration data, no language models
_LAYERS: Final = "mtp-"  # layers that predict more tokens, beside the model that they belong to
_DRAFT: Final = re.compile(r"(?:^|[-._/])draft(?:[-._/]|$)", re.IGNORECASE)
MAX_PROJECTORS: Final = 64  # of one repository; some have ten
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class RemoteFile(msgspec.Struct, frozen=True):
    """One file of a repository; `sha256` is the hex digest that the hub states."""

    path: str
    size_bytes: int
    sha256: str


class Quantisation(msgspec.Struct, frozen=True):
    """One variant of a model, with its files in order (several if split); named like `Q4_K_M`."""

    name: str
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size_bytes for file in self.files)


class Repository(msgspec.Struct, frozen=True):
    """A repository at one commit; files are fetched at it, so that two versions are never mixed.
    `projectors`: those that let its models see images. `drafts`: small models that draft for the
    others. `incomplete`: quantisations that lack parts, each with which. `folder`: where its files
    lie on this machine, None: on the hub. `config`: what vLLM's models say of themselves, None:
    GGUF files."""

    name: str
    commit: str
    gated: bool
    quantisations: tuple[Quantisation, ...]
    projectors: tuple[RemoteFile, ...] = ()
    incomplete: tuple[tuple[str, str], ...] = ()
    drafts: tuple[RemoteFile, ...] = ()
    folder: Path | None = None
    config: ModelConfig | None = None

    def choose(self, wanted: str | None) -> Quantisation:
        """Return the quantisation named `wanted` (case-insensitive).

        None: Q4_K_M, Q4_0, Q8_0 or the smallest, in this order. Raises `RequestError`, which lists
        what there is.
        """
        by_name = {quant.name.upper(): quant for quant in self.quantisations}
        if wanted:
            found = by_name.get(wanted.upper())
            if found is None:
                for name, lacks in self.incomplete:
                    if name.upper() == wanted.upper():
                        raise self._lacks(name, lacks)
                names = ", ".join(quant.name for quant in self.quantisations) or "none"
                raise RequestError(
                    f"{self.name} has no quantisation {wanted[:64]!r}; it has: {names}",
                    Fault.NOT_FOUND,
                )
            return found
        for name in ("Q4_K_M", "Q4_0", "Q8_0"):
            if name in by_name:
                return by_name[name]
        if not self.quantisations and self.incomplete:
            raise self._lacks(*self.incomplete[0])
        if not self.quantisations:
            raise RequestError(
                f"{self.name} has no GGUF file with a known checksum; choose a repository whose "
                "name ends in -GGUF",
                Fault.NOT_FOUND,
            )
        return min(self.quantisations, key=lambda quant: quant.size_bytes)

    def _lacks(self, name: str, lacks: str) -> RequestError:
        return RequestError(
            f"{self.name} can't be deployed: its {name} lacks {lacks}; choose another quantisation"
            " or repository",
            Fault.NOT_FOUND,
        )


def is_repo(name: object) -> bool:
    """Return whether `name` is a valid repository name."""
    if not isinstance(name, str) or _REPO.fullmatch(name) is None:
        return False
    return ".." not in name and "--" not in name


def check_repo(name: str) -> str:
    """Return `name` if it is a valid repository name. Raises `RequestError` otherwise."""
    if not is_repo(name):
        raise RequestError(
            f"{name[:100]!r} is not a repository; write publisher/name, as in "
            "bartowski/SmolLM2-135M-Instruct-GGUF"
        )
    return name


def parse_reference(text: str) -> tuple[str, str | None]:
    """Split `publisher/name[:QUANT]` into repository and quantisation. Raises `RequestError`."""
    repo, _, quant = text.partition(":")
    return check_repo(repo), quant or None


def group_files(files: Iterable[RemoteFile]) -> tuple[Quantisation, ...]:
    """Return the quantisations that `files` form, smallest first, without incomplete splits.

    Two sets of the same quantisation (for example in two folders) are named by their files.
    """
    sets, totals = _sets(files)
    complete = {
        stem: tuple(parts[i] for i in sorted(parts))
        for stem, parts in sets.items()
        if totals[stem] <= MAX_SPLITS and set(parts) == set(range(1, totals[stem] + 1))
    }
    taken: set[str] = set()
    found = []
    for stem, parts in complete.items():
        base, name = PurePosixPath(stem).name, _name_of(stem)
        if name in taken:
            name = base if base not in taken else stem
        taken.add(name)
        found.append(Quantisation(name, parts))
    return tuple(sorted(found, key=lambda quant: (quant.size_bytes, quant.name)))


def find_incomplete(files: Iterable[RemoteFile]) -> tuple[tuple[str, str], ...]:
    """Return the quantisations among `files` that lack parts, each with the first that it lacks."""
    sets, totals = _sets(files)
    found = []
    for stem, parts in sets.items():
        total = totals[stem]
        missing = next((part for part in range(1, total + 1) if part not in parts), None)
        if missing is not None and total <= MAX_SPLITS:
            found.append((_name_of(stem), f"part {missing} of {total}"))
    return tuple(found)


def _sets(
    files: Iterable[RemoteFile],
) -> tuple[dict[str, dict[int, RemoteFile]], dict[str, int]]:
    """Return the parts of each model among `files` by their numbers, and how many it has."""
    sets: dict[str, dict[int, RemoteFile]] = {}
    totals: dict[str, int] = {}
    models = _models(files)
    drafts = set(_drafts(models))
    for file in models:
        if file in drafts:
            continue
        stem, part, total = _stem(file), 1, 1
        if split := _SPLIT.match(stem):
            stem, part, total = split["stem"], int(split["part"]), int(split["all"])
        sets.setdefault(stem, {})[part] = file
        totals[stem] = total
    return sets, totals


def _name_of(stem: str) -> str:
    """The quantisation in a file's name, such as Q4_K_M, or else the name."""
    base = PurePosixPath(stem).name
    match = _QUANT.search(base)
    return match["quant"].upper() if match else base


def find_drafts(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the draft models among `files`, the smallest first: single files that are called so,
    beside models that are not."""
    found = [file for file in _drafts(_models(files)) if not _SPLIT.match(_stem(file))]
    return tuple(sorted(found, key=lambda file: file.size_bytes))


def _drafts(models: list[RemoteFile]) -> list[RemoteFile]:
    found = [file for file in models if _DRAFT.search(file.path)]
    return found if len(found) < len(models) else []


def _models(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return those of `files` that are language models, by their names."""
    return [
        file
        for file in list(files)[:MAX_FILES]
        if _safe(file)
        and not any(word in PurePosixPath(file.path).name.lower() for word in _NO_MODEL)
        and not PurePosixPath(file.path).name.lower().startswith(_LAYERS)
    ]


def _stem(file: RemoteFile) -> str:
    return str(PurePosixPath(file.path).with_suffix(""))


def find_projectors(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the vision projectors among `files`."""
    found = [
        file
        for file in list(files)[:MAX_FILES]
        if _PROJECTOR in PurePosixPath(file.path).name.lower() and _safe(file)
    ]
    return tuple(found[:MAX_PROJECTORS])


def _safe(file: RemoteFile) -> bool:
    path = PurePosixPath(file.path)
    return (
        path.suffix == ".gguf"
        and not path.is_absolute()
        and ".." not in path.parts
        and not any(part.startswith((".", "-")) for part in path.parts)
        and "\\" not in file.path
        and file.path.isprintable()
        and len(file.path) <= 512
        and 0 < file.size_bytes <= MAX_FILE_BYTES
        and _SHA256.fullmatch(file.sha256) is not None
    )
