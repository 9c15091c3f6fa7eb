"""One whole path for the tests that break nothing in it.

They are in the group `served`, so that one worker runs them all, and starts it once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.cluster import ApiKey, Cluster, cluster
from tests.harness.llama_server import LlamaServer, llama_server
from tests.harness.odd_upstream import MODELS, OddUpstream, odd_upstream

INFERENCE_KEY = "inference-key-of-the-tests"


@dataclass(frozen=True, slots=True)
class Served:
    """A relay with two nodes: `box` serves a real llama-server, `odd` an upstream of faults."""

    cluster: Cluster
    llama: LlamaServer
    odd: OddUpstream
    key: ApiKey

    @property
    def authorization(self) -> dict[str, str]:
        """The header that every caller sends."""
        return {"Authorization": f"Bearer {self.key.secret}"}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Served]:
    """Shared by all tests of this worker: leave keys and nodes that you did not make alone."""
    folder = tmp_path_factory.mktemp("served")
    with (
        llama_server(tiny_model, folder, key=INFERENCE_KEY, embeddings=True) as llama,
        odd_upstream() as odd,
        cluster(folder) as running,
    ):
        running.add_node("box", llama.url, upstream_key=INFERENCE_KEY)
        running.add_node("odd", odd.url, models=len(MODELS))
        yield Served(running, llama, odd, running.create_key())
