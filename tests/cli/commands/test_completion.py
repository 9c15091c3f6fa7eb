"""`wai completion`: what a shell offers after it. Of the shells only bash is at hand here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from wai_cli.commands.completion import SHELLS
from wai_cli.main import GROUPS, main


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", "bash"]) == 0
    return capsys.readouterr().out


def completed(script: str, folder: Path, *words: str) -> set[str]:
    """What bash offers for the last of `words`."""
    asked = f"""
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
        COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
        name=$(complete -p wai | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $name wai "${{COMP_WORDS[$COMP_CWORD]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [shutil.which("bash") or "bash", "--norc", "-c", script + asked],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
        timeout=30,
    )
    assert "syntax error" not in done.stderr
    return set(done.stdout.split())


def test_commands_actions_and_options_are_offered(script: str, tmp_path: Path) -> None:
    assert completed(script, tmp_path, "wai", "") >= set(GROUPS)
    assert completed(script, tmp_path, "wai", "node", "eng") == {"engine"}
    assert completed(script, tmp_path, "wai", "node", "engine", "") >= {"list", "install"}
    assert "--rpm" in completed(script, tmp_path, "wai", "key", "create", "--r")


def test_files_are_offered_where_a_file_is_wanted(script: str, tmp_path: Path) -> None:
    (tmp_path / "relay.toml").touch()
    assert "relay.toml" in completed(script, tmp_path, "wai", "relay", "--config", "rel")


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script_that_knows_every_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in GROUPS)
