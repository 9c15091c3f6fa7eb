"""Models that take turns on a box with room for two, with real servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from msgspec.structs import replace

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real, script
from tests.harness.supervised import Node, node, servers, write_script
from tests.harness.tiny_gguf import tiny_gguf
from wai_node.managed.calls import ModelCalls
from wai_node.managed.deployment import State
from wai_node.managed.options import ServeOptions
from wai_node.managed.policy import ManagedSettings
from wai_node.managed.serving import ManagedUpstream
from wai_node.models.hardware import Hardware
from wai_protocol.errors import NodeUnavailable, RequestError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(100)]

REPOS: Final = ("tiny/one-GGUF", "tiny/two-GGUF", "tiny/three-GGUF")
ONE, TWO, THREE = (f"{repo}:F16" for repo in REPOS)
TOTAL: Final = 8 << 30


def box_for(fitting: int) -> Any:
    """A machine whose free memory is enough for so many servers, as it is now."""

    def measure() -> Hardware:
        room = max(100 << 20, (fitting - len(servers())) * (600 << 20))
        return Hardware((), TOTAL, int(0.08 * TOTAL) + room, "cpu", 2)

    return measure


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("gguf")).read_bytes()


@pytest.fixture
def hub(gguf: bytes) -> Iterator[FakeHub]:
    require_real("llama-server")
    with FakeHub({repo: FakeRepo({"tiny-F16.gguf": gguf}) for repo in REPOS}) as fake:
        yield fake


def served(n: Node, alias: str, context: int) -> bool:
    return n.status(alias).context_served == context


def awake(n: Node) -> set[str]:
    return {s.alias for s in n.supervisor.deployed() if s.state is State.READY}


async def deploy(n: Node, *repos: str, load: Any = "on_demand", **more: Any) -> None:
    for repo in repos:
        await n.supervisor.deploy(repo, 512, 1, load=load, **more)
        await n.until_state(State.READY, f"{repo}:F16")


async def test_the_least_recently_used_model_makes_room_and_comes_back_when_asked(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    most = 0
    async with node(hub, settings, hardware=box_for(2)) as n:
        await deploy(n, *REPOS[:2])
        await n.complete(ONE)
        await deploy(n, REPOS[2])
        assert awake(n) == {ONE, THREE}
        for alias in (TWO, ONE, THREE, TWO):
            answer = await n.complete(alias)
            assert answer["usage"]["completion_tokens"] == 4
            most = max(most, len(servers()))
        assert most == 2
        async with n.supervisor.lease(ONE) as endpoint:
            assert endpoint.loaded is not None
            [gone] = endpoint.loaded.made_room
            assert gone in (TWO, THREE)
            assert endpoint.loaded.load_s > 0
        async with n.supervisor.lease(ONE) as endpoint:
            assert endpoint.loaded is None, "it waited for nothing"


async def test_mixed_load_on_three_models_fails_no_request(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(2)) as n:
        await deploy(n, *REPOS)
        answers: list[int] = []

        async def caller(alias: str) -> None:
            for _ in range(4):
                answer = await n.complete(alias)
                answers.append(answer["usage"]["completion_tokens"])

        async with anyio.create_task_group() as tasks:
            for alias in (ONE, TWO, THREE) * 2:
                tasks.start_soon(caller, alias)
        assert answers == [4] * 24


async def test_after_a_restart_only_what_is_kept_loaded_is_loaded(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(3)) as n:
        await deploy(n, REPOS[0])
        await deploy(n, REPOS[1], load="keep_loaded")
        await deploy(n, REPOS[2], load=None, idle_unload_s=3600)
        stored = settings.folder / "wanted.json"
        await n.until(lambda: stored.read_text().count('"load_s": 0.') == 3)
    async with node(hub, settings, hardware=box_for(3)) as n:
        await n.until_state(State.READY, TWO)
        await n.until_state(State.ASLEEP, ONE)
        await n.until_state(State.ASLEEP, THREE)
        assert len(servers()) == 1
        known = json.loads(stored.read_text())["models"]
        assert n.status(ONE).load_s == known[0]["load_s"]
        assert n.status(ONE).wakes
        await n.complete(ONE)


async def test_what_is_kept_loaded_gives_way_to_a_more_important_one_only(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(2)) as n:
        await deploy(n, *REPOS[:2], load="keep_loaded")
        with pytest.raises(RequestError, match="does not fit this node"):
            await n.supervisor.deploy(REPOS[2], 512, 1, load="on_demand")
        await deploy(n, REPOS[2], priority=1)
        assert THREE in awake(n)
        await n.until(lambda: "make room" in " ".join(s.reason for s in n.supervisor.deployed()))
        assert len(servers()) == 2


async def test_a_request_that_can_never_have_room_is_told_who_has_it(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(2)) as n:
        calls = ModelCalls(n.supervisor)
        await deploy(n, *REPOS)
        for alias in (TWO, THREE):
            await calls.answer(
                "model.edit", {"model": alias, "load": "keep_loaded"}, lambda name, value: None
            )
        await n.until(lambda: awake(n) == {TWO, THREE})
        with pytest.raises(NodeUnavailable, match=f"beside {THREE}, {TWO}, which are kept loaded"):
            await n.complete(ONE)
        assert len(servers()) == 2


async def test_an_edit_of_the_policy_restarts_no_server(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(2)) as n:
        calls = ModelCalls(n.supervisor)
        await deploy(n, REPOS[0], load="keep_loaded")
        [server] = servers()
        edit = {"model": ONE, "load": "on_demand", "idle_unload_s": 60.0, "priority": 3}
        [told] = await calls.answer("model.edit", edit, lambda name, value: None)
        assert (told["load"], told["idle_unload_s"], told["priority"]) == ("on_demand", 60.0, 3)
        assert [s.pid for s in servers()] == [server.pid]
        wrong = {"model": ONE, "load": "keep_loaded", "idle_unload_s": 9.0}
        with pytest.raises(RequestError, match="kept loaded is not unloaded"):
            await calls.answer("model.edit", wrong, lambda name, value: None)
        [told] = await calls.answer(
            "model.edit", {"model": ONE, "load": "keep_loaded"}, lambda name, value: None
        )
        assert (told["load"], told["idle_unload_s"]) == ("keep_loaded", None)


async def test_a_sleeping_model_is_edited_and_removed(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(1)) as n:
        await deploy(n, *REPOS[:2])
        await n.until_state(State.ASLEEP, ONE)
        await n.supervisor.edit(ONE, 1024)
        assert n.status(ONE).state is State.ASLEEP
        await n.complete(ONE)
        assert n.status(ONE).context_served == 1024
        await n.until_state(State.ASLEEP, TWO)
        await n.supervisor.remove(TWO)
        await n.until(lambda: [s.alias for s in n.supervisor.deployed()] == [ONE])
        assert not list((settings.models_folder / REPOS[1]).rglob("*"))


async def test_what_a_server_frees_that_is_about_to_end_is_not_counted_twice(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    seen: list[int] = []

    def measure() -> Hardware:
        seen.append(len(servers()))
        return Hardware((), TOTAL, TOTAL, "cpu", 2)

    async with node(hub, settings, hardware=measure) as n:
        await deploy(n, REPOS[0])
        n.supervisor.unload(ONE)
        seen.clear()
        await n.supervisor.edit(ONE, 1024)
        assert seen
        assert not any(seen), "measured while it ended"


async def test_another_second_name_restarts_no_server(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(2)) as n:
        calls = ModelCalls(n.supervisor)
        await deploy(n, REPOS[0], options=ServeOptions(alias="first"))
        [server] = servers()
        for alias in ("second", ""):
            edit = {"model": ONE, "alias": alias}
            [told] = await calls.answer("model.edit", edit, lambda name, value: None)
            assert (told["alias"], told["changing"]) == (alias, False)
        assert [s.pid for s in servers()] == [server.pid]
    async with node(hub, settings, hardware=box_for(2)) as n:
        assert n.status(ONE).options.alias == ""


async def test_an_engine_that_fails_is_not_started_again_and_again_for_a_sleeping_model(
    hub: FakeHub, settings: ManagedSettings, tmp_path: Path
) -> None:
    broken, starts, server = tmp_path / "broken", tmp_path / "starts", tmp_path / "llama-server"
    real = script("llama-server-vulkan")
    body = f'echo >> {starts}\n[ -e {broken} ] && exit 7\nexec {real} "$@"\n'
    write_script(server, body)
    how = replace(settings, server=str(server))
    async with node(hub, how, hardware=box_for(2)) as n:
        await deploy(n, REPOS[0], load=None, idle_unload_s=1.0)
        await n.until_state(State.ASLEEP, ONE)
        broken.touch()
        before = len(starts.read_text())
        for _ in range(20):
            with pytest.raises(NodeUnavailable, match=r"the server .*7"):
                await n.complete(ONE)
        assert len(starts.read_text()) == before + 1, "each request starts it"
        status = await n.until_state(State.ASLEEP, ONE)
        assert "7" in status.reason, "nobody is told"
        broken.unlink()
        await n.complete(ONE)
        assert n.status(ONE).reason == ""


async def test_a_caller_that_goes_away_takes_its_wish_for_room_with_it(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(1)) as n:
        await deploy(n, *REPOS[:2])
        async with n.supervisor.lease(TWO):  # busy: it can't make room
            with pytest.raises(NodeUnavailable, match=f"waits until {TWO} can make room"):
                # To look at the servers takes half a second while one of them has just loaded.
                async with n.supervisor.lease(ONE, 3.0):
                    raise AssertionError
            await n.until_state(State.ASLEEP, ONE)
        await n.complete(TWO)
        assert awake(n) == {TWO}


async def test_a_load_that_has_begun_goes_on_without_its_caller(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(1)) as n:
        await deploy(n, *REPOS[:2])
        await n.until_state(State.ASLEEP, ONE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(n.complete, ONE)
            await n.until(lambda: n.status(ONE).state is State.STARTING and bool(servers()))
            await n.until(lambda: n.status(TWO).state is State.ASLEEP)
            await n.until(lambda: n.status(ONE).reason == "")
            tasks.cancel_scope.cancel()
        await n.until_state(State.READY, ONE)


async def test_two_that_are_deployed_at_once_for_the_last_room_take_turns(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(1)) as n:
        async with anyio.create_task_group() as tasks:
            for repo in REPOS[:2]:
                tasks.start_soon(deploy, n, repo)
        assert len(servers()) == 1
        started = time.monotonic()
        await n.complete(ONE)
        await n.complete(TWO)
        assert time.monotonic() - started < 30


async def test_a_model_that_is_to_make_room_is_told_as_one_that_must_be_loaded(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(1)) as n:
        await deploy(n, *REPOS[:2])
        upstream = ManagedUpstream(TWO, n.supervisor)

        async def told() -> tuple[bool | None, float]:
            [model] = (await upstream.probe()).models
            return model.loaded, model.load_s

        assert await told() == (True, 0.0)
        async with anyio.create_task_group() as tasks, n.supervisor.lease(TWO):
            tasks.start_soon(n.complete, ONE)
            await n.until(lambda: n.supervisor.serving()[TWO].closing)
            loaded, load_s = await told()
            assert not loaded
            assert load_s > 0
            [asleep] = (await ManagedUpstream(ONE, n.supervisor).probe()).models
            assert (asleep.ready, asleep.loaded) == (True, False)
        await upstream.aclose()
        assert awake(n) == {ONE}


async def test_the_context_of_models_that_take_turns_is_changed_under_load(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings, hardware=box_for(1)) as n:
        await deploy(n, *REPOS[:2])
        stop = anyio.Event()
        answers: list[int] = []

        async def caller(alias: str) -> None:
            while not stop.is_set():
                answer = await n.complete(alias)
                answers.append(answer["usage"]["completion_tokens"])

        async with anyio.create_task_group() as tasks:
            for alias in (ONE, TWO):
                tasks.start_soon(caller, alias)
            await n.until(lambda: len(answers) > 2)
            for alias in (ONE, TWO):
                await n.supervisor.edit(alias, 1024)
                await n.until(partial(served, n, alias, 1024))
                assert n.status(alias).swap_error == ""
            stop.set()
        assert set(answers) == {4}
