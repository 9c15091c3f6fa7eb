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

LANGUAGES: Final = ("python", "javascript", "sh")
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
    text = snippet.text.replace("https://RELAY", there.cluster.url)
    text = text.replace("wai_sk_…", there.key)
    text = re.sub(r"\bMODEL\b", there.models[DOCUMENTED_WITH], text)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        if snippet.language == "javascript":
            program = npm.node_program()
            assert program is not None
            assert packages is not None
            (home / "node_modules").symlink_to(packages / "node_modules")
            script = home / "app.mjs"
            argv = [program, str(script)]
        elif snippet.language == "python":
            script = home / "app.py"
            argv = [python, str(script)]
        else:
            script = home / "app.sh"
            argv = ["sh", "-e", str(script)]
        script.write_text(text, encoding="utf-8")
        given = environment(there, packages)
        if packages is not None:
            given["PATH"] = f"{packages / 'node_modules' / '.bin'}:{given['PATH']}"
        given |= {
            "HOME": name,
            "CURL_CA_BUNDLE": given["SSL_CERT_FILE"],
            "DISABLE_AUTOUPDATER": "1",
        }
        try:
            done = subprocess.run(
                argv,
                cwd=home,
                env=given,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "it did not end in time"
    if done.returncode or not done.stdout.strip():
        return done.stderr.strip()[-600:] or done.stdout.strip()[-600:] or "it printed nothing"
    return ""
