"""Read what a GGUF file on this machine is: its header's first keys. Blocking."""

from __future__ import annotations

from pathlib import Path

from wai_protocol.errors import RequestError

from .gguf_header import HeaderReader
from .shape import ModelShape, shape_from_metadata


def read_shape(path: Path) -> ModelShape:
    """Read the shape of a GGUF file. Raises `RequestError` if it can't be read."""
    reader = HeaderReader()
    try:
        with path.open("rb") as file:
            while reader.header is None and not reader.reached_tokenizer:
                data = file.read(max(1 << 16, reader.needed_bytes))
                if not data:
                    break
                reader.receive_data(data)
    except OSError as error:
        raise RequestError(
            f"{path.name} can't be read on this node ({error.strerror}); deploy the model again"
        ) from error
    return shape_from_metadata(reader.metadata)
