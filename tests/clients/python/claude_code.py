"""Claude Code without a terminal: `claude -p`, with nothing but base URL, key, model and CA."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from shared import HELLO, KEY, URL, tell

PROGRAM = Path(os.environ["WAI_NPM"]) / "node_modules" / ".bin" / "claude"


def ask(model: str) -> str:
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [PROGRAM, "-p", HELLO, "--model", model, "--max-turns", "1"],
            cwd=home,
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                "HOME": home,
                "ANTHROPIC_BASE_URL": URL,
                "ANTHROPIC_AUTH_TOKEN": KEY,
                "ANTHROPIC_SMALL_FAST_MODEL": model,
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CODE_MAX_RETRIES": "0",
                "DISABLE_AUTOUPDATER": "1",
            },
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-400:])
    return done.stdout.strip()


tell(ask)
