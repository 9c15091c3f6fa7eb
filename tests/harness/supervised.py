"""A running `Supervisor` for tests, with its events and its real servers, or scripts as servers."""

from __future__ import annotations

import itertools
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import psutil

from tests.harness.fake_hub import FakeHub
from tests.harness.real import script
from tests.harness.unix_http import ask
from wai_node.managed.deployment import State
from wai_node.managed.entry import DeploymentEvent, DeploymentStatus
from wai_node.managed.policy import ManagedSettings
from wai_node.managed.supervisor import Supervisor
from wai_node.models.download import Clock
from wai_node.models.hub import Hub, HubSettings

KEY: Final = "wai_ik_test_0123456789"  # what each server's key begins with
REPO: Final = "tiny/llama-GGUF"
ALIAS: Final = f"{REPO}:F16"
WAIT_S: Final = 40.0


def settings_in(place: Path, **more: Any) -> ManagedSettings:
    """What a node in `place` is set to, with the real llama-server; `more` replaces or adds."""
    given: dict[str, Any] = {
        "folder": place / "node",
        "models_folder": place / "models",
        "server": script("llama-server-vulkan"),
        "threads": 1,
        "kept_free_bytes": 0,
    }
    return ManagedSettings(**given | more)


class Node:
    """A supervisor and the events that it reported."""

    def __init__(self, supervisor: Supervisor, events: list[DeploymentEvent]) -> None:
        self.supervisor, self.events = supervisor, events

    def status(self, alias: str = ALIAS) -> DeploymentStatus:
        """What `list` shows of it."""
        [found] = [s for s in self.supervisor.deployed() if s.alias == alias]
        return found

    async def until(self, true: Callable[[], bool]) -> None:
        with anyio.fail_after(WAIT_S):
            while not true():  # noqa: ASYNC110 -- the processes tell no event
                await anyio.sleep(0.02)

    async def until_state(self, state: State, alias: str = ALIAS) -> DeploymentStatus:
        try:
            await self.until(lambda: self.status(alias).state is state)
        except TimeoutError:
            raise AssertionError(f"not {state}: {self.status(alias)}") from None
        return self.status(alias)

    async def until_failed(self, *words: str, alias: str = ALIAS) -> DeploymentStatus:
        """Failed with these words as its reason. Of 40 starts that fail on a busy machine, b10434
        loses the last lines of one's log; the next try says it."""

        def failed() -> bool:
            status = self.status(alias)
            return status.state is State.FAILED and all(word in status.reason for word in words)

        try:
            await self.until(failed)
        except TimeoutError:
            raise AssertionError(f"not failed with {words}: {self.status(alias)}") from None
        return self.status(alias)

    async def complete(self, alias: str = ALIAS, tokens: int = 4) -> dict[str, Any]:
        """One completion, as a forwarder would ask for it."""
        async with self.supervisor.lease(alias, WAIT_S) as endpoint:
            sampled = {"temperature": 0, "ignore_eos": True}  # random weights say odd things else
            body = {"prompt": "sesame w1 w2", "max_tokens": tokens, **sampled}
            return await anyio.to_thread.run_sync(
                ask, endpoint.url, "/v1/completions", endpoint.key, body, abandon_on_cancel=True
            )


@asynccontextmanager
async def node(fake: FakeHub, settings: ManagedSettings, **more: Any) -> AsyncIterator[Node]:
    events: list[DeploymentEvent] = []
    numbers = itertools.count()

    def new_key() -> str:
        return f"{KEY}_{next(numbers)}"

    supervisor = Supervisor(
        *(settings, Hub(HubSettings(fake.endpoint)), new_key, events.append),
        clock=no_waiting(),
        **more,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervisor.run)
        yield Node(supervisor, events)
        tasks.cancel_scope.cancel()


def no_waiting() -> Clock:
    async def sleep(seconds: float) -> None:
        await anyio.lowlevel.checkpoint()

    return Clock(sleep=sleep, random=lambda: 0.0)


def servers() -> list[psutil.Process]:
    """llama-servers below this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "--parallel" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def write_script(path: Path, body: str) -> None:
    """A shell script that stands in for llama-server."""
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
