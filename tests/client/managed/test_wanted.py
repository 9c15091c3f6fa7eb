"""The wanted state survives what a disk and a crash can do to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from wai_node.managed.wanted import FILE_NAME, MAX_MODELS, Wanted, WantedModel
from wai_protocol.errors import StoreError

MODEL = WantedModel(
    alias="a/b:Q4_0",
    repo="a/b",
    commit="c0ffee",
    quant="Q4_0",
    paths=("x-Q4_0.gguf",),
    sizes=(1000,),
    sha256=("0" * 64,),
    context_tokens=4096,
    slots=2,
    idle_unload_s=60.0,
    load="on_demand",
    proven=(2048, 1),
    correction=(1.0, 1.1, 0.9),
)


def loaded(folder: Path) -> dict[str, WantedModel]:
    wanted = Wanted(folder)
    wanted.load()
    return wanted.models


def test_what_was_put_is_loaded_again(tmp_path: Path) -> None:
    wanted = Wanted(tmp_path / "new")
    wanted.put(MODEL)
    wanted.put(replace(MODEL, alias="second"))
    wanted.drop("second")
    assert loaded(tmp_path / "new") == {MODEL.alias: MODEL}


def test_what_was_dropped_is_known_until_its_files_are_gone(tmp_path: Path) -> None:
    wanted = Wanted(tmp_path)
    wanted.put(MODEL)
    wanted.drop(MODEL.alias)
    again = Wanted(tmp_path)
    again.load()
    assert (again.models, again.removing) == ({}, {MODEL.alias: MODEL})
    again.deleted(MODEL.alias)
    again.load()
    assert again.removing == {}
    again.put(MODEL)
    again.drop(MODEL.alias)
    again.put(MODEL)  # deployed anew: its files are wanted again
    assert (again.models, again.removing) == ({MODEL.alias: MODEL}, {})


def test_a_crash_between_write_and_rename_leaves_the_old_state(tmp_path: Path) -> None:
    Wanted(tmp_path).put(MODEL)
    (tmp_path / (FILE_NAME + ".new")).write_text('{"format": 1, "mod')
    assert loaded(tmp_path) == {MODEL.alias: MODEL}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 9, "models": []}', '{"format": 1, "models": [{}]}']
)
def test_a_broken_file_is_moved_aside_not_fatal(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    assert loaded(tmp_path) == {}
    assert [p.name.startswith(FILE_NAME + ".broken") for p in tmp_path.iterdir()] == [True]


def test_a_node_takes_only_so_many_models(tmp_path: Path) -> None:
    wanted = Wanted(tmp_path)
    wanted.models = {str(i): MODEL for i in range(MAX_MODELS)}
    with pytest.raises(StoreError, match="remove one first"):
        wanted.put(MODEL)


def test_a_folder_that_cannot_be_written_keeps_the_state_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = Wanted(tmp_path / "file")
    with pytest.raises(StoreError, match="can't be written"):
        wanted.put(MODEL)
    assert wanted.models == {}


def test_a_model_that_an_older_node_unloaded_when_idle_is_loaded_on_demand(tmp_path: Path) -> None:
    Wanted(tmp_path).put(MODEL)
    file = tmp_path / FILE_NAME
    content = json.loads(file.read_text())
    del content["models"][0]["load"], content["models"][0]["priority"]
    file.write_text(json.dumps(content))
    assert loaded(tmp_path)[MODEL.alias].policy.on_demand
    assert not list(tmp_path.glob("*.broken-*"))
