"""`wai node engine` as the owner of a box meets it, against a release server on loopback."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fake_releases import FakeReleases, listed, script_archive
from wai_cli.main import main

Captured = pytest.CaptureFixture[str]
RUNS = (
    'case "$1" in --list-devices) echo "Available devices:"; exit;; esac\necho "version: 7 (x)"\n'
)


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[FakeReleases]:
    folder = tmp_path / "releases"
    folder.mkdir()
    with FakeReleases(folder) as server:
        for version in ("b1", "b2"):
            script_archive(folder, version, RUNS)
        script_archive(folder, "b3", "echo no luck; exit 3\n")
        yield server


@pytest.fixture
def manifest(tmp_path: Path, releases: FakeReleases) -> Path:
    here = platform.system().lower(), platform.machine().lower()
    builds = [
        (version, *here, "cpu", releases.folder / f"llama-{version}-bin-ubuntu-x64.tar.gz")
        for version in ("b2", "b1", "b3")
    ]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(releases.manifest(*builds)))
    return path


def run(capsys: Captured, tmp_path: Path, *arguments: str | Path) -> tuple[int, str, str]:
    data = tmp_path / "node"
    try:
        status = main(["node", "engine", *map(str, arguments), "--data", str(data)])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def rows(capsys: Captured, tmp_path: Path) -> dict[str, dict[str, Any]]:
    status, out, _ = run(capsys, tmp_path, "list", "--json")
    assert status == 0
    return {row["name"]: row for row in json.loads(out)}


def test_install_list_use_remove(capsys: Captured, tmp_path: Path, manifest: Path) -> None:
    status, out, err = run(capsys, tmp_path, "install", "--manifest", manifest)
    assert (status, out) == (0, "b2-cpu is installed and used from now on: llama.cpp 7 (x)\n")
    assert "getting llama.cpp b2-cpu from http://127.0.0.1" in err
    more = ("b1", "--backend", "cpu", "--manifest", manifest, "--no-use", "--json")
    status, out, _ = run(capsys, tmp_path, "install", *more)
    told = json.loads(out)
    assert (status, told["name"], told["used"], told["devices"]) == (0, "b1-cpu", False, [])
    found = rows(capsys, tmp_path)
    assert {name: row["used"] for name, row in found.items() if row["installed"]} == {
        "b2-cpu": True,
        "b1-cpu": False,
    }
    assert run(capsys, tmp_path, "use", "b1-cpu")[:2] == (0, "b1-cpu is used from now on\n")
    status, _, err = run(capsys, tmp_path, "remove", "b1-cpu")
    assert (status, "b1-cpu is used; choose another" in err) == (1, True)
    status, _, err = run(capsys, tmp_path, "remove", "b2-cpu")
    assert (status, "goes back to if b1-cpu does not come up" in err) == (1, True)
    assert run(capsys, tmp_path, "use", "b2-cpu")[0] == 0
    assert run(capsys, tmp_path, "use", "auto", "--json")[:2] == (0, '{\n  "name": null\n}\n')
    assert run(capsys, tmp_path, "remove", "b1-cpu", "--json")[:2] == (0, '[\n  "b2-cpu"\n]\n')


def test_a_mirror_is_asked_instead_of_the_manifests_server(
    capsys: Captured,
    tmp_path: Path,
    manifest: Path,
    releases: FakeReleases,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = json.loads(manifest.read_text())
    for release in own["releases"]:
        release["url"] = "https://releases.invalid/"
    manifest.write_text(json.dumps(own))
    monkeypatch.setenv("WAI_ENGINE_MIRROR", releases.url)
    assert run(capsys, tmp_path, "install", "--manifest", manifest)[0] == 0


def test_an_archive_is_installed_with_its_hash(
    capsys: Captured, tmp_path: Path, releases: FakeReleases
) -> None:
    archive = releases.folder / "llama-b1-bin-ubuntu-x64.tar.gz"
    digest = listed(archive)["sha256"]
    for wrong in (
        ("--archive", archive),
        ("--sha256", digest),
        ("--archive", archive, "--sha256", digest, "--backend", "cpu"),
        ("--name", "mine"),
        ("--archive", archive, "--sha256", "0" * 64),
        ("--archive", tmp_path / "none.tar.gz", "--sha256", digest),
    ):
        status, out, err = run(capsys, tmp_path, "install", *wrong)
        assert (status, out) == (1, ""), err
        assert err.startswith("wai: ")
    given = ("--archive", archive, "--sha256", digest, "--name", "mine")
    status, out, _ = run(capsys, tmp_path, "install", *given)
    assert (status, "mine is installed" in out) == (0, True)


def test_an_engine_that_does_not_run_is_neither_installed_nor_used(
    capsys: Captured, tmp_path: Path, manifest: Path
) -> None:
    status, _, err = run(capsys, tmp_path, "install", "b3", "--manifest", manifest)
    assert (status, "does not run here: it ended with status 3 (no luck)" in err) == (1, True)
    assert [row for row in rows(capsys, tmp_path).values() if row["installed"]] == []
    run(capsys, tmp_path, "install", "b1", "--manifest", manifest)
    program = Path(rows(capsys, tmp_path)["b1-cpu"]["program"])
    program.write_text("#!/bin/sh\nexit 4\n")
    assert "ended with status 4" in rows(capsys, tmp_path)["b1-cpu"]["problem"]
    run(capsys, tmp_path, "use", "auto")
    status, _, err = run(capsys, tmp_path, "use", "b1-cpu")
    assert (status, "ended with status 4" in err) == (1, True)


def test_what_is_not_there_is_said_with_what_is(
    capsys: Captured, tmp_path: Path, manifest: Path
) -> None:
    status, _, err = run(capsys, tmp_path, "use", "b9-cpu")
    assert (status, "no engine 'b9-cpu' is here; there is: " in err) == (1, True)
    status, _, err = run(capsys, tmp_path, "remove", "b9-cpu")
    assert (status, "installed: none" in err) == (1, True)
    status, _, err = run(capsys, tmp_path, "install", "b9", "--manifest", manifest)
    assert (status, "has no version 'b9'; it has: b2, b1, b3" in err) == (1, True)
    rocm = ("--backend", "rocm", "--manifest", manifest)
    status, _, err = run(capsys, tmp_path, "install", *rocm)
    assert (status, "with rocm; it has only: cpu" in err) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_is_sent_to_the_user_whose_engines_are_run(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir(mode=0o700)
    os.chown(tmp_path / "node", 65534, 65534)
    for arguments in (("list",), ("install",), ("use", "auto"), ("remove", "b1-cpu")):
        status, out, err = run(capsys, tmp_path, *arguments)
        assert (status, out) == (1, "")
        assert "run this by `sudo -u " in err
