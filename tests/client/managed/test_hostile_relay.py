"""A relay that asks for anything: it is answered in words, and the node serves what it served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real, script
from tests.harness.supervised import ALIAS, REPO, node, servers
from tests.harness.tiny_gguf import tiny_gguf
from wai_node.managed.calls import CALLS, ModelCalls
from wai_node.managed.deployment import State
from wai_node.managed.policy import ManagedSettings
from wai_protocol.errors import WaiError
from wai_protocol.frames import pack

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

MODELS: Final = (
    *("", "a", "a/b", "a/b:", ":", REPO, f"{REPO}:Q9", f"{REPO}:../../x", "../../etc/passwd"),
    *("a/\x1b[2J", "a/b" * 1000, "tiny/llama-GGUF\n", "--help/x", "a/..", "a\x00/b"),
)
NUMBERS: Final[tuple[Any, ...]] = (
    *(0, -1, 1, 1 << 62, -(1 << 63), 256, 257),
    *(1.5, float("nan"), float("inf"), -0.0, True, None, "7", [], {}),
)
VALUES: Final = st.one_of(st.sampled_from(MODELS), st.sampled_from(NUMBERS), st.text(max_size=20))
FIELDS: Final = (
    *("model", "query", "limit", "context", "slots", "idle_unload_s", "lines", "else"),
    *("load", "priority"),
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    require_real("llama-server")
    gguf = tiny_gguf(tmp_path).read_bytes()
    with FakeHub({REPO: FakeRepo({"tiny-F16.gguf": gguf})}) as fake:
        yield fake


@pytest.mark.parametrize("method", [*CALLS, "model.nothing", "", "model.deploy\n"])
async def test_whatever_is_asked_is_answered_in_words(
    hub: FakeHub, tmp_path: Path, method: str
) -> None:
    how = ManagedSettings(
        folder=tmp_path / "node",
        models_folder=tmp_path / "models",
        server=script("llama-server-vulkan"),
        threads=1,
        kept_free_bytes=0,
    )
    asked: list[dict[str, Any]] = []

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
    def collect(params: dict[str, Any]) -> None:
        asked.append(params)

    collect()
    async with node(hub, how) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        calls = ModelCalls(n.supervisor)
        refusals = []
        for params in asked:
            try:
                pack(await calls.answer(method, params, lambda name, value: None))
            except WaiError as error:
                refusals.append(str(error))
        assert max(map(len, refusals), default=0) < 1000
        await n.until_state(State.READY)
        assert n.status().alias == ALIAS
        assert (await n.complete())["choices"]
        assert len(servers()) == 1
