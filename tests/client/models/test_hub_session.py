"""A process is forked while a thread asks the hub: the child must not wait for that thread."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

FORK: Final = """
import os, signal, threading
from wai_node.models.hub_session import hub_session

client = hub_session()
held = threading.Event()

def asks():
    with client._transport._pool._optional_thread_lock:
        held.set()
        threading.Event().wait()

threading.Thread(target=asks, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(7)
signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
signal.alarm(10)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)  # an orderly end would wait for the thread
"""


def test_a_child_that_is_forked_while_the_hub_is_asked_does_not_hang() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7"
