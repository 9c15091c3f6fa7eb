"""The relay and the node as the bench measures them: whole, but for sockets and TLS."""

from __future__ import annotations

import gc

import pytest

from bench.python_cost import parts

pytestmark = pytest.mark.anyio

REQUESTS = 20


class Unmeasured:
    def run(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def end_batch(self, size: int) -> None:
        pass


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("name", ["relay-request", "node-request"])
async def test_a_request_leaves_nothing_to_the_garbage_collector(name: str) -> None:
    async with parts() as all_parts:
        requests = all_parts[name]
        await requests(Unmeasured(), 1, REQUESTS)  # the first ones make what is kept
        gc.collect()
        await requests(Unmeasured(), 1, REQUESTS)
        assert gc.collect() < REQUESTS  # not one object of each
