"""Models that Ollama and LM Studio are told to fetch: their progress, their faults, their end."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest

from tests.harness.lm_studio_disk import lm_studio_disk
from tests.harness.ollama_disk import FULL, NO_FILE, NO_NET, ollama_disk
from wai_node.managed.deployment import State
from wai_node.managed.entry import DeploymentStatus
from wai_node.managed.policy import ManagedSettings
from wai_node.managed.pulls.pulls import FIRST_HOLD_S, Pulls
from wai_node.models.download import Clock
from wai_node.upstreams import lm_studio_models
from wai_node.upstreams.board import Board
from wai_node.upstreams.kinds import KINDS
from wai_node.upstreams.lm_studio import LmStudioUpstream
from wai_node.upstreams.lm_studio_models import LmStudioStore
from wai_node.upstreams.model_store import ModelStore
from wai_node.upstreams.ollama import OllamaUpstream
from wai_node.upstreams.upstream import Upstream
from wai_protocol.errors import AuthError, RequestError, TransportError, WaiError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

QWEN: Final = "ollama:qwen3:8b"
LAYERS: Final = {"qwen3:8b": [8000, 16, 400]}
GPT: Final = {"openai/gpt-oss-20b": ("openai/gpt-oss-20b", 12000)}
WAIT_S: Final = 20.0


class Time:
    """A clock that is moved, and what was waited for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds
        await anyio.lowlevel.checkpoint()

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.sleep, random=lambda: 0.0)


class LmStudioInTests(LmStudioUpstream):
    time: Time

    def store(self) -> ModelStore:
        return LmStudioStore(self, self.time.sleep)


class Box:
    """A node's pulls, its servers, and what it was told."""

    def __init__(self, folder: Path, *servers: Upstream, time: Time, **settings: Any) -> None:
        self.board, self.time, self.servers = Board(), time, servers
        self.told: list[DeploymentStatus] = []
        self.failed: dict[str, str | None] = {}
        for server in servers:
            self.board.add(server)
        self.pulls = Pulls(
            ManagedSettings(folder=folder, models_folder=folder / "models", **settings),
            *(self.board, KINDS),
            on_change=self.told.append,
            tell_failed=self.failed.__setitem__,
            clock=time.clock(),
        )

    def status(self, alias: str = QWEN) -> DeploymentStatus:
        [found] = [s for s in self.pulls.deployed() if s.alias == alias]
        return found

    async def look(self) -> None:
        """Ask the servers, as the watch does, and take their word."""
        for server in self.servers:
            try:
                self.board.probed(server, await server.probe())
            except WaiError as error:
                self.board.failed(server, str(error), timed_out=False)
        self.pulls.look()

    async def until(self, true: Callable[[], bool]) -> None:
        with anyio.fail_after(WAIT_S):
            while not true():  # noqa: ASYNC110 -- the fakes run in threads
                await anyio.sleep(0.01)

    async def until_state(self, state: State, alias: str = QWEN) -> DeploymentStatus:
        try:
            await self.until(lambda: self.status(alias).state is state)
        except TimeoutError:
            raise AssertionError(f"not {state}: {self.status(alias)}") from None
        return self.status(alias)


@asynccontextmanager
async def box(folder: Path, *servers: Upstream, time: Time, **settings: Any) -> AsyncIterator[Box]:
    found = Box(folder, *servers, time=time, **settings)
    try:
        async with anyio.create_task_group() as tasks:
            await found.look()
            await tasks.start(found.pulls.run)
            try:
                yield found
            finally:
                tasks.cancel_scope.cancel()
    finally:
        for server in servers:
            await server.aclose()


