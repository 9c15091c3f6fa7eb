"""Projectors: found in a repository, chosen by rule, and what they take."""

from __future__ import annotations

import pytest

from wai_node.models.catalogue import RemoteFile, find_projectors, group_files
from wai_node.models.projector import Projector, choose_projector, projector_of
from wai_protocol.errors import RequestError

SHA = "0" * 64
MODEL = RemoteFile("model-Q4_K_M.gguf", 4000, SHA)


def file(path: str, size: int = 1000) -> RemoteFile:
    return RemoteFile(path, size, SHA)


TEN = [
    *(file("mmproj-F32.gguf", 4000), file("mmproj-BF16.gguf", 2000), file("mmproj-F16.gguf", 2000)),
    *(file("mmproj-Q8_0.gguf"), file("mmproj-Q4_0.gguf", 500), file("old/mmproj-F16.gguf", 1)),
    *(file("gemma-3-4b-it-mmproj-f16.gguf", 2001), file("mmproj-model-f16.gguf", 2002)),
    *(file("mmproj.gguf", 10), file("mmproj-a.b.gguf", 20)),
]


def test_projectors_are_found_and_are_no_models() -> None:
    files = [
        MODEL,
        *TEN,
        file("../mmproj-F16.gguf"),
        file("mmproj.bin"),
        file("Qwen.mmproj-f16.gguf"),
    ]
    assert find_projectors(files) == (*TEN, file("Qwen.mmproj-f16.gguf"))
    assert [quant.files for quant in group_files(files)] == [(MODEL,)]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (None, "mmproj-F16.gguf"),
        ("q8_0", "mmproj-Q8_0.gguf"),
        ("BF16", "mmproj-BF16.gguf"),
        ("MMPROJ.gguf", "mmproj.gguf"),
        ("old/mmproj-F16.gguf", "old/mmproj-F16.gguf"),
    ],
)
def test_of_ten_projectors_one_is_chosen_by_rule_or_by_name(
    wanted: str | None, chosen: str
) -> None:
    found = choose_projector(TEN, wanted, MODEL)
    assert found is not None
    assert found.path == chosen


def test_one_in_the_models_own_folder_goes_first() -> None:
    model = file("old/model-Q4_0.gguf")
    found = choose_projector(TEN, None, model)
    assert found is not None
    assert found.path == "old/mmproj-F16.gguf"


def test_none_is_none_and_an_unknown_one_is_refused_with_what_there_is() -> None:
    assert choose_projector([], None, MODEL) is None
    assert choose_projector(TEN, "None", MODEL) is None
    with pytest.raises(RequestError, match=r"no projector 'Q6_K'.*mmproj-F32\.gguf, mmproj-BF16"):
        choose_projector(TEN, "Q6_K", MODEL)
    with pytest.raises(RequestError, match="the repository has: none"):
        choose_projector([], "F16", MODEL)


def test_a_header_without_sizes_or_with_absurd_ones_gives_a_guess() -> None:
    guess = Projector(8000, 1000, 4000)
    for metadata in ({}, {"clip.vision.image_size": -5}, {"clip.vision.image_size": 1 << 60}):
        assert projector_of(metadata, 8000) == guess
