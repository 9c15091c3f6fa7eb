"""Parse the header of a GGUF file from its first bytes (versions 2 and 3, little-endian).

Sans-I/O: `HeaderReader` takes the file's bytes in order, and says how many more it needs at least.
It keeps what an estimate needs (scalars, short arrays, every tensor's shape and type), and skips
the rest (such as a vocabulary). Files are untrusted: every count and length is checked against a
limit before anything is allocated. Tensor data is not read.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Mapping
from typing import Final

import msgspec

from wai_protocol.errors import Fault, RequestError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)  # 1 had 32-bit counts, and was used for a few weeks of 2023
MAX_KEYS: Final = 4096  # real files have 20-60
MAX_TENSORS: Final = 65536  # the largest mixtures of experts have some 2,000
MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS
MAX_KEY_BYTES: Final = 65535  # what the GGUF specification allows
MAX_TENSOR_NAME_BYTES: Final = 256  # GGML_MAX_NAME is 64 (128 in forks)
MAX_STRING_BYTES: Final = 4 << 20  # chat templates reach 100 KB
MAX_ARRAY_ITEMS: Final = 8 << 20  # vocabularies reach 262,144, their merges twice that
MAX_KEPT_ITEMS: Final = 4096  # arrays by layer are kept; a vocabulary is only counted
MAX_KEPT_STRING_BYTES: Final = 4096  # names and licences are kept; a chat template is cut to this
MAX_HEADER_BYTES: Final = 256 << 20  # the largest vocabularies with merges take some 20 MiB
MAX_NESTING: Final = 1  # no known file has arrays of arrays; one level is skipped, two are refused
DEFAULT_ALIGNMENT: Final = 32

Scalar = int | float | bool | str


class LongArray(msgspec.Struct, frozen=True):
    """An array that was skipped; only its number of items is kept."""

    count: int


Value = Scalar | tuple[Scalar, ...] | LongArray

_STRING, _ARRAY = 8, 9  # type numbers of the GGUF specification, as are the keys below
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")

# ggml type → (weights in a block, bytes of a block), as ggml.c lays the blocks out
GGML_BLOCKS: Final[dict[int, tuple[int, int]]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 40),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor: dimensions in ggml's order (fastest first), and the ggml type number."""

    name: str
    dimensions: tuple[int, ...]
    ggml_type: int

    @property
    def size_bytes(self) -> int | None:
        """The size of its data; None for an unknown type."""
        block = GGML_BLOCKS.get(self.ggml_type)
        if block is None:
            return None
        weights, size = block
        elements = 1
        for dimension in self.dimensions:
            elements *= dimension
        return -(-elements // weights) * size


class GgufHeader(msgspec.Struct, frozen=True):
    """A complete header. `header_bytes` is the offset of the tensor data, before alignment."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    header_bytes: int

    @property
    def tensor_bytes(self) -> int | None:
        """The size of all tensors together; None if a type is unknown."""
        total = 0
        for tensor in self.tensors:
            size = tensor.size_bytes
            if size is None:
                return None
            total += size
        return total

    def file_bytes(self) -> int | None:
        """The least size of the file: header and tensors, each with padding; None if unknown."""
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            return None
        end = _align(self.header_bytes, alignment)
        for index, tensor in enumerate(self.tensors):
            size = tensor.size_bytes
            if size is None:
                return None
            last = index == len(self.tensors) - 1
            end += size if last else _align(size, alignment)
        return end


def _align(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _refuse(what: str) -> RequestError:
    return RequestError(f"this is not a GGUF file that can be read: {what}", Fault.BAD_REQUEST)


class HeaderReader(msgspec.Struct):
    """Parses one header. Raises `RequestError` on invalid bytes.

    `metadata` grows while bytes are received, so that a caller may stop once it has the keys it
    needs. `header` is set when the header is complete. `needed_bytes` is the least number of bytes
    that are still needed; 0 once `header` is set.
    """

    metadata: dict[str, Value] = msgspec.field(default_factory=dict)
    header: GgufHeader | None = None
    needed_bytes: int = len(MAGIC)
    _buffer: bytearray = msgspec.field(default_factory=bytearray)
    _consumed: int = 0
    _steps: Generator[int, bytes, None] | None = None
    _want: int = 0

    def __post_init__(self) -> None:
        self._steps = self._parse()
        self._want = next(self._steps)

    @property
    def reached_tokenizer(self) -> bool:
        """Whether the vocabulary has begun; all writers put the architecture's keys before it."""
        return any(key.startswith("tokenizer.") for key in self.metadata)

    def receive_data(self, data: bytes) -> GgufHeader | None:
        """Take the next bytes; return the header once it is complete. Later bytes are ignored."""
        if self.header is not None or self._steps is None:
            return self.header
        self._buffer += data
        offset = 0
        while True:
            if self._want < 0:  # skip -want bytes
                passed = min(-self._want, len(self._buffer) - offset)
                offset += passed
                self._advance(passed)
                self._want += passed
                if self._want < 0:
                    break
                piece = b""
            elif len(self._buffer) - offset >= self._want:
                piece = bytes(self._buffer[offset : offset + self._want])
                offset += self._want
                self._advance(self._want)
            else:
                break
            try:
                self._want = self._steps.send(piece)
            except StopIteration:
                self._steps, self._want = None, 0
                break
        del self._buffer[:offset]
        self.needed_bytes = max(0, abs(self._want) - len(self._buffer))
        return self.header

    def _advance(self, count: int) -> None:
        self._consumed += count
        if self._consumed > MAX_HEADER_BYTES:
            raise _refuse(f"its header is longer than {MAX_HEADER_BYTES >> 20} MiB")

    # The parser is a coroutine: `yield n` waits for n bytes and returns them, and `yield -n`
    # skips n bytes.

    def _parse(self) -> Generator[int, bytes, None]:
        if (yield 4) != MAGIC:
            raise _refuse("it does not begin with the letters GGUF")
        version = _U32.unpack((yield 4))[0]
        if version not in VERSIONS:
            swapped = int.from_bytes(_U32.pack(version), "big")
            kind = "it is big-endian" if swapped in VERSIONS else f"its version is {version}"
            raise _refuse(f"{kind}; versions 2 and 3, little-endian, are understood")
        tensor_count = _U64.unpack((yield 8))[0]
        key_count = _U64.unpack((yield 8))[0]
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            raise _refuse(f"it claims {tensor_count} tensors and {key_count} keys")
        for _ in range(key_count):
            key = yield from self._text(MAX_KEY_BYTES)
            kind = _U32.unpack((yield 4))[0]
            if key in self.metadata:
                raise _refuse(f"the key {key[:80]!r} is there twice")
            yield from self._value(key, kind)
        tensors: list[TensorInfo] = []
        for _ in range(tensor_count):
            tensor = yield from self._tensor()
            tensors.append(tensor)
        self.header = GgufHeader(version, self.metadata, tuple(tensors), self._consumed)

    def _text(self, limit: int) -> Generator[int, bytes, str]:
        length = _U64.unpack((yield 8))[0]
        if length > limit:
            raise _refuse(f"it holds a text of {length} bytes; at most {limit} are allowed here")
        kept = min(length, MAX_KEPT_STRING_BYTES)
        text = (yield kept).decode("utf-8", "replace") if kept else ""
        if length > kept:
            yield kept - length
        return text

    def _value(self, key: str, kind: int) -> Generator[int, bytes, None]:
        if kind == _STRING:
            self.metadata[key] = yield from self._text(MAX_STRING_BYTES)
        elif kind == _ARRAY:
            yield from self._array(key, depth=0)
        elif kind in _SCALARS:
            self.metadata[key] = yield from self._scalar(kind)
        else:
            raise _refuse(f"the key {key[:80]!r} has the unknown type {kind}")

    def _scalar(self, kind: int) -> Generator[int, bytes, Scalar]:
        raw = yield _SCALARS[kind].size
        value: Scalar = _SCALARS[kind].unpack(raw)[0]
        return value

    def _array(self, key: str, depth: int) -> Generator[int, bytes, None]:
        """Parse one array; only an outermost one is stored in `metadata`."""
        kind = _U32.unpack((yield 4))[0]
        count = _U64.unpack((yield 8))[0]
        if count > MAX_ARRAY_ITEMS:
            raise _refuse(f"{key[:80]!r} claims {count} items")
        if depth == 0:
            self.metadata[key] = LongArray(count)
        if kind == _STRING:
            for _ in range(count):
                length = _U64.unpack((yield 8))[0]
                if length > MAX_STRING_BYTES:
                    raise _refuse(f"{key[:80]!r} holds a text of {length} bytes")
                if length:
                    yield -length
        elif kind == _ARRAY:
            if depth >= MAX_NESTING:
                raise _refuse(f"{key[:80]!r} nests arrays too deeply")
            for _ in range(count):
                yield from self._array(key, depth + 1)
        elif kind not in _SCALARS:
            raise _refuse(f"{key[:80]!r} is an array of the unknown type {kind}")
        elif depth == 0 and count <= MAX_KEPT_ITEMS:
            items: list[Scalar] = []
            for _ in range(count):
                item = yield from self._scalar(kind)
                items.append(item)
            self.metadata[key] = tuple(items)
        elif count:
            yield -count * _SCALARS[kind].size

    def _tensor(self) -> Generator[int, bytes, TensorInfo]:
        name = yield from self._text(MAX_TENSOR_NAME_BYTES)
        rank = _U32.unpack((yield 4))[0]
        if rank > MAX_DIMENSIONS:
            raise _refuse(f"the tensor {name!r} claims {rank} dimensions")
        dimensions = []
        for _ in range(rank):
            size = _U64.unpack((yield 8))[0]
            if size >= 1 << 48:
                raise _refuse(f"the tensor {name!r} claims a dimension of {size}")
            dimensions.append(size)
        kind = _U32.unpack((yield 4))[0]
        yield 8  # the offset of its data, which is not read
        return TensorInfo(name, tuple(dimensions), kind)