async def test_a_pull_tells_its_bytes_and_ends_loaded(tmp_path: Path) -> None:
    time = Time()
    with ollama_disk(registry=LAYERS) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=time) as b:
            assert await b.pulls.deploy(QWEN, idle_unload_s=90) == QWEN
            status = await b.until_state(State.READY)
            assert (status.size_bytes, status.served_by, status.called) == (
                8416,
                "ollama",
                "qwen3:8b",
            )
            assert disk.loaded == {"qwen3:8b"}
            assert disk.keep_alive == ["90s"]
            shares = [s.progress for s in b.told if s.progress is not None]
            assert [p.done_bytes for p in shares] == sorted(p.done_bytes for p in shares)
            assert (shares[-1].done_bytes, shares[-1].total_bytes) == (8416, 8416)
            assert State.DOWNLOADING in {s.state for s in b.told}
            time.now += 60
            await b.look()
            status = b.status()
            assert (status.state, status.context_served, status.purpose) == (
                State.READY,
                4096,
                "chat",
            )


async def test_unload_and_load_are_seen(tmp_path: Path) -> None:
    time = Time()
    with ollama_disk(registry=LAYERS) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=time) as b:
            await b.pulls.deploy(QWEN)
            await b.until_state(State.READY)
            await b.pulls.unload(QWEN)
            time.now += 60
            await b.look()
            assert b.status().state is State.ASLEEP
            assert not disk.loaded
            await b.pulls.load(QWEN)
            await b.until_state(State.READY)
            assert disk.loaded == {"qwen3:8b"}


async def test_a_model_for_embeddings_is_loaded_too(tmp_path: Path) -> None:
    with ollama_disk(registry={"nomic:latest": [64]}, embeds={"nomic:latest"}) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time()) as b:
            await b.pulls.deploy("ollama:nomic")
            await b.until_state(State.READY, "ollama:nomic")
            assert disk.loaded == {"nomic:latest"}
            await b.look()
            assert b.status("ollama:nomic").purpose == "embedding"


async def test_to_remove_it_while_it_is_pulled_closes_the_stream_and_a_next_one_goes_on(
    tmp_path: Path,
) -> None:
    with ollama_disk(registry=LAYERS, held=threading.Event()) as disk:
        disk.held.clear()
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time()) as b:
            await b.pulls.deploy(QWEN)
            await b.until(lambda: sum(disk.partial.values()) >= 4000)
            await b.pulls.remove(QWEN)
            await b.until(disk.hung_up.is_set)
            await b.until(lambda: not b.pulls.deployed())
            assert not disk.models
            disk.held.set()
            await b.pulls.deploy(QWEN)
            await b.until_state(State.READY)
            first = next(s.progress for s in reversed(b.told) if s.progress is not None)
            assert first.total_bytes == 8416


@pytest.mark.parametrize(
    "fault", ["cut", NO_NET, "unexpected EOF", "digest mismatch, file must be"]
)
async def test_a_pull_that_breaks_is_gone_on_with(tmp_path: Path, fault: str) -> None:
    time = Time()
    with ollama_disk(registry=LAYERS) as disk:
        disk.faults.extend([fault, fault])
        async with box(tmp_path, OllamaUpstream(disk.url), time=time) as b:
            await b.pulls.deploy(QWEN)
            await b.until_state(State.READY)
            assert len(disk.pulls) == 3
            assert time.waited[0] <= time.waited[1]
            assert not b.status().reason


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (FULL, "is full"),
        (NO_FILE, "Ollama's registry has no qwen3:8b"),
        ("garbage", "sends progress that is none"),
        ("endless", "has no end"),
        ("403", "does not pull qwen3:8b (403): forbidden"),
        ("this model needs a newer version", "could not pull qwen3:8b: this model needs"),
    ],
)
async def test_what_can_not_pass_fails_at_once_in_the_servers_words(
    tmp_path: Path, fault: str, words: str
) -> None:
    with ollama_disk(registry=LAYERS) as disk:
        disk.faults.append(fault)
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time()) as b:
            await b.pulls.deploy(QWEN)
            status = await b.until_state(State.FAILED)
            assert words in status.reason
            assert len(status.reason) < 600
            assert status.given_up
            assert b.failed["qwen3:8b"] == status.reason
            assert len(disk.pulls) == 1
            await b.pulls.deploy(QWEN)  # somebody made room
            await b.until_state(State.READY)
            assert b.failed["qwen3:8b"] is None


