"""kill -9 of node, llama-server and relay, each while a model is in each of its states.

Each state is held for real: a slow hub, a server that stopped itself before it loads, or one that
was stopped with an answer open. Then one of the three is killed, what held the state is let go, and
what is wanted must come about: served as last told or gone with its files, with the model beside it
served, and no llama-server left over.

`make test` kills one of the three in each state, in turn; `make kills`, by `WAI_EVERY_KILL`, each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

import psutil
import pytest

from tests.harness.model_fleet import MODEL, ask, llama_servers, run_box
from tests.harness.processes import wait_until
from tests.harness.small_box import CONTEXT, STEADY, SWAPPED, WAIT_S, Box, small_box

Bring = Callable[[Box], None]
Kill = Callable[[Box], None]

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with small_box(tmp_path_factory.mktemp("box")) as found:
        yield found


# -- to each state, and held there


def downloading(box: Box) -> None:
    box.hub.faults.pause_s = 0.1
    box.deploy()
    wait_until(lambda: bool(box.view().get("progress")), "it does not download", WAIT_S)


def starting(box: Box) -> None:
    box.hold.touch()
    box.deploy()
    wait_until(lambda: bool(stopped(box)), "no server that stopped itself", WAIT_S)
    box.until("starting")


def stopped(box: Box) -> list[psutil.Process]:
    """The model's servers that stand still."""
    own = [p for p in llama_servers(box.running) if MODEL in p.cmdline()]
    return [p for p in own if p.status() == psutil.STATUS_STOPPED]


def ready(box: Box) -> None:
    box.ready()


def asleep(box: Box) -> None:
    box.deploy(idle_unload_s=1)
    box.until("asleep")


def swapping_beside(box: Box) -> None:
    """The new server loads while the old one answers."""
    box.ready()
    box.room_for(3)
    box.hold.touch()
    box.swap()
    wait_until(lambda: bool(stopped(box)), "no server that stopped itself", WAIT_S)
    assert (box.view()["state"], box.view()["changing"]) == ("ready", True)
    assert ask(box.running, box.secret) == 200


def draining_to_swap(box: Box) -> None:
    box.ready()
    box.server().suspend()
    box.open_answer()
    box.swap()
    box.until("draining")


def stopping_to_swap(box: Box) -> None:
    """Nothing is answered; SIGTERM does nothing to a stopped process."""
    box.ready()
    box.server().suspend()
    box.swap()
    box.until("stopping")


def draining_to_remove(box: Box) -> None:
    box.ready()
    box.server().suspend()
    box.open_answer()
    box.running.admin("delete", f"/deployments/box?model={MODEL}")
    box.until("draining")


def stopping(box: Box) -> None:
    """SIGTERM does nothing to a stopped process: SIGKILL follows after ten seconds."""
    box.ready()
    box.server().suspend()
    box.running.admin("delete", f"/deployments/box?model={MODEL}")
    box.until("stopping")


# -- who is killed


def kill_node(box: Box) -> None:
    before = box.running.nodes["box"].daemon
    before.kill()
    wait_until(lambda: not before.family(), "a server outlived its node", WAIT_S)
    box.hub.faults.pause_s = 0
    box.hold.unlink(missing_ok=True)
    run_box(box.running, models=1)


def kill_relay(box: Box) -> None:
    box.running.relay.kill()
    box.running.restart_relay()


def kill_server(box: Box) -> None:
    """The model's own, the one that answers before the one that loads; while it has none, the one
    of the model beside it."""
    own = [p for p in llama_servers(box.running) if MODEL in p.cmdline()]
    own.sort(key=lambda process: process.status() == psutil.STATUS_STOPPED)
    (own[0] if own else box.server(STEADY)).kill()


SERVED: Final[dict[Bring, int]] = {
    downloading: CONTEXT,
    starting: CONTEXT,
    ready: CONTEXT,
    asleep: CONTEXT,
    swapping_beside: SWAPPED,
    draining_to_swap: SWAPPED,
    stopping_to_swap: SWAPPED,
}
REMOVED: Final = (draining_to_remove, stopping)
VICTIMS: Final = (kill_node, kill_relay, kill_server)


def each_with_a_victim(states: tuple[Bring, ...]) -> list[tuple[Bring, Kill]]:
    """What is tested of all pairs; see the module."""
    if os.environ.get("WAI_EVERY_KILL"):
        return list(product(states, VICTIMS))
    return [(state, VICTIMS[at % len(VICTIMS)]) for at, state in enumerate(states)]


def settled_at(box: Box, context: int) -> bool:
    """Whether the model is served with `context`, or will not be because a change has failed."""
    view = box.view()
    return view.get("context_served") == context or view.get("swap_error", "") != ""


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("bring", "kill"), each_with_a_victim((*SERVED,)), ids=name_of)
def test_a_wanted_model_is_served_again(box: Box, bring: Bring, kill: Kill) -> None:
    box.fresh()
    bring(box)
    kill(box)
    box.let_go()
    box.served(MODEL)
    # The server of before may answer until the new one is ready, or the change is taken back.
    wait_until(lambda: settled_at(box, SERVED[bring]), "the wrong context", WAIT_S)
    assert box.view()["swap_error"] == ""
    box.served(STEADY)
    wait_until(lambda: len(llama_servers(box.running)) <= 2, "a server is left over", WAIT_S)


def test_a_new_server_that_is_killed_while_it_loads_leaves_the_old_one_serving(box: Box) -> None:
    box.fresh()
    swapping_beside(box)
    stopped(box)[0].kill()
    wait_until(lambda: bool(box.view().get("swap_error")), "nobody says so", WAIT_S)
    assert "SIGKILL" in box.view()["swap_error"]
    assert (box.view()["state"], box.view()["context_served"]) == ("ready", CONTEXT)
    assert ask(box.running, box.secret) == 200


@pytest.mark.parametrize(("bring", "kill"), each_with_a_victim(REMOVED), ids=name_of)
def test_a_removed_model_is_gone_with_its_files(box: Box, bring: Bring, kill: Kill) -> None:
    box.fresh()
    bring(box)
    kill(box)
    box.let_go()
    box.served(STEADY)
    box.gone()
