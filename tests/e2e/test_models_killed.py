"""kill -9 of node, llama-server and relay, each while a model is in each of its states.

Each state is held for real: a slow hub, a server that stopped itself before it loads, or one that
was stopped with an answer open. Then one of the three is killed, what held the state is let go, and
what is wanted must come about: served as last told or gone with its files, with the model beside it
served, and no llama-server left over.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.harness.cluster import Cluster
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.model_fleet import MODEL, REPO, ask, llama_servers, model_fleet, run_box
from tests.harness.processes import wait_until
from tests.harness.real import script
from tests.harness.supervised import write_script
from tests.harness.tiny_gguf import tiny_gguf
from wai_cli.admin_client import AdminClient
from wai_cli.target import local_target
from wai_protocol.errors import WaiError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

STEADY_REPO: Final = "tiny/steady-GGUF"
STEADY: Final = f"{STEADY_REPO}:F16"
CONTEXT: Final = 2048
SWAPPED: Final = 1024
_SMALL_BOX: Final = """\
import pathlib, psutil
whole = psutil.virtual_memory

def virtual_memory():
    \"\"\"8 GiB, of which 8 % are kept free, with room for as many servers as a file says.\"\"\"
    children = psutil.Process().children(recursive=True)
    servers = sum("--parallel" in child.cmdline() for child in children)
    fitting = int(pathlib.Path(__file__).with_name("fitting").read_text())
    room = max(100 << 20, (fitting - servers) * (600 << 20))
    return whole()._replace(total=8 << 30, available=int(0.08 * (8 << 30)) + room)