async def test_a_registry_that_stays_away_is_given_up_and_tried_again_later(tmp_path: Path) -> None:
    time = Time()
    with ollama_disk(registry=LAYERS) as disk:
        disk.faults.extend([NO_NET] * 12)
        async with box(tmp_path, OllamaUpstream(disk.url), time=time) as b:
            await b.pulls.deploy(QWEN)
            await b.until_state(State.READY)
            assert any(s.state is State.FAILED and "no such host" in s.reason for s in b.told)
            assert 300.0 in time.waited


async def test_a_model_that_does_not_load_says_why_and_stays_failed(tmp_path: Path) -> None:
    time = Time()
    with ollama_disk(registry=LAYERS, too_large={"qwen3:8b"}) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=time) as b:
            await b.pulls.deploy(QWEN)
            status = await b.until_state(State.FAILED)
            assert "more system memory (41.2 GiB)" in status.reason
            time.now += 60
            await b.look()
            assert b.status().state is State.FAILED
            disk.too_large.clear()
            await b.pulls.load(QWEN)
            await b.until_state(State.READY)


async def test_an_ollama_without_the_route_is_to_be_updated(tmp_path: Path) -> None:
    with ollama_disk(registry=LAYERS, no_routes={"/api/pull"}) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time()) as b:
            await b.pulls.deploy(QWEN)
            assert "update Ollama" in (await b.until_state(State.FAILED)).reason


async def test_to_remove_deletes_what_was_pulled_and_keeps_what_was_there(tmp_path: Path) -> None:
    registry = {**LAYERS, "llama3:latest": [10]}
    with ollama_disk(registry=registry, models={"llama3:latest": 10}) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time()) as b:
            for alias in (QWEN, "ollama:llama3"):
                await b.pulls.deploy(alias)
                await b.until_state(State.READY, alias)
            for alias in (QWEN, "ollama:llama3"):
                await b.pulls.remove(alias)
            await b.until(lambda: not b.pulls.deployed())
            assert disk.deleted == ["qwen3:8b"]
            assert list(disk.models) == ["llama3:latest"]
            assert not disk.loaded


async def test_a_model_that_was_deleted_there_is_said_to_be_gone(tmp_path: Path) -> None:
    time = Time()
    with ollama_disk(registry=LAYERS) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=time) as b:
            await b.pulls.deploy(QWEN)
            await b.until_state(State.READY)
            disk.models.clear()
            disk.loaded.clear()
            time.now += 60
            await b.look()
            assert "was deleted there" in b.status().reason
            await b.pulls.deploy(QWEN)
            await b.until_state(State.READY)
            await b.pulls.remove(QWEN)
            await b.until(lambda: not b.pulls.deployed())


async def test_a_restarted_node_goes_on_with_a_pull_and_knows_what_it_has(tmp_path: Path) -> None:
    time = Time()
    registry = {**LAYERS, "big:latest": [8000]}
    with ollama_disk(registry=registry) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=time) as b:
            await b.pulls.deploy(QWEN)
            await b.until_state(State.READY)
            disk.held.clear()
            await b.pulls.deploy("ollama:big")
            await b.until(lambda: len(disk.pulls) == 2)
        disk.held.set()
        disk.loaded.clear()
        async with box(tmp_path, OllamaUpstream(disk.url), time=time) as b:
            await b.until_state(State.READY, "ollama:big")
            assert b.status().state is State.ASLEEP
            time.now += FIRST_HOLD_S
            await b.look()
            assert b.status().state is State.ASLEEP


