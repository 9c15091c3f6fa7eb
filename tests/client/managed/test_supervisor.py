"""Models deployed for real: a fake hub, a real llama-server (b10434) with tiny models."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from msgspec.structs import replace

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real, script
from tests.harness.supervised import ALIAS, KEY, REPO, node, servers, write_script
from tests.harness.tiny_gguf import tiny_gguf
from tests.harness.unix_http import ask
from wai_node.managed.deployment import State
from wai_node.managed.policy import ManagedSettings
from wai_node.models.hardware import Gpu, Hardware
from wai_protocol.errors import Fault, NodeUnavailable, RequestError, WaiError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

# of 8 GiB, 8 % are kept free: 100 MiB more are too few for a process beside the running one
ROOM_FOR_ONE: Final = int(0.08 * (1 << 33)) + (100 << 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("gguf")).read_bytes()


@pytest.fixture
def hub(model: bytes) -> Iterator[FakeHub]:
    require_real("llama-server")
    broken = model[: len(model) // 2]  # a header that reads well, and tensors that are not there
    repos = {
        REPO: FakeRepo({"tiny-F16.gguf": model}),
        "tiny/broken-GGUF": FakeRepo({"broken-F16.gguf": broken}),
        "tiny/gated-GGUF": FakeRepo({"g-F16.gguf": model}, gated=True),
    }
    with FakeHub(repos) as fake:
        yield fake


async def test_search_fit_deploy_answer_remove(hub: FakeHub, settings: ManagedSettings) -> None:
    async with node(hub, settings) as n:
        assert [m.repo for m in await n.supervisor.search("llama")] == [REPO]
        [fitted] = await n.supervisor.fit(REPO, 1024, 1)
        assert fitted.quant == "F16"
        assert await n.supervisor.deploy(REPO, 1024, 2) == ALIAS
        status = await n.until_state(State.READY)
        assert (status.context_served, status.slots) == (1024, 2)
        answer = await n.complete()
        assert answer["usage"]["completion_tokens"] == 4
        names = [event.status.state for event in n.events]
        order = [State.DOWNLOADING, State.STARTING, State.READY]
        assert sorted(order, key=names.index) == order
        assert any(event.name == "progress" for event in n.events)
        await n.supervisor.remove(ALIAS)
        await n.until(lambda: n.supervisor.deployed() == [])
        assert servers() == []
        assert list(settings.models_folder.iterdir()) == []
        assert list((settings.folder / "logs").iterdir()) == []


async def test_the_key_is_demanded_and_seen_nowhere(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        await n.complete()
        [endpoint] = n.supervisor.serving().values()
        with pytest.raises(urllib.error.HTTPError) as refused:
            await anyio.to_thread.run_sync(ask, endpoint.url, "/v1/completions", "", {"a": 1})
        assert refused.value.code == 401
        refused.value.close()
        assert servers()
        assert not any(KEY in " ".join(p.cmdline()) for p in servers())
        log = "\n".join(await n.supervisor.logs(ALIAS, 1000))
        assert "listening on" in log
        assert KEY not in log
        [endpoint] = n.supervisor.serving().values()
        assert endpoint.key[-4:] not in log
        assert "sesame" not in log, "a prompt was logged"
        kept = _texts(settings.folder)
        assert KEY not in kept
        assert "sesame" not in kept


def _texts(folder: Path) -> str:
    return "\n".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file())


async def test_a_killed_server_comes_back_by_itself(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        [before] = servers()
        before.kill()
        failed = await n.until_state(State.FAILED)
        assert "SIGKILL" in failed.reason
        await n.until_state(State.READY)
        assert servers()[0].pid != before.pid
        assert (await n.complete())["choices"]


async def test_a_restarted_node_brings_back_what_it_served_without_the_hub(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
    assert servers() == []
    before = len(hub.seen)
    async with node(hub, settings) as n:
        await n.until_state(State.READY)
        assert (await n.complete())["choices"]
    assert len(hub.seen) == before


async def test_a_context_swap_under_load_drops_no_request(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    await _swap_under_load(hub, settings, hardware=None)


async def test_a_swap_without_room_for_two_waits_and_drops_no_request(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    calls: list[int] = []

    def one_fits() -> Hardware:
        calls.append(1)
        free = 1 << 33 if len(calls) == 1 else ROOM_FOR_ONE
        return Hardware((), 1 << 33, free, "cpu", 1)

    await _swap_under_load(hub, settings, hardware=one_fits)


async def _swap_under_load(
    hub: FakeHub, settings: ManagedSettings, hardware: Callable[[], Hardware] | None
) -> None:
    more = {"hardware": hardware} if hardware else {}
    async with node(hub, settings, **more) as n:
        await n.supervisor.deploy(REPO, 1024, 2)
        await n.until_state(State.READY)
        answered: list[dict[str, Any]] = []
        stop = anyio.Event()

        async def caller() -> None:
            while not stop.is_set():
                answered.append(await n.complete(tokens=24))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(caller)
            await n.until(lambda: len(answered) > 5)
            await n.supervisor.edit(ALIAS, 2048)
            await n.until(lambda: n.status().context_served == 2048)
            seen = len(answered)
            await n.until(lambda: len(answered) > seen + 5)
            stop.set()
        assert all(a["usage"]["completion_tokens"] == 24 for a in answered)
        assert n.status().swap_error == ""
        await n.until(lambda: len(servers()) == 1)


async def test_a_swap_that_fails_goes_back_to_the_old_context(
    hub: FakeHub, settings: ManagedSettings, tmp_path: Path
) -> None:
    wrapper = tmp_path / "picky-llama-server"
    _refuse_2048(wrapper)
    for beside in (True, False):
        free = (lambda: Hardware((), 1 << 33, 1 << 33, "cpu", 1)) if beside else _full_later()
        own = replace(settings, server=str(wrapper), folder=tmp_path / f"node-{beside}")
        async with node(hub, own, hardware=free) as n:
            await n.supervisor.deploy(REPO, 1024, 1)
            await n.until_state(State.READY)
            await n.supervisor.edit(ALIAS, 2048)
            await n.until(lambda: bool(n.status().swap_error))
            await n.until_state(State.READY)
            assert "not enough memory" in n.status().swap_error
            assert n.status().context_served == 1024
            assert (await n.complete())["choices"]


def _full_later() -> Callable[[], Hardware]:
    free = [1 << 33]
    return lambda: Hardware((), 1 << 33, free.pop() if free else ROOM_FOR_ONE, "cpu", 1)


async def test_a_context_that_cannot_fit_is_refused_and_nothing_changes(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    free = [1 << 33]
    box = lambda: Hardware((), 1 << 33, free[-1], "cpu", 1)  # noqa: E731
    async with node(hub, settings, hardware=box) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        free.append(0)
        with pytest.raises(RequestError, match="does not fit"):
            await n.supervisor.edit(ALIAS, 4096, 64)
        assert (n.status().state, n.status().context_served) == (State.READY, 1024)


async def test_what_was_seen_is_kept_for_the_next_estimate(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 4096, 8)
        await n.until_state(State.READY)
        wanted = settings.folder / "wanted.json"
        await n.until(lambda: "correction" in wanted.read_text())
        [model] = json.loads(wanted.read_text())["models"]
        assert all(0.9 < factor < 1.1 for factor in model["correction"])
        await n.until(lambda: n.status().seen_bytes is not None)
        status = n.status()
        assert status.seen_bytes == pytest.approx(status.estimated_bytes, rel=0.1)
        assert n.events[-1].status.seen_bytes == status.seen_bytes


async def test_a_model_that_is_being_removed_is_not_deployed_into_its_own_deletion(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        async with n.supervisor.lease(ALIAS):
            await n.supervisor.remove(ALIAS)
            with pytest.raises(RequestError, match="being removed"):
                await n.supervisor.deploy(REPO, 1024, 1)
        await n.until(lambda: n.supervisor.deployed() == [])
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)


async def test_an_idle_model_is_unloaded_and_a_request_loads_it_again(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1, idle_unload_s=1.0)
        await n.until_state(State.ASLEEP)
        assert servers() == []
        assert (await n.complete())["choices"]


async def test_a_file_that_llama_server_rejects_fails_with_what_to_do(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        alias = await n.supervisor.deploy("tiny/broken-GGUF", 1024, 1)
        failed = await n.until_failed("choose another quantisation", alias=alias)
        assert failed.log_tail
        with pytest.raises(NodeUnavailable, match="not served"):
            await n.complete(alias)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("exit 3", "status 3"),
        ("echo couldn\\'t bind HTTP; exit 1", "can't listen at a unix socket"),
    ],
)
async def test_a_server_that_dies_at_once_fails_with_its_reason(
    hub: FakeHub, settings: ManagedSettings, tmp_path: Path, body: str, words: str
) -> None:
    write_script(tmp_path / "dying", body + "\n")
    async with node(hub, replace(settings, server=str(tmp_path / "dying"))) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        failed = await n.until_state(State.FAILED)
        assert words in failed.reason


async def test_a_server_that_is_not_installed_is_said_so(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, replace(settings, server="/nonexistent/llama-server")) as n:
        with pytest.raises(RequestError, match="does not exist or is not executable"):
            await n.supervisor.deploy(REPO, 1024, 1)
        assert n.supervisor.deployed() == []


@pytest.mark.parametrize(
    ("change", "reference", "fault"),
    [
        ({"allow_deploy": False}, REPO, Fault.FORBIDDEN),
        ({"allowed_publishers": frozenset({"bartowski"})}, REPO, Fault.FORBIDDEN),
        ({"disk_quota_bytes": 1000}, REPO, Fault.STORAGE),
        ({}, "tiny/nothing", Fault.NOT_FOUND),
        ({}, f"{REPO}:Q9", Fault.NOT_FOUND),
    ],
)
async def test_a_node_refuses_what_it_may_not_or_can_not(
    hub: FakeHub, settings: ManagedSettings, change: dict[str, Any], reference: str, fault: Fault
) -> None:
    async with node(hub, replace(settings, **change)) as n:
        with pytest.raises(WaiError) as refused:
            await n.supervisor.deploy(reference, 1024, 1)
        assert refused.value.fault is fault
        assert n.supervisor.deployed() == []


async def test_a_model_too_large_for_the_box_is_refused_before_the_download(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    tiny = Hardware((), 64 << 20, 32 << 20, "cpu", 1)
    async with node(hub, settings, hardware=lambda: tiny) as n:
        with pytest.raises(RequestError, match="does not fit"):
            await n.supervisor.deploy(REPO, 1024, 1)
        assert n.supervisor.deployed() == []


async def test_a_gated_model_fails_with_what_to_do(hub: FakeHub, settings: ManagedSettings) -> None:
    async with node(hub, settings) as n:
        with pytest.raises(WaiError, match="accept its licence"):
            await n.supervisor.deploy("tiny/gated-GGUF", 1024, 1)


async def test_a_failing_download_leaves_the_other_model_served(
    hub: FakeHub, settings: ManagedSettings, model: bytes
) -> None:
    hub.repos["tiny/second-GGUF"] = FakeRepo({"second-F32.gguf": model + b"\0" * 32})
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        hub.faults.wrong_hash = True
        alias = await n.supervisor.deploy("tiny/second-GGUF", 1024, 1)
        failed = await n.until_state(State.FAILED, alias)
        assert "SHA-256" in failed.reason
        assert (await n.complete())["choices"]


async def test_a_second_deploy_begins_a_failed_one_again(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    hub.faults.statuses = [0, *[500] * 30]
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        failed = await n.until_state(State.FAILED)
        assert "answered 500" in failed.reason
        hub.faults.statuses = []
        await n.supervisor.deploy(REPO)
        await n.until_state(State.READY)


async def test_a_failed_model_is_tried_again_with_what_the_hub_lists_now(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    hub.faults.wrong_hash = True  # of a file that was replaced while it was listed
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.FAILED)
        hub.faults.wrong_hash = False
        await n.supervisor.deploy(REPO, 2048)
        assert (await n.until_state(State.READY)).context_served == 2048


async def test_a_failed_model_is_tried_again_with_its_own_settings(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    hub.faults.statuses = [0, *[500] * 30]
    async with node(hub, settings) as n:
        alias = await n.supervisor.deploy(REPO, 1024, 1, priority=3)
        await n.until_state(State.FAILED)
        hub.faults.statuses = []
        await n.supervisor.retry(alias)
        ready = await n.until_state(State.READY)
        assert (ready.context_served, ready.slots, ready.policy.priority) == (1024, 1, 3)
        with pytest.raises(RequestError, match="has not failed: it is ready"):
            await n.supervisor.retry(alias)


async def test_a_model_whose_download_failed_is_edited_and_tried_again(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    hub.faults.statuses = [0, *[500] * 30]
    async with node(hub, settings) as n:
        alias = await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.FAILED)
        hub.faults.statuses = []
        await n.supervisor.edit(alias, 512, 2)
        ready = await n.until_state(State.READY)
        assert (ready.context_served, ready.slots) == (512, 2)


async def test_what_is_deployed_gets_another_time_to_be_unloaded(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        [before] = servers()
        await n.supervisor.deploy(REPO, idle_unload_s=1.0)
        assert servers() == [before]
        await n.until_state(State.ASLEEP)
    assert (
        json.loads((settings.folder / "wanted.json").read_text())["models"][0]["idle_unload_s"] == 1
    )


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_time_that_is_none_is_refused(
    hub: FakeHub, settings: ManagedSettings, seconds: float
) -> None:
    async with node(hub, settings) as n:
        with pytest.raises(RequestError, match="unloaded after 1 s or more without requests"):
            await n.supervisor.deploy(REPO, 1024, 1, seconds)


async def test_the_context_of_a_model_that_is_still_on_its_way_is_not_changed(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        hub.faults.pause_s = 0.05
        await n.supervisor.deploy(REPO, 1024, 1)
        with pytest.raises(RequestError, match="still being downloaded"):
            await n.supervisor.edit(ALIAS, 2048)
        hub.faults.pause_s = 0
        await n.until_state(State.READY)


async def test_without_a_wish_for_the_context_it_is_one_that_fits(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    # a context of 4096 tokens in 256 slots takes 260 MiB, half of it 130
    room = Hardware((), 1 << 33, int(0.08 * (1 << 33)) + (620 << 20), "cpu", 1)
    async with node(hub, settings, hardware=lambda: room) as n:
        with pytest.raises(RequestError, match=r"does not fit.*the largest context here is \d+"):
            await n.supervisor.deploy(REPO, 4096, 256)
        await n.supervisor.deploy(REPO, slots=256)
        assert 2048 <= n.status().context_tokens < 4096


async def test_memory_that_a_model_on_its_way_will_take_is_not_promised_to_a_second(
    hub: FakeHub, settings: ManagedSettings, model: bytes
) -> None:
    hub.repos["tiny/second-GGUF"] = FakeRepo({"second-F16.gguf": model})
    room = Hardware((), 1 << 33, int(0.08 * (1 << 33)) + (620 << 20), "cpu", 1)
    async with node(hub, settings, hardware=lambda: room) as n:
        hub.faults.pause_s = 0.05
        await n.supervisor.deploy(REPO, 1024, 1)
        with pytest.raises(RequestError, match=r"does not fit.*for models that are not loaded yet"):
            await n.supervisor.deploy("tiny/second-GGUF", 1024, 1)
        hub.faults.pause_s = 0
        await n.until_state(State.READY)
        await n.supervisor.deploy("tiny/second-GGUF", 1024, 1)


async def test_the_layers_on_the_gpu_follow_the_context(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    free = [2 << 30]

    def box() -> Hardware:
        card = Gpu("card", "nvidia", 8 << 30, free[-1])
        return Hardware((card,), 1 << 35, 1 << 35, "cpu", 8)

    async with node(hub, settings, hardware=box) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        assert _layers() == [3]
        free.append(700 << 20)  # of which 650 are set aside: all of it does not even fit alone
        await n.supervisor.edit(ALIAS, 4096, 64)
        await n.until(lambda: n.status().context_served == 4096)
        assert _layers() != [3]


def _layers() -> list[int]:
    return [int(p.cmdline()[p.cmdline().index("--gpu-layers") + 1]) for p in servers()]


async def test_the_nodes_log_says_what_is_served_and_what_failed(
    hub: FakeHub, settings: ManagedSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wai.node.managed")
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        await n.supervisor.deploy("tiny/broken-GGUF", 1024, 1)
        await n.until_failed("rejects the file", alias="tiny/broken-GGUF:F16")
        said = [record.getMessage() for record in caplog.records]
        assert f"{ALIAS} is ready: 1 slots of 1024 tokens" in said
        assert [line for line in said if "broken" in line][-1].startswith(
            "tiny/broken-GGUF:F16 failed: the server ended: llama-server rejects the file"
        )


async def test_a_request_during_the_start_waits_for_it(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        assert (await n.complete())["choices"]


async def test_a_server_that_is_killed_before_it_listens_is_told_as_failed(
    hub: FakeHub, settings: ManagedSettings, tmp_path: Path
) -> None:
    write_script(tmp_path / "hanging", "trap '' TERM\nsleep 1000 & sleep 1000\n")
    async with node(hub, replace(settings, server=str(tmp_path / "hanging"))) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.STARTING)
        await n.until(lambda: bool(servers()))
        [server] = servers()
        os.killpg(server.pid, signal.SIGKILL)
        await n.until_state(State.FAILED)
        assert not server.is_running()


async def test_a_swap_that_was_taken_back_is_taken_back_on_the_disk_too(
    hub: FakeHub, settings: ManagedSettings, tmp_path: Path
) -> None:
    wrapper = tmp_path / "picky-llama-server"
    _refuse_2048(wrapper)
    own = replace(settings, server=str(wrapper))
    async with node(hub, own) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        await n.supervisor.edit(ALIAS, 2048)
        await n.until(lambda: bool(n.status().swap_error))
        kept = settings.folder / "wanted.json"
        await n.until(lambda: json.loads(kept.read_text())["models"][0]["context_tokens"] == 1024)
    async with node(hub, own) as n:
        assert (await n.until_state(State.READY)).context_served == 1024


async def test_a_node_killed_in_a_swap_that_fails_goes_back_to_what_was_served(
    hub: FakeHub, settings: ManagedSettings, tmp_path: Path
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        kept = settings.folder / "wanted.json"
        await n.until(lambda: '"proven": [' in kept.read_text())
    wanted = json.loads(kept.read_text())
    wanted["models"][0]["context_tokens"] = 2048  # as the killed node left it
    kept.write_text(json.dumps(wanted))
    wrapper = tmp_path / "picky-llama-server"
    _refuse_2048(wrapper)
    async with node(hub, replace(settings, server=str(wrapper))) as n:
        status = await n.until_state(State.READY)
        assert (status.context_served, status.context_tokens) == (1024, 1024)
        assert "served as before" in status.swap_error
        # The server of before was another program: what is served moves to the one of now.
        await n.until(lambda: json.loads(kept.read_text())["models"][0]["engine"] == [str(wrapper)])
        assert "served as before" in n.status().swap_error


async def test_a_removal_that_a_crash_cut_short_is_finished_by_the_next_run(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        async with n.supervisor.lease(ALIAS):
            await n.supervisor.remove(ALIAS)  # and here it "crashes": nothing is deleted yet
    assert list(settings.models_folder.rglob("*.gguf"))
    async with node(hub, settings) as n:
        assert n.supervisor.deployed() == []
        assert list(settings.models_folder.rglob("*.gguf")) == []
    assert json.loads((settings.folder / "wanted.json").read_text())["removing"] == []


def _refuse_2048(wrapper: Path) -> None:
    """A server that refuses that context; everything else is the real one."""
    write_script(
        wrapper,
        f'case "$*" in *"--ctx-size 2048 "*) echo "failed to allocate buffer"; exit 1;; esac\n'
        f'exec {script("llama-server-vulkan")} "$@"\n',
    )
