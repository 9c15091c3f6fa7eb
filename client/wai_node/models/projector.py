"""A vision projector: the `mmproj` file beside a model, which turns images into tokens. Pure.

Its memory was compared with what llama-server b10434 reports for encoders of LLaVA's kind: its
scratch memory is within 25 %, and the total with the language model's within 10 %. Other kinds may
compute larger images: the upper end of an estimate allows for four times as much.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

import msgspec

from wai_protocol.errors import Fault, RequestError

from .catalogue import RemoteFile
from .gguf_header import Value

NO_PROJECTOR: Final = "none"
# Precise enough for any image, and smaller than F32.
_PREFERRED: Final = ("F16", "FP16", "BF16", "Q8_0", "F32", "FP32")
_PRECISION: Final = re.compile(r"(?:^|[-._])((?:B?F|FP)\d+|Q\d\w*)$", re.IGNORECASE)
_F32_BYTES: Final = 4
_SLACK: Final = 1.08  # what was seen over the widest stage of a layer
_LARGER: Final = 4
_MAX_SIZE: Final = 1 << 16  # of an image's side, or a width


class Projector(msgspec.Struct, frozen=True):
    """Bytes of its weights and of its scratch memory, as estimated and at most."""

    weights: int
    compute: int
    compute_high: int


def projector_of(metadata: Mapping[str, Value], size_bytes: int) -> Projector:
    """Return the memory of a projector by its header; a rough guess if that lacks its sizes."""
    sizes = [
        _size(metadata, name)
        for name in ("image_size", "patch_size", "embedding_length", "feed_forward_length")
    ]
    image, patch, embedding, wide = sizes
    if not all(sizes):
        return Projector(size_bytes, size_bytes // 8, size_bytes // 2)
    tokens = (image // patch) ** 2 + 1
    compute = int(tokens * (wide + 3 * embedding) * _F32_BYTES * _SLACK)
    return Projector(size_bytes, compute, _LARGER * compute)


def choose_projector(
    projectors: Sequence[RemoteFile], wanted: str | None, model: RemoteFile
) -> RemoteFile | None:
    """Return the projector for `model`; None if there is none, or none is wanted.

    `wanted`: a file's name, or its precision, such as F16. Without it one in the model's own folder
    goes first, then F16, BF16, Q8_0 and F32 in this order, then the smallest. Raises
    `RequestError`, which lists what there is.
    """
    if wanted is not None and wanted.lower() == NO_PROJECTOR:
        return None
    if wanted is not None:
        for file in projectors:
            name = PurePosixPath(file.path).name
            if wanted.lower() in (name.lower(), file.path.lower(), _precision(file).lower()):
                return file
        names = ", ".join(PurePosixPath(file.path).name for file in projectors[:20]) or "none"
        raise RequestError(
            f"there is no projector {wanted[:80]!r}; the repository has: {names}", Fault.NOT_FOUND
        )
    folder = PurePosixPath(model.path).parent
    near = [file for file in projectors if PurePosixPath(file.path).parent == folder]
    return min(near or projectors, key=_rank, default=None)


def _rank(file: RemoteFile) -> tuple[int, int, str]:
    precision = _precision(file)
    place = _PREFERRED.index(precision) if precision in _PREFERRED else len(_PREFERRED)
    return place, file.size_bytes, file.path


def _precision(file: RemoteFile) -> str:
    """Return the end of a file's name, such as F16; "" if it says none."""
    found = _PRECISION.search(PurePosixPath(file.path).stem)
    return found[1].upper() if found else ""


def _size(metadata: Mapping[str, Value], name: str) -> int:
    value = metadata.get(f"clip.vision.{name}")
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_SIZE
    return value if good and isinstance(value, int) else 0
