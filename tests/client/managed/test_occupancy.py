"""What the node's models leave of its memory, on GPUs and in RAM, now and for one that is new."""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from tests.client.models.test_fit import GIB, Q4, SHAPE, box
from wai_node.managed.deployment import Deployment, Wish
from wai_node.managed.entry import DeploymentEntry, Held
from wai_node.managed.load_policy import LoadPolicy
from wai_node.managed.occupancy import free_for, free_now, promised
from wai_node.managed.vllm_appraisal import VllmAppraiser
from wai_node.managed.wanted import WantedModel
from wai_node.models.estimate import estimate
from wai_node.models.fit import GPU_HIGH_BYTES, fit, free_space
from wai_node.models.load import Load
from wai_node.models.space import Space
from wai_protocol.errors import RequestError

FOUND: Final = estimate(SHAPE, Q4, Load(8192))
WISH: Final = Wish(8192, 1)


def entry(name: str, *, held: Space | None = None, **policy: Any) -> DeploymentEntry:
    model = WantedModel(
        *(name, "a/b", "c", "Q4", ("x.gguf",), (Q4,), ("0" * 64,), 8192, 1), **policy
    )
    found = DeploymentEntry(model, Deployment(WISH))
    if held is not None:
        found.held[1] = Held(held, held.ram)
    return found


def test_what_fits_by_the_estimate_has_room_by_the_same_figures() -> None:
    for hardware in (box(24), box(5), box(0), box(5, unified=True)):
        placed = fit(SHAPE, Q4, Load(8192), hardware)
        needs = placed.space
        assert free_space(hardware).holds(needs), (hardware, needs)
        assert needs.gpu + needs.ram >= placed.estimate.buffers


def test_where_the_gpus_memory_is_ram_it_is_counted_once() -> None:
    apple = box(24, unified=True)
    assert fit(SHAPE, Q4, Load(8192), apple).space == Space(ram=FOUND.high)
    assert free_space(apple).gpu == 0
    assert str(Space((GIB,), 2 * GIB)) == "1.0 GiB on the GPU and 2.0 GiB of RAM"


def test_a_server_that_loads_has_its_memory_before_it_is_seen_to_take_it() -> None:
    loading = entry("a", held=Space((10 * GIB,), 4 * GIB))
    loading.machine._loading = 1
    free = free_now([loading], box(24))
    assert (free.gpus[0].free_bytes, free.ram_available_bytes) == (14 * GIB, 28 * GIB)


def test_weights_that_the_system_could_drop_are_not_free() -> None:
    mapped = entry("a", held=Space(ram=50 * GIB))
    assert free_now([mapped], box(0, 60)).ram_available_bytes == 14 * GIB


def test_a_new_model_counts_on_those_that_make_room_for_it_and_on_no_others() -> None:
    held = Space(ram=10 * GIB)
    kept = entry("kept", held=held)
    asleep = entry("asleep", load="on_demand")
    awake = entry("awake", held=held, load="on_demand", idle_unload_s=60.0, priority=5)
    coming = entry("coming")
    coming.needs = Space(ram=3 * GIB)
    everyone = [kept, asleep, awake, coming]

    def free(policy: LoadPolicy, alias: str = "new") -> int:
        return free_for(everyone, box(0, 20), policy, alias).ram_available_bytes // GIB

    assert free(LoadPolicy()) == 20 + 10 - 3
    assert free(LoadPolicy(priority=1)) == 20 + 10 + 10
    assert free(LoadPolicy(), "coming") == 20 + 10
    assert promised(everyone, LoadPolicy(), "new") == Space(ram=3 * GIB)
    coming.removed = True
    assert free(LoadPolicy()) == 20 + 10


def test_a_policy_is_changed_as_people_mean_it() -> None:
    kept = LoadPolicy()
    timed = kept.changed(idle_unload_s=60.0)
    assert (timed.load, timed.idle_unload_s) == ("on_demand", 60.0)
    assert timed.changed(idle_unload_s=None) == LoadPolicy("on_demand")
    assert timed.changed("keep_loaded", 3) == LoadPolicy(priority=3)
    assert timed.changed(priority=-3).idle_unload_s == 60.0
    for wrong in ({"priority": 101}, {"idle_unload_s": 0.5}, {"idle_unload_s": float("nan")}):
        with pytest.raises(RequestError):
            kept.changed(**wrong)
    with pytest.raises(RequestError, match="kept loaded is not unloaded"):
        kept.changed("keep_loaded", None, 60.0)


def test_one_that_loads_and_makes_room_is_not_counted_twice() -> None:
    loading = entry("a", held=Space(ram=10 * GIB), load="on_demand")
    loading.machine._loading = 1
    measured = box(0, 2)  # its server has taken its memory already
    free = free_for([loading], measured, LoadPolicy("on_demand"), "new")
    assert free.ram_available_bytes == 12 * GIB


@pytest.mark.anyio
async def test_vllm_holds_its_share_of_the_first_gpu() -> None:
    wish = replace(WISH, gpu_share=0.5)
    space = await VllmAppraiser(lambda: box(24)).space(wish)
    assert (space.gpu, space.ram) == (40 * GIB - GPU_HIGH_BYTES, 0)
    assert await VllmAppraiser(lambda: box(0)).space(wish) == Space()
