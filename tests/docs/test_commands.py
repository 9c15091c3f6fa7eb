"""Every command in README, docs and help texts: it exists, takes these options and these values.

Commands of `wai` are parsed by the program's own parser, those of make are looked for in the
Makefile, curl checks its own options, and the paths that it is given are the relay's.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from tests.harness.real import require_real
from wai_cli.main import GROUPS, parser_for
from wai_cli.options.settings import load
from wai_node.config import NodeConfig
from wai_protocol.errors import RequestError
from wai_protocol.surface import ROUTES
from wai_relay.config import RelayConfig

from .blocks import ROOT, Block, blocks, pages
from .commands import Command, in_blocks, in_help, in_text

# What stands for a value that the reader knows, where the parser wants more than a text.
VALUES: Final = {"N": "1", "TIME": "10m", "PORT": "8080"}
OTHER_PATHS: Final = ("/install.sh", "/admin/v1/settings", "/v1/models", "/healthz", "/readyz")
OTHER_SETTINGS: Final = ("build-system", "model_providers")  # another program's file


def commands_of(program: str) -> list[Command]:
    return [command for command in in_blocks() if command.words[0] == program]


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return parser_for(GROUPS)


@pytest.fixture
def where_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that options read when they are parsed."""
    (tmp_path / "llama.key").write_text("a-key\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_docs_show_no_command_at_all() -> None:
    assert len(commands_of("wai")) > 50
    assert len(in_text()) > 100
    assert {command.words[0] for command in in_blocks()} == {"wai", "make", "curl", "install.sh"}


@pytest.mark.parametrize("command", [*commands_of("wai"), *in_help(parser_for(GROUPS))], ids=str)
def test_wai_refuses_a_command_of_the_docs_or_of_its_own_help(
    command: Command,
    parser: argparse.ArgumentParser,
    where_files_are: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [VALUES.get(word, word).replace("/run/secrets/", "") for word in command.words[1:]]
    try:
        parsed = parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"{command}: {capsys.readouterr().err.splitlines()[-1]}", pytrace=False)
    assert callable(parsed.run)


def test_the_text_names_a_command_or_an_option_that_there_is_not(
    parser: argparse.ArgumentParser,
) -> None:
    unknown = [
        f"{command.place}: {shown}: {why}"
        for command in in_text()
        if command.words
        for shown in [" ".join(command.words)]
        if (why := _unknown(parser, command.words))
    ]
    assert unknown == []


def _unknown(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> str:
    """What of these words there is not, "" if all is there."""
    if words[0] == "make":
        return "" if words[1] in _targets() else words[1]
    here, is_value = parser, False
    for word in words[1:]:
        if word.startswith("-") and len(word) > 1:
            name = re.split(r"[=|…]", word)[0]
            known = [action for action in here._actions if name in action.option_strings]
            if not known:
                return f"{here.prog} has no {name}"
            is_value = known[0].nargs != 0 and "=" not in word
            continue
        if is_value:
            is_value = False
            continue
        choices = _subcommands(here)
        if not choices or word in ("…", "COMMAND"):
            continue
        for one in word.rstrip(",").split("|"):
            if one not in choices:
                return f"{here.prog} has no {one}"
        here = choices[word.rstrip(",").split("|")[0]]
    return ""


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found: dict[str, argparse.ArgumentParser] = action.choices
            return found
    return {}


def _targets() -> set[str]:
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(rules)


def test_make_has_no_such_target(parser: argparse.ArgumentParser) -> None:
    shown = commands_of("make")
    assert {command.words[1] for command in shown} >= {"run", "test"}
    for command in shown:
        assert command.words[1] in _targets(), str(command)
        for word in command.words[2:]:
            name, _, value = word.partition("=")
            if name == "ARGS" and command.words[1] == "run":
                parser.parse_args(["up", *value.split()])


@pytest.mark.parametrize("command", commands_of("curl"), ids=str)
def test_curl_or_the_relay_does_not_know_what_is_asked(command: Command) -> None:
    require_real("curl")
    done = subprocess.run(
        [shutil.which("curl") or "curl", *command.words[1:], "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stdout.startswith("curl "), done.stderr
    for word in command.words[1:]:
        if word.startswith("https://"):
            path = urlsplit(word).path
            assert path in OTHER_PATHS or any(route.path == path for route in ROUTES), path


def test_the_installer_has_no_such_option() -> None:
    usage = subprocess.run(
        ["sh", str(ROOT / "install.sh"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    shown = commands_of("install.sh")
    assert shown
    for command in shown:
        assert all(word in usage for word in command.words[1:] if word.startswith("-")), str(
            command
        )
        assert command.words[1] in ("relay", "node")


def settings_blocks() -> list[tuple[Block, dict[str, Any]]]:
    """The blocks that are TOML, of relay or node."""
    found = []
    for page in pages():
        for block in blocks(page):
            if block.language not in ("", "toml"):
                continue
            try:
                read = tomllib.loads(block.text)
            except tomllib.TOMLDecodeError:
                assert block.language != "toml", str(block)
                continue
            if read and not any(key in read for key in OTHER_SETTINGS):
                found.append((block, read))
    return found


@pytest.mark.parametrize("block", [block for block, _ in settings_blocks()], ids=str)
def test_relay_and_node_refuse_settings_of_the_docs(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(block.text, encoding="utf-8")
    refused = []
    for kind in (RelayConfig, NodeConfig):
        try:
            load(kind, file=file, environment={}, prefix="WAI_", flags={"data": tmp_path})
        except RequestError as error:
            refused.append(str(error))
    assert len(refused) < 2, refused


def test_the_docs_show_no_settings_at_all() -> None:
    assert len(settings_blocks()) > 8
