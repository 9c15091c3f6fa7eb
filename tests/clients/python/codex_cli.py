"""Codex without a terminal: `codex exec`, with a provider that speaks responses."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from shared import BASE_URL, HELLO, tell

PROGRAM = Path(os.environ["WAI_NPM"]) / "node_modules" / ".bin" / "codex"
PROVIDER = f'{{name="wai",base_url="{BASE_URL}",env_key="WAI_KEY",wire_api="responses"}}'


def ask(model: str) -> str:
    with tempfile.TemporaryDirectory() as home:
        answer = Path(home, "answer.txt")
        done = subprocess.run(
            [
                *(PROGRAM, "exec", "--skip-git-repo-check", "--ephemeral"),
                *("-c", "model_provider=wai", "-c", f"model_providers.wai={PROVIDER}"),
                *("-c", "model_providers.wai.request_max_retries=0"),
                *("-m", model, "-o", answer, HELLO),
            ],
            cwd=home,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": home, "CODEX_HOME": home},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        said = answer.read_text() if answer.exists() else ""
    if done.returncode or not said:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip())[-400:])
    return said.strip()


tell(ask)