async def test_a_server_that_went_away_is_named_and_comes_back(tmp_path: Path) -> None:
    time = Time()
    with ollama_disk(registry=LAYERS) as disk:
        server = OllamaUpstream(disk.url)
        async with box(tmp_path, server, time=time) as b:
            await b.pulls.deploy(QWEN)
            await b.until_state(State.READY)
            time.now += 60
            b.board.failed(server, "refused", timed_out=False)
            b.pulls.look()
            assert b.status().reason == "no ollama answers on this node; start it"
            with pytest.raises(WaiError, match="no ollama answers"):
                await b.pulls.load(QWEN)
            await b.look()
            assert b.status().state is State.READY


async def test_the_owner_decides(tmp_path: Path) -> None:
    with ollama_disk(registry=LAYERS) as disk:
        server = OllamaUpstream(disk.url)
        async with box(tmp_path, server, time=Time(), allow_deploy=False) as b:
            for ask in (b.pulls.deploy, b.pulls.remove, b.pulls.load, b.pulls.unload):
                with pytest.raises(AuthError, match="takes no deployments"):
                    await ask(QWEN)
        only = frozenset({"unsloth"})
        async with box(
            tmp_path, OllamaUpstream(disk.url), time=Time(), allowed_publishers=only
        ) as b:
            with pytest.raises(AuthError, match="no models by library"):
                await b.pulls.deploy(QWEN)
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time(), disk_quota_bytes=4000) as b:
            disk.held.clear()  # so that it is not done before the connection is closed
            await b.pulls.deploy(QWEN)
            assert "quota" in (await b.until_state(State.FAILED)).reason
            await b.until(disk.hung_up.is_set)
            assert not disk.models


@pytest.mark.parametrize(
    "name", ["", " ", "../../etc", "a b", "x" * 400, "--help", "qwen3:8b\n", "a/b/c/d:e", "é"]
)
async def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with ollama_disk() as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time()) as b:
            with pytest.raises(RequestError, match="no name of a model"):
                await b.pulls.deploy(f"ollama:{name}")
            with pytest.raises(RequestError, match="no model of LM Studio's"):
                LmStudioStore(OllamaUpstream(disk.url)).publisher(name)
    assert not disk.pulls


async def test_a_model_is_not_deployed_by_two_names(tmp_path: Path) -> None:
    with ollama_disk(registry={"qwen3:latest": [8]}) as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time()) as b:
            await b.pulls.deploy("ollama:qwen3")
            await b.until_state(State.READY, "ollama:qwen3")
            with pytest.raises(RequestError, match="deployed already, as ollama:qwen3"):
                await b.pulls.deploy("ollama:Qwen3:latest")


async def test_what_a_server_decides_itself_is_refused(tmp_path: Path) -> None:
    time = Time()
    with ollama_disk() as ollama, lm_studio_disk(catalogue=GPT) as disk:
        async with box(
            tmp_path, OllamaUpstream(ollama.url), studio(disk.url, time), time=time
        ) as b:
            with pytest.raises(RequestError, match="leave --context out"):
                await b.pulls.deploy(QWEN, 4096)
            with pytest.raises(RequestError, match="leave --idle-unload out"):
                await b.pulls.deploy("lmstudio:openai/gpt-oss-20b", None, 60.0)


async def test_a_model_that_runs_elsewhere_is_refused(tmp_path: Path) -> None:
    with ollama_disk() as disk:
        async with box(tmp_path, OllamaUpstream(disk.url), time=Time()) as b:
            for name in ("gpt-oss:120b-cloud", "glm-4.6:cloud"):
                with pytest.raises(RequestError, match=r"runs at ollama\.com"):
                    await b.pulls.deploy(f"ollama:{name}")


async def test_a_node_without_the_server_says_so(tmp_path: Path) -> None:
    async with box(tmp_path, time=Time()) as b:
        with pytest.raises(TransportError, match="no ollama answers on this node"):
            await b.pulls.deploy(QWEN)
        assert not b.pulls.deployed()


