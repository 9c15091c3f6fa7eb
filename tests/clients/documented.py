"""The blocks of docs/clients.md, run as they stand: only address, key and model are filled in."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.docs.blocks import ROOT, blocks
from tests.harness import npm

from .clients import DOCUMENTED_WITH
from .run import TIMEOUT_S, Fleet, environment

LANGUAGES: Final = ("python", "javascript", "sh", "toml", "yaml")
CONFIGURED: Final = {
    "toml": (".codex/config.toml", "codex exec --skip-git-repo-check Hello"),
    "yaml": (
        "llm/extra-openai-models.yaml",
        'llm keys set wai --value "$WAI_KEY" >/dev/null; llm -m wai --no-log Hello',
    ),
}
"""Blocks that are a program's file: where it is in its home, and how the program is called."""
NOT_RUN: Final = ("aider ",)  # it is not among the clients that are installed
_IMPORTED: Final = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Snippet:
    """One block: where it is, its language, its text."""

    place: str
    language: str
    text: str

    @property
    def is_here(self) -> bool:
        """Whether this environment, that of `make test`, has what it needs."""
        if self.language == "python":
            return all(importlib.util.find_spec(one) for one in _IMPORTED.findall(self.text))
        return self.language == "sh" and self.text.startswith("curl ")


def snippets() -> list[Snippet]:
    """Those that are run."""
    return [
        Snippet(str(block), block.language, block.text)
        for block in blocks(ROOT / "docs" / "clients.md")
        if block.language in LANGUAGES and not any(name in block.text for name in NOT_RUN)
    ]


def run_snippet(
    snippet: Snippet, there: Fleet, *, python: str = sys.executable, packages: Path | None = None
) -> str:
    """What is wrong with it, "" for nothing. `packages` has those from npm."""
    given = environment(there, packages)
    given["PATH"] = f"{Path(python).parent}:{given['PATH']}"
    if packages is not None:
        given["PATH"] = f"{packages / 'node_modules' / '.bin'}:{given['PATH']}"
    given |= {"CURL_CA_BUNDLE": given["SSL_CERT_FILE"], "DISABLE_AUTOUPDATER": "1"}
    with tempfile.TemporaryDirectory() as home:
        command = _command(snippet.language, python)
        file = Path(home, command[-1])
        file.parent.mkdir(exist_ok=True)
        file.write_text(_filled_in(snippet.text, there), encoding="utf-8")
        if packages is not None:
            Path(home, "node_modules").symlink_to(packages / "node_modules")
        try:
            done = subprocess.run(
                command,
                cwd=home,
                env=given | {"HOME": home, "LLM_USER_PATH": f"{home}/llm"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "it did not end in time"
    if done.returncode == 0 and done.stdout.strip():
        return ""
    return (done.stderr.strip() or done.stdout.strip())[-600:] or "it printed nothing"


def _filled_in(text: str, there: Fleet) -> str:
    """A block with address, key and model in place of what stands for them."""
    text = text.replace("https://RELAY", there.cluster.url).replace("wai_sk_…", there.key)
    return re.sub(r"\bMODEL\b", there.models[DOCUMENTED_WITH], text)


def _command(language: str, python: str) -> list[str]:
    """What runs a block of this language; the last word is the file that it is to be in."""
    if language in CONFIGURED:
        name, shown = CONFIGURED[language]
        return ["sh", "-ec", shown, name]
    if language == "python":
        return [python, "app"]
    if language == "sh":
        return ["sh", "-e", "app"]
    node = npm.node_program()
    assert node is not None
    return [node, "app.mjs"]
