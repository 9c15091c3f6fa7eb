"""`wai manual`: pages for every command and settings file, without a complaint of any `man`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.real import require_real, script
from wai_cli.commands.settings import PROGRAMS
from wai_cli.main import GROUPS, main


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([script("wai"), "manual", str(folder)], check=True, capture_output=True)
    return folder


def files(pages: Path) -> list[Path]:
    found = sorted(path for path in pages.rglob("*") if path.is_file())
    assert found
    return found


def test_a_command_or_a_settings_file_has_no_page(pages: Path) -> None:
    expected = {"wai.1", *(f"wai-{name}.1" for name in GROUPS)}
    expected |= {f"wai-{name}.toml.5" for name in PROGRAMS}
    assert {path.name for path in files(pages)} == expected


def test_mandoc_complains(pages: Path) -> None:
    require_real("mandoc")
    command = ["mandoc", "-Tlint", "-W", "warning", *map(str, files(pages))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def shown(page: Path) -> str:
    require_real("mandoc")
    command = ["mandoc", "-Tutf8", "-O", "width=100", str(page)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in _plain(text).splitlines())


def _plain(text: str) -> str:
    """Without the overstriking by which terminals show bold and underlined letters."""
    while (at := text.find("\b")) >= 0:
        text = text[: at - 1] + text[at + 1 :]
    return text


def test_actions_options_and_examples_are_shown_as_their_help_has_them(pages: Path) -> None:
    text = shown(pages / "man1" / "wai-node.1")
    for part in (
        "wai node engine install",
        "--upstream-key-file FILE",
        "a file with that key in its first line",
        "wai node run --upstream http://127.0.0.1:8080",
        "wai-node.toml(5)",
    ):
        assert part in text, part


def test_a_setting_is_not_in_its_page(pages: Path) -> None:
    text = shown(pages / "man5" / "wai-relay.toml.5")
    assert 'listen = "127.0.0.1:8443"' in text
    assert "[[providers.models]]" in text


def test_pages_depend_on_who_makes_them(tmp_path: Path) -> None:
    made = []
    for number, home in enumerate(("/home/a-b", "/root")):
        folder = tmp_path / str(number)
        env = {**os.environ, "HOME": home, "COLUMNS": str(60 + 40 * number)}
        env |= {"SOURCE_DATE_EPOCH": "1764403200", "XDG_DATA_HOME": ""}
        subprocess.run(
            [script("wai"), "manual", str(folder)], env=env, check=True, capture_output=True
        )
        made.append({path.name: path.read_text() for path in files(folder)})
    assert made[0] == made[1]
    assert '"2025-11-29"' in made[0]["wai.1"]


def test_a_folder_that_can_not_be_written_is_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "man1").write_text("a file")
    assert main(["manual", str(tmp_path)]) == 1
    assert "can't be written" in capsys.readouterr().err


def test_the_systems_man_complains(pages: Path) -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("no man-db with groff here; mandoc has checked the pages")
    for page in files(pages):
        done = subprocess.run(
            ["man", "--warnings", "--encoding=UTF-8", "--local-file", "-Tutf8", "-Z", str(page)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == "", page.name
