"""The admin API does what its OpenAPI document says, whatever it is sent: schemathesis says so."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.harness.cluster import cluster
from tests.harness.real import script

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(500)]

CONFIG: Final = Path(__file__).with_name("schemathesis.toml")
EXAMPLES: Final = "10"  # of each operation: 1,300 requests, in half a minute
FEED: Final = "/admin/v1/events"  # has no end that could be waited for; test_events has it


def test_the_admin_api_is_as_its_document_says(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        token = (running.data / "admin.token").read_text().strip()
        run = subprocess.run(
            [
                *(script("schemathesis"), "--config-file", str(CONFIG)),
                *("run", f"{running.url}/admin/v1/openapi.json"),
                *("--tls-verify", str(running.ca), "--header", f"Authorization: Bearer {token}"),
                *("--exclude-path", FEED, "--phases", "coverage,fuzzing"),
                *("--max-examples", EXAMPLES, "--seed", "1", "--generation-database", "none"),
                *("--request-timeout", "60", "--continue-on-failure", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
        assert "internal error" not in running.relay.output()
        assert "Traceback" not in running.relay.output()
