"""Simon Willison's `llm`, by a model that its configuration names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import BASE_URL, HELLO, KEY, MAX_TOKENS, tell


def ask(model: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        entry = {"model_id": "wai", "model_name": model, "api_base": BASE_URL}
        entry["api_key_name"] = "wai"
        Path(folder, "extra-openai-models.yaml").write_text(json.dumps([entry]))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "llm", "-m", "wai", "--key", KEY),
                *("-o", "max_tokens", str(MAX_TOKENS), "--no-log", HELLO),
            ],
            env={**os.environ, "LLM_USER_PATH": folder},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return done.stdout.strip()


tell(ask)
