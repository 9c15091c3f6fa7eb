"""A small service manager: a `systemctl` to put into PATH on machines without systemd.

It does what install.sh asks of systemd: it reads the installed unit, runs its ExecStart with the
environment of a service (not the caller's), reports whether it runs, and stops it. The unit's
sandbox is not applied (`systemd-analyze` checks it).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

_STOP_S: Final = 15.0

_PROGRAM: Final = r"""
import os, shlex, signal, subprocess, sys, time
run, home = {run!r}, {home!r}
words = [word for word in sys.argv[1:] if not word.startswith("-")]
with open(run + "/asked", "a") as asked:
    asked.write(" ".join(sys.argv[1:]) + "\n")
verb, name = words[0], words[-1]

def pid():
    try:
        number = int(open(f"{{run}}/{{name}}.pid").read())
        os.kill(number, 0)
        state = open(f"/proc/{{number}}/stat").read().rpartition(")")[2].split()[0]
        return number if state != "Z" else None
    except (OSError, ValueError):
        return None

def start():
    lines = open(f"{{home}}/.config/systemd/user/{{name}}.service").read().splitlines()
    value = lambda key: next((l[len(key) + 1:] for l in lines if l.startswith(key + "=")), "")
    environment = {{"HOME": home, "PATH": "/usr/bin:/bin"}}
    file = value("EnvironmentFile").lstrip("-").replace("%h", home)
    if file and os.path.exists(file):
        environment.update(shlex.split(line)[0].split("=", 1) for line in open(file))
    command = shlex.split(value("ExecStart").replace("%h", home))
    log = open(f"{{run}}/{{name}}.log", "ab")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                               env=environment, cwd="/", start_new_session=True)
    open(f"{{run}}/{{name}}.pid", "w").write(str(process.pid))

def stop():
    number = pid()
    if number:
        os.kill(number, signal.SIGTERM)
        while pid():
            time.sleep(0.05)

if verb == "is-system-running":
    print("running")
elif verb == "is-active":
    sys.exit(0 if pid() else 3)
elif verb == "start":
    pid() or start()
elif verb == "restart":
    stop()
    start()
elif verb == "stop":
    stop()
elif verb == "kill":
    number = pid()
    signals = [w.partition("=")[2] for w in sys.argv if w.startswith("--signal=")]
    if number is None:
        sys.exit(1)
    os.kill(number, getattr(signal, "SIG" + signals[0]))
elif verb not in ("daemon-reload", "enable", "disable"):
    sys.exit(f"systemctl of the tests: what is {{verb}}?")
"""


class ServiceManager:
    """Knows the services of one home; made by `service_manager`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def asked(self) -> list[str]:
        """Every command line that `systemctl` was given."""
        return (self._folder / "asked").read_text().splitlines()

    def pid(self, name: str) -> int:
        """The process of a service that was started."""
        return int((self._folder / f"{name}.pid").read_text())

    def log(self, name: str) -> str:
        """What a service has printed."""
        return (self._folder / f"{name}.log").read_text()

    def close(self) -> None:
        """Stop what still runs."""
        for file in self._folder.glob("*.pid"):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(file.read_text()))
                family = [process, *process.children(recursive=True)]
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGTERM)
                _, alive = psutil.wait_procs(family, _STOP_S)
                for left in alive:
                    left.kill()


@contextmanager
def service_manager(
    home: Path, commands: Path, python: str = os.path.realpath(sys.executable)
) -> Iterator[ServiceManager]:
    """Put a `systemctl` for `home` into the folder `commands`; its services end at the end.
    `python`: what runs it."""
    folder = home / ".services"
    folder.mkdir(parents=True)
    (folder / "asked").touch()
    commands.mkdir(exist_ok=True)
    program = commands / "systemctl"
    text = _PROGRAM.format(run=str(folder), home=str(home))
    program.write_text(f"#!{python}\n{text}")
    program.chmod(0o755)
    manager = ServiceManager(folder)
    try:
        yield manager
    finally:
        manager.close()
