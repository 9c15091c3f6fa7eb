"""A node with memory for a chosen number of servers, and ways to hold a deployment in a state.

Beside the model under test, another one is served all the time.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from wai_protocol.errors import WaiError

from .cluster import Cluster
from .fake_hub import FakeHub, FakeRepo
from .model_fleet import MODEL, REPO, ask, llama_servers, model_fleet
from .processes import wait_until
from .real import script
from .supervised import write_script
from .tiny_gguf import tiny_gguf

WAIT_S: Final = 60.0
STEADY_REPO: Final = "tiny/steady-GGUF"
STEADY: Final = f"{STEADY_REPO}:F16"
CONTEXT: Final = 2048
SWAPPED: Final = 1024
_SMALL_BOX: Final = """\
import pathlib, psutil
whole = psutil.virtual_memory

def virtual_memory():
    \"\"\"8 GiB, of which 8 % are kept free, with room for as many servers as a file says.\"\"\"
    servers = sum(map(is_server, psutil.Process().children(recursive=True)))
    fitting = int(pathlib.Path(__file__).with_name("fitting").read_text())
    room = max(100 << 20, (fitting - servers) * (600 << 20))
    return whole()._replace(total=8 << 30, available=int(0.08 * (8 << 30)) + room)

def is_server(child):
    try:
        return "--parallel" in child.cmdline()
    except psutil.NoSuchProcess:  # it was killed
        return False

psutil.virtual_memory = virtual_memory
"""


@dataclass(slots=True)
class Box:
    """The node, and methods that hold the model in a state."""

    running: Cluster
    hub: FakeHub
    secret: str
    hold: Path
    fitting: Path
    callers: list[threading.Thread] = field(default_factory=list)

    def view(self, name: str = MODEL) -> dict[str, Any]:
        """How `wai model list` shows a model; empty while it is not there."""
        try:
            found = self.running.admin("get", "/deployments")["data"]
        except WaiError:
            return {}
        return next((d for d in found if d["model"] == name), {})

    def until(self, state: str, name: str = MODEL) -> None:
        wait_until(lambda: self.view(name).get("state") == state, f"{name} is not {state}", WAIT_S)

    def deploy(self, repo: str = REPO, **more: Any) -> None:
        wanted = {"node": "box", "model": repo, "context": CONTEXT, "slots": 1, **more}
        self.running.admin("post", "/deployments", wanted)

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

    def room_for(self, servers: int) -> None:
        """Have the node's memory hold so many servers. The node may read it at any moment."""
        new = self.fitting.with_suffix(".new")
        new.write_text(str(servers))
        new.replace(self.fitting)

    def let_go(self) -> None:
        """Release the state that is held."""
        self.hub.faults.pause_s = 0
        self.hold.unlink(missing_ok=True)
        self.room_for(2)  # a third must wait
        for process in llama_servers(self.running):
            try:
                process.resume()
            except psutil.NoSuchProcess:
                continue

    def ready(self) -> None:
        """Deploy the model, and wait until the relay's callers get answers."""
        self.deploy()
        self.until("ready")
        self.served(MODEL)

    def swap(self) -> None:
        """Ask for the other context."""
        wanted = {"context": SWAPPED, "slots": 1}
        self.running.admin("patch", f"/deployments/box?model={MODEL}", wanted)

    def served(self, name: str) -> None:
        """Wait until `name` answers."""
        wait_until(lambda: ask(self.running, self.secret, name) == 200, f"no {name}", WAIT_S)

    def gone(self) -> None:
        """Wait until nothing of the model is left, and the other model is served."""
        models = self.running.folder / "box" / "models" / REPO
        wait_until(lambda: self.view(STEADY) != {} and self.view() == {}, "it is listed", WAIT_S)
        # 503: a relay does not know that a run of the node that it never heard of removed it
        wait_until(lambda: ask(self.running, self.secret) in (404, 503), "still served", WAIT_S)
        wait_until(lambda: not list(models.rglob("*.*")), "its files are still there", WAIT_S)
        wait_until(lambda: len(llama_servers(self.running)) == 1, "a server is left over", WAIT_S)

    def fresh(self) -> None:
        """Prepare for a test: the other model is served, the model under test is removed."""
        self.let_go()
        self.served(STEADY)
        if self.view():
            with contextlib.suppress(WaiError):  # it is being removed already
                self.running.admin("delete", f"/deployments/box?model={MODEL}")
        self.gone()
        for caller in self.callers:
            caller.join(WAIT_S)
        self.callers.clear()


@contextmanager
def small_box(folder: Path) -> Iterator[Box]:
    """The rig, with the steady model ready."""
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
