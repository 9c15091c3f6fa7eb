"""A node's GPUs, as its driver tells of them, reach `wai top` and `/metrics`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.caller import request
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.fake_nvml import write_shim
from tests.harness.ollama_disk import ollama_disk
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def machines(running: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(wai("top", "--data", running.data, "--json"))[
        "hardware"
    ]
    return found


def metrics(running: Cluster) -> str:
    token = (running.data / "admin.token").read_text().strip()
    with request(running, "/metrics", headers={"Authorization": f"Bearer {token}"}) as answer:
        return answer.read().decode()


def test_what_the_driver_tells_is_seen_and_what_it_hides_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "shim"
    shim.mkdir()
    write_shim(shim, "[{'power': Errors(NO_PERMISSION)}, {'use': Errors(LOST)}]")
    monkeypatch.setenv("PYTHONPATH", str(shim))
    with ollama_disk(models={"m:latest": 5}) as disk, cluster(tmp_path) as running:
        running.add_node("box", disk.url)
        wait_until(lambda: bool(machines(running)), "nothing is told of the machine")
        [row] = machines(running)
        first, second = row["now"]["gpus"]
        assert (first["use"], first["power"], first["power_limit"]) == (87.0, None, 700.0)
        assert "lost" in second["problem"]
        assert row["history"][-1] == 87.0
        told = metrics(running)
        assert 'wai_node_gpu_use_ratio{node="box",gpu="0"} 0.87' in told
        assert 'wai_node_gpu_power_watts{node="box"' not in told
        assert 'wai_node_gpu_lost{node="box",gpu="1"} 1' in told
        assert 'wai_node_ram_used_bytes{node="box"}' in told
        assert "GPU fails" in wai("top", "--data", running.data)
