"""The header parser on real files, cut and split anywhere, and on hostile ones."""

from __future__ import annotations

import contextlib
import itertools
import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.tiny_families import FAMILIES, Shape, write_family
from wai_node.models.gguf_header import (
    GGML_BLOCKS,
    MAX_ARRAY_ITEMS,
    MAX_KEYS,
    MAX_TENSORS,
    GgufHeader,
    HeaderReader,
    LongArray,
)
from wai_node.models.shape import shape_from_metadata
from wai_protocol.errors import RequestError

TINY = Shape(embedding=32, blocks=2, heads=2, kv_heads=1, head_dim=16, vocabulary=300)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("families")
    return {f: write_family(folder / f"{f}.gguf", f, TINY).read_bytes() for f in FAMILIES}


@pytest.fixture(scope="module")
def llama(files: dict[str, bytes]) -> bytes:
    header = read(files["llama"])
    return files["llama"][: header.header_bytes]


def read(data: bytes) -> GgufHeader:
    header = HeaderReader().receive_data(data)
    assert header is not None
    return header


def test_every_family_reads_as_the_library_reads_it(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    for family, data in files.items():
        header = read(data)
        path = tmp_path / f"{family}.gguf"
        path.write_bytes(data)
        reference = gguf.GGUFReader(path)
        assert [t.name for t in header.tensors] == [t.name for t in reference.tensors]
        assert header.tensor_bytes == sum(int(t.n_bytes) for t in reference.tensors)
        assert header.file_bytes() == len(data)
        assert header.metadata["tokenizer.ggml.tokens"] == LongArray(TINY.vocabulary)


def test_block_sizes_are_those_of_ggml() -> None:
    known = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: GGML_BLOCKS.get(kind) for kind in known} == known


@given(st.lists(st.integers(0, 20_000), max_size=12))
def test_any_chunking_gives_the_same_header(llama: bytes, cuts: list[int]) -> None:
    reader = HeaderReader()
    edges = [0, *sorted(min(c, len(llama)) for c in cuts), len(llama)]
    for start, end in itertools.pairwise(edges):
        reader.receive_data(llama[start:end])
    assert reader.header == read(llama)


def test_feeding_what_it_asks_for_ends_exactly_at_the_header(llama: bytes) -> None:
    reader, offset = HeaderReader(), 0
    while reader.header is None:
        assert reader.needed_bytes > 0
        end = offset + reader.needed_bytes
        reader.receive_data(llama[offset:end])
        offset = end
    assert offset == len(llama)
    assert reader.needed_bytes == 0


@given(st.data())
def test_a_cut_file_only_asks_for_more(llama: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(llama) - 1))
    reader = HeaderReader()
    assert reader.receive_data(llama[:cut]) is None
    assert reader.needed_bytes > 0


@given(st.data())
def test_a_mutated_file_is_read_or_refused_never_worse(llama: bytes, data: st.DataObject) -> None:
    broken = bytearray(llama)
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    reader = HeaderReader()
    try:
        header = reader.receive_data(bytes(broken))
        metadata = header.metadata if header else reader.metadata
        shape_from_metadata(metadata)
    except RequestError:
        pass


@given(st.binary(max_size=400))
def test_any_bytes_after_a_valid_start_are_read_or_refused(tail: bytes) -> None:
    start = b"GGUF" + struct.pack("<IQQ", 3, 2, 3)
    with contextlib.suppress(RequestError):
        HeaderReader().receive_data(start + tail)


def _key(name: bytes, kind: int, rest: bytes) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    return start + struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + rest


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\3\4 a zip", "letters GGUF"),
        (b"GGUF" + struct.pack("<I", 1), "version is 1"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, MAX_TENSORS + 1, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, MAX_KEYS + 1), "keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63), "text of"),
        (_key(b"a", 99, b""), "unknown type 99"),
        (_key(b"a", 8, struct.pack("<Q", 1 << 40)), "text of"),
        (_key(b"a", 9, struct.pack("<IQ", 4, MAX_ARRAY_ITEMS + 1)), "claims"),
        (_key(b"a", 9, struct.pack("<IQ", 77, 1)), "unknown type 77"),
        (_key(b"a", 9, struct.pack("<IQIQIQ", 9, 1, 9, 1, 9, 1)), "too deeply"),
        (b"GGUF" + struct.pack("<IQQQ4sI", 3, 1, 0, 4, b"name", 5), "5 dimensions"),
        (b"GGUF" + struct.pack("<IQQQ4sIQ", 3, 1, 0, 4, b"name", 1, 1 << 60), "dimension of"),
    ],
)
def test_a_hostile_file_is_refused_with_a_sentence(data: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        HeaderReader().receive_data(data)


def test_a_huge_array_is_passed_over_without_being_held() -> None:
    reader = HeaderReader()
    reader.receive_data(_key(b"big", 9, struct.pack("<IQ", 10, MAX_ARRAY_ITEMS)))
    assert reader.needed_bytes == 8 * MAX_ARRAY_ITEMS
    for _ in range(8):
        reader.receive_data(bytes(1 << 20))
        assert len(reader._buffer) == 0
    assert reader.metadata["big"] == LongArray(MAX_ARRAY_ITEMS)


def test_the_same_key_twice_is_refused() -> None:
    entry = struct.pack("<Q1sIB", 1, b"a", 0, 1)
    with pytest.raises(RequestError, match="twice"):
        HeaderReader().receive_data(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + entry + entry)