psutil.virtual_memory = virtual_memory
"""


@dataclass(slots=True)
class Box:
    """The rig, and what holds a state."""

    running: Cluster
    hub: FakeHub
    secret: str
    hold: Path
    fitting: Path
    callers: list[threading.Thread] = field(default_factory=list)

    def admin(self, method: str, path: str, *body: Any) -> Any:
        """One call of the admin API."""
        with AdminClient(local_target(self.running.data)) as relay:
            return getattr(relay, method)(path, *body)

    def view(self, name: str = MODEL) -> dict[str, Any]:
        """How `wai model list` shows a model; empty while it is not there."""
        try:
            found = self.admin("get", "/deployments")["data"]
        except WaiError:
            return {}
        return next((d for d in found if d["model"] == name), {})

    def until(self, state: str, name: str = MODEL) -> None:
        wait_until(lambda: self.view(name).get("state") == state, f"{name} is not {state}", WAIT_S)

    def deploy(self, repo: str = REPO, **more: Any) -> None:
        wanted = {"node": "box", "model": repo, "context": CONTEXT, "slots": 1, **more}
        self.admin("post", "/deployments", wanted)

    def server(self, name: str = MODEL) -> psutil.Process:
        """The llama-server of a model."""
        [found] = [p for p in llama_servers(self.running) if name in p.cmdline()]
        return found

    def open_answer(self) -> None:
        """Ask a stopped server: the stream stays open."""

        def caller() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):  # the relay was killed
                ask(self.running, self.secret, stream=True)

        self.callers.append(threading.Thread(target=caller, daemon=True))
        self.callers[-1].start()
        wait_until(lambda: self.view().get("in_flight") == 1, "the request never came", WAIT_S)

    def let_go(self) -> None:
        """Nothing holds the state any more."""
        self.hub.faults.pause_s = 0
        self.hold.unlink(missing_ok=True)
        self.fitting.write_text("2")  # a third must wait
        for process in llama_servers(self.running):
            try:
                process.resume()
            except psutil.NoSuchProcess:
                continue


WAIT_S: Final = 60.0


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    gguf = tiny_gguf(folder).read_bytes()
    hold, server = folder / "hold", folder / "llama-server"
    write_script(
        server,
        f'case "$*" in *"{MODEL}"*) [ -e {hold} ] && kill -STOP $$;; esac\n'
        f'exec {script("llama-server-vulkan")} "$@"\n',
    )
    (folder / "small" / "sitecustomize.py").parent.mkdir()
    (folder / "small" / "sitecustomize.py").write_text(_SMALL_BOX)
    fitting = folder / "small" / "fitting"
    fitting.write_text("2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "small"), prepend=os.pathsep)
        with model_fleet(folder, gguf, server=str(server)) as (running, hub):
            hub.repos[STEADY_REPO] = FakeRepo({"steady-F16.gguf": gguf})
            found = Box(running, hub, running.create_key().secret, hold, fitting)
            found.deploy(STEADY_REPO)
            found.until("ready", STEADY)
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
    box.deploy()
    box.until("ready")
    wait_until(lambda: ask(box.running, box.secret) == 200, "not served", WAIT_S)


def asleep(box: Box) -> None:
    box.deploy(idle_unload_s=1)
    box.until("asleep")


def swapping_beside(box: Box) -> None:
    """The new server loads while the old one answers."""
    ready(box)
    box.fitting.write_text("3")
    box.hold.touch()
    swap(box)
    wait_until(lambda: bool(stopped(box)), "no server that stopped itself", WAIT_S)
    assert (box.view()["state"], box.view()["changing"]) == ("ready", True)
    assert ask(box.running, box.secret) == 200


def draining_to_swap(box: Box) -> None:
    ready(box)
    box.server().suspend()
    box.open_answer()
    swap(box)
    box.until("draining")


def stopping_to_swap(box: Box) -> None:
    """Nothing is answered; SIGTERM does nothing to a stopped process."""
    ready(box)
    box.server().suspend()
    swap(box)
    box.until("stopping")


def swap(box: Box) -> None:
    wanted = {"context": SWAPPED, "slots": 1}
    box.admin("patch", f"/deployments/box?model={MODEL}", wanted)


def draining_to_remove(box: Box) -> None:
    ready(box)
    box.server().suspend()
    box.open_answer()
    box.admin("delete", f"/deployments/box?model={MODEL}")
    box.until("draining")


def stopping(box: Box) -> None:
    """SIGTERM does nothing to a stopped process: SIGKILL follows after ten seconds."""
    ready(box)
    box.server().suspend()
    box.admin("delete", f"/deployments/box?model={MODEL}")
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


SERVED: Final = (
    (downloading, CONTEXT),
    (starting, CONTEXT),
    (ready, CONTEXT),
    (asleep, CONTEXT),
    (swapping_beside, SWAPPED),
    (draining_to_swap, SWAPPED),
    (stopping_to_swap, SWAPPED),
)
REMOVED: Final = (draining_to_remove, stopping)
VICTIMS: Final = (kill_node, kill_relay, kill_server)


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("kill", VICTIMS, ids=name_of)
@pytest.mark.parametrize(("bring", "context"), SERVED, ids=name_of)
def test_a_wanted_model_is_served_again(
    box: Box, bring: Callable[[Box], None], context: int, kill: Callable[[Box], None]
) -> None:
    fresh(box)
    bring(box)
    kill(box)
    box.let_go()
    served(box, MODEL)
    assert box.view()["context_served"] == context
    assert box.view()["swap_error"] == ""
    served(box, STEADY)
    wait_until(lambda: len(llama_servers(box.running)) <= 2, "a server is left over", WAIT_S)


def test_a_new_server_that_is_killed_while_it_loads_leaves_the_old_one_serving(box: Box) -> None:
    fresh(box)
    swapping_beside(box)
    stopped(box)[0].kill()
    wait_until(lambda: bool(box.view().get("swap_error")), "nobody says so", WAIT_S)
    assert "SIGKILL" in box.view()["swap_error"]
    assert (box.view()["state"], box.view()["context_served"]) == ("ready", CONTEXT)
    assert ask(box.running, box.secret) == 200


@pytest.mark.parametrize("kill", VICTIMS, ids=name_of)
@pytest.mark.parametrize("bring", REMOVED, ids=name_of)
def test_a_removed_model_is_gone_with_its_files(
    box: Box, bring: Callable[[Box], None], kill: Callable[[Box], None]
) -> None:
    fresh(box)
    bring(box)
    kill(box)
    box.let_go()
    served(box, STEADY)
    gone(box)


def served(box: Box, name: str) -> None:
    wait_until(lambda: ask(box.running, box.secret, name) == 200, f"{name} not served", WAIT_S)


def gone(box: Box) -> None:
    models = box.running.folder / "box" / "models" / REPO
    wait_until(lambda: box.view(STEADY) != {} and box.view() == {}, "it is listed", WAIT_S)
    # 503: a relay does not know that a run of the node that it never heard of finished a removal
    wait_until(lambda: ask(box.running, box.secret) in (404, 503), "it is still served", WAIT_S)
    wait_until(lambda: not list(models.rglob("*.*")), "its files are still there", WAIT_S)
    wait_until(lambda: len(llama_servers(box.running)) == 1, "a server is left over", WAIT_S)


def fresh(box: Box) -> None:
    """As a test wants it: the model beside is served, the model is not there."""
    box.let_go()
    served(box, STEADY)
    if box.view() and box.view()["state"] not in ("draining", "stopping"):
        box.admin("delete", f"/deployments/box?model={MODEL}")
    gone(box)
    for caller in box.callers:
        caller.join(WAIT_S)
    box.callers.clear()