def studio(url: str, time: Time) -> LmStudioUpstream:
    server = LmStudioInTests(url)
    server.time = time
    return server


async def test_lm_studio_downloads_and_loads_with_the_context(tmp_path: Path) -> None:
    alias, time = "lmstudio:openai/gpt-oss-20b", Time()
    with lm_studio_disk(catalogue=GPT) as disk:
        disk.answers.extend(["downloading", "paused", "downloading"])
        async with box(tmp_path, studio(disk.url, time), time=time) as b:
            await b.pulls.deploy(alias, 8192)
            status = await b.until_state(State.READY, alias)
            assert (status.size_bytes, status.context_tokens) == (12000, 8192)
            assert disk.loaded == {"openai/gpt-oss-20b": [8192]}
            assert {s.progress.done_bytes for s in b.told if s.progress} >= {6000}
            await b.pulls.deploy(alias, 16384)  # loaded anew, not once more
            await b.until(lambda: disk.loaded == {"openai/gpt-oss-20b": [16384]})
            await b.until_state(State.READY, alias)
            await b.pulls.remove(alias)
            await b.until(lambda: not b.pulls.deployed())
            assert disk.loaded == {"openai/gpt-oss-20b": []}
            assert disk.models  # there is no route that deletes


async def test_a_repository_is_known_by_the_key_that_lm_studio_gives_it(tmp_path: Path) -> None:
    alias, time = "lmstudio:unsloth/Qwen3-4B-GGUF:Q4_K_M", Time()
    repository = {"unsloth/Qwen3-4B-GGUF": ("qwen3-4b", 9)}
    with lm_studio_disk(catalogue=repository, models={"other": 1}) as disk:
        async with box(tmp_path, studio(disk.url, time), time=time) as b:
            await b.pulls.deploy(alias)
            assert (await b.until_state(State.READY, alias)).called == "qwen3-4b"
            link = "https://huggingface.co/unsloth/Qwen3-4B-GGUF"
            assert disk.asked[0] == ("download", {"model": link, "quantization": "Q4_K_M"})


async def test_lm_studios_failures_are_told(tmp_path: Path) -> None:
    alias, time = "lmstudio:openai/gpt-oss-20b", Time()
    with lm_studio_disk(catalogue=GPT) as disk:
        async with box(tmp_path, studio(disk.url, time), time=time) as b:
            await b.pulls.deploy("lmstudio:no/such")
            status = await b.until_state(State.FAILED, "lmstudio:no/such")
            assert "Model 'no/such' was not found" in status.reason
            disk.answers.append("failed")
            await b.pulls.deploy(alias)
            assert "its own log says why" in (await b.until_state(State.FAILED, alias)).reason
            disk.answers.extend(["gone", "downloading"])
            await b.pulls.deploy(alias)  # it was restarted, and is asked once more
            await b.until_state(State.READY, alias)
            assert [what for what, _ in disk.asked].count("download") == 4


async def test_a_paused_download_is_given_up_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_studio_models, "STILL_S", 10.0)
    alias, time = "lmstudio:openai/gpt-oss-20b", Time()
    with lm_studio_disk(catalogue=GPT) as disk:
        disk.answers.extend(["paused"] * 12)
        async with box(tmp_path, studio(disk.url, time), time=time) as b:
            await b.pulls.deploy(alias)
            await b.until(lambda: any("got nothing" in s.reason for s in b.told))
            await b.until_state(State.READY, alias)


async def test_an_old_lm_studio_is_to_be_updated(tmp_path: Path) -> None:
    alias, time = "lmstudio:openai/gpt-oss-20b", Time()
    with lm_studio_disk(catalogue=GPT, old=True) as disk:
        async with box(tmp_path, studio(disk.url, time), time=time) as b:
            await b.pulls.deploy(alias)
            assert "update LM Studio" in (await b.until_state(State.FAILED, alias)).reason
