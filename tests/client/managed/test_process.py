"""Real processes: they die with the node, in groups, leak no key, and keep their log small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import psutil
import pytest

from tests.harness.real import require_real
from tests.harness.supervised import write_script
from tests.harness.tiny_gguf import tiny_gguf
from wai_node.engines.find import find_engine
from wai_node.engines.store import EngineStore
from wai_node.managed.server import launch
from wai_node.managed.server.health import Health, answers
from wai_node.managed.server.log_file import LINE_BYTES, LogFile, delete_log, read_tail
from wai_node.managed.server.orphans import end_orphans, mark
from wai_node.managed.server.process import (
    ServerOptions,
    ServerProcess,
)
from wai_node.managed.server.server_socket import ServerSocket

pytestmark = pytest.mark.anyio

WAIT_S: Final = 30.0


def options(model: Path) -> ServerOptions:
    return ServerOptions(model, "tiny", context_tokens=512, slots=1, threads=1)


def scripted(folder: Path, lines: str) -> ServerProcess:
    """A server that is the shell script `lines`; its log is in `folder`."""
    write_script(folder / "server", lines)
    log, socket = LogFile(folder / "log"), ServerSocket(folder / "run")
    return ServerProcess((str(folder / "server"),), options(folder), "key", log, socket)


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_server_dies_with_a_node_that_was_killed() -> None:
    node = (
        "import subprocess, sys, os, time\n"
        f"server = subprocess.Popen([sys.executable, '-I', {launch.__file__!r},"
        " str(os.getpid()), 'sleep', '1000'], start_new_session=True)\n"
        "print(server.pid, flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", node], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        wait_for(lambda: "sleep" in psutil.Process(server).name())
        process.kill()
    wait_for(lambda: not alive(server))


def test_a_server_whose_node_is_gone_already_does_not_start() -> None:
    argv = [sys.executable, "-I", launch.__file__, "1", "echo", "started"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_orphans_of_this_node_are_ended_and_strangers_are_not(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    # a wrapper that is gone already, and the server that it started beside itself
    wrapper = "setsid sleep 1000 >/dev/null & echo $!"
    found = subprocess.run(
        ["sh", "-c", wrapper], env={**os.environ, **mark(mine)}, stdout=subprocess.PIPE, check=True
    )
    orphan = int(found.stdout)
    child = subprocess.Popen(["sleep", "1000"], env={**os.environ, **mark(mine)})
    strangers = [
        subprocess.Popen(["sleep", "1000"], env={**os.environ, **mark(other)}),
        subprocess.Popen(["sleep", "1000"]),
    ]
    try:
        assert end_orphans(mine) == 2
        assert not alive(orphan)
        assert not alive(child.pid)
        child.wait(WAIT_S)  # psutil has reaped it, so that its status is not known here
        assert [stranger.poll() for stranger in strangers] == [None, None]
        assert end_orphans(mine) == 0
    finally:
        for process in strangers:
            process.kill()
            process.wait()


async def test_a_stop_ends_the_whole_group_even_one_that_ignores_sigterm(tmp_path: Path) -> None:
    process = scripted(tmp_path, "trap '' TERM\nsleep 1000 &\necho child $!\nwait\nsleep 1000\n")
    log = process.log
    await process.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.follow)
        with anyio.fail_after(WAIT_S):
            while not log.tail():  # noqa: ASYNC110 -- a log tells no event
                await anyio.sleep(0.02)
        child = int(log.tail()[0].split()[1])
        await process.stop(grace_s=0.1)
    log.close()
    assert process.pid is not None
    assert not alive(process.pid)
    await anyio.to_thread.run_sync(wait_for, lambda: not alive(child))


async def test_what_a_server_printed_while_we_were_busy_is_kept_as_from_before_its_requests(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told"
    process = scripted(tmp_path, f"echo has loaded\ntouch {told}\nexec sleep 1000\n")
    log = process.log
    await process.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.follow)
        wait_for(told.exists)  # the event loop reads nothing meanwhile
        process.catch_up()
        log.serving()
        await process.stop(grace_s=0.1)
    log.close()
    assert log.tail() == ("has loaded",)


async def test_what_a_server_prints_later_than_it_is_ready_is_waited_for(tmp_path: Path) -> None:
    late = "sleep 0.3; echo has loaded; echo 'srv update_slots: all slots are idle'\n"
    process = scripted(tmp_path, f"{late}exec sleep 1000\n")
    log = process.log
    await process.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.follow)
        await process.read_start(WAIT_S)
        log.serving()
        await process.stop(grace_s=0.1)
    log.close()
    assert log.tail() == ("has loaded",)


async def test_a_helper_that_left_the_group_and_holds_the_log_keeps_no_server_from_ending(
    tmp_path: Path,
) -> None:
    process = scripted(tmp_path, "setsid sleep 1000 &\necho child $!\nexec sleep 1000\n")
    log = process.log
    await process.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.follow)
        with anyio.fail_after(WAIT_S):
            while not log.tail():  # noqa: ASYNC110 -- a log tells no event
                await anyio.sleep(0.02)
        helper = psutil.Process(int(log.tail()[0].split()[1]))
        try:
            with anyio.fail_after(WAIT_S):
                await process.stop()
            assert helper.is_running()
        finally:
            helper.kill()
            log.close()


async def test_the_environment_carries_the_key_and_no_other_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("LLAMA_ARG_HOST", "0.0.0.0")
    script = tmp_path / "print-env"
    script.write_text("#!/bin/sh\nenv\n")
    script.chmod(0o755)
    log = LogFile(tmp_path / "log")
    process = ServerProcess(
        (str(script),),
        options(tmp_path),
        "the-key",
        log,
        ServerSocket(tmp_path / "run"),
    )
    await process.start()
    await process.follow()
    log.close()
    printed = "\n".join(log.tail())
    assert "LLAMA_API_KEY=the-key" in printed
    assert "hf_secret" not in printed
    assert "LLAMA_ARG_HOST" not in printed


async def test_xllamacpp_serves_in_a_child_of_ours_where_there_is_no_llama_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_real("smollm2")
    monkeypatch.setenv("PATH", "/nonexistent")
    command = find_engine(EngineStore(tmp_path)).argv
    assert command[1:] == ("-P", "-m", "wai_node.managed.server.inprocess_server")
    log = LogFile(tmp_path / "log")
    socket = ServerSocket(tmp_path / "run")
    process = ServerProcess(command, options(tiny_gguf(tmp_path)), "the-key", log, socket)
    await process.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.follow)
        try:
            with anyio.fail_after(WAIT_S):
                health = Health(process.socket.url, "the-key")
                while not await answers(health):  # noqa: ASYNC110 -- a server tells no event
                    await anyio.sleep(0.02)
                served = await health.served()
                await health.aclose()
        finally:
            await process.stop()
            log.close()
    assert (served.context_tokens, served.slots) == (512, 1)


def test_a_log_stays_bounded_and_its_end_readable(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.log"
    log = LogFile(path, file_bytes=1000)
    for i in range(500):
        log.write(b"line %d\n" % i)
    log.write(b"cut \xff\xfe")
    log.close()
    assert sum(p.stat().st_size for p in path.parent.iterdir()) <= 2000
    assert log.tail(2) == ("line 499", "cut ��")
    assert read_tail(path, 3)[:2] == ["line 498", "line 499"]


def test_that_nothing_happens_fills_no_log(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(path)
    idle = b"0.02.140.044 I srv  update_slots: all slots are idle\n"
    assert log.write(b"loaded\n" + idle + b"done\n" + idle[:20]) == ["loaded", "done"]
    assert log.write(idle[20:] + b"in mid-") == []
    assert log.tail() == ("loaded", "done", "in mid-")
    log.close()
    assert path.read_bytes() == b"loaded\ndone\nin mid-"
    delete_log(path)
    assert list(tmp_path.iterdir()) == []


def test_a_line_without_an_end_is_cut_and_not_collected(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log")
    assert len(log.write(b"x" * (3 * LINE_BYTES + 1))) == 3
    assert log.tail()[-1] == "x"
    log.close()
    assert (tmp_path / "a.log").stat().st_size == 3 * LINE_BYTES + 1 + 3


def test_a_log_that_cannot_be_written_is_no_reason_to_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = LogFile(tmp_path / "file" / "a.log")
    assert log.write(b"one\ntwo\n") == ["one", "two"]
    full = LogFile(Path("/dev/full"))
    assert full.write(b"three\n") == ["three"]
    assert (log.tail(), full.tail()) == (("one", "two"), ("three",))
    log.close()
    full.close()
