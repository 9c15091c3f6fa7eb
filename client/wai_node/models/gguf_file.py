"""Read what a GGUF file on this machine is: its header's first keys. Blocking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wai_protocol.errors import RequestError

from .draft import Draft
from .gguf_header import GgufHeader, HeaderReader, Value
from .layout import Layout, layout_of
from .projector import Projector, projector_of
from .shape import ModelShape, shape_from_metadata


def read_shape(path: Path) -> ModelShape:
    """Read the shape of a GGUF file. Raises `RequestError` if it can't be read."""
    return shape_from_metadata(read_metadata(path))


def read_projector(path: Path | None) -> Projector | None:
    """Read what a projector takes, if there is one. Raises `RequestError` if it can't be read."""
    if path is None:
        return None
    metadata = read_metadata(path)
    return projector_of(metadata, path.stat().st_size)


def read_header(path: Path) -> GgufHeader:
    """Read a whole header, of an adapter. Raises `RequestError` if it can't be read."""
    header = _read(path, whole=True).header
    if header is None:
        raise RequestError(f"{path.name} ends within its header")
    return header


def read_layout(paths: Sequence[Path], shape: ModelShape) -> Layout | None:
    """Read how the weights of a model's files are spread over its layers; None if that can't be
    told. Raises `RequestError` if a file can't be read."""
    tensors = [tensor for path in paths for tensor in read_header(path).tensors]
    return layout_of(tensors, shape.blocks)


def read_draft(path: Path | None) -> Draft | None:
    """Read what a draft model takes, if there is one. Raises `RequestError` if it can't be read."""
    return None if path is None else Draft(read_shape(path), path.stat().st_size)


def read_metadata(path: Path) -> Mapping[str, Value]:
    """Read a header's metadata up to its vocabulary. Raises `RequestError` if it can't be read."""
    return _read(path, advice="; deploy the model again").metadata


def _read(path: Path, *, whole: bool = False, advice: str = "") -> HeaderReader:
    """Read a header as far as its shape is told, or the `whole` of it, as far as it goes."""
    reader = HeaderReader()
    try:
        with path.open("rb") as file:
            while reader.header is None and (whole or not reader.reached_tokenizer):
                data = file.read(max(1 << 16, reader.needed_bytes))
                if not data:
                    break
                reader.receive_data(data)
    except OSError as error:
        raise RequestError(
            f"{path.name} can't be read on this node ({error.strerror}){advice}"
        ) from error
    return reader
